"""Tar shards: complete epochs without repeats, shared fairly, resumed exactly, refused by name."""

import io
import itertools
import sys
import tarfile
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils import comm
from PIL import Image

from detco_d2.data.decode import UnreadableImage
from detco_d2.data.tar import ShardStream, build_shard_loader, find_shards, is_shard_name

pytest.importorskip("webdataset", reason="shards need webdataset")


def picture(number, kind="PNG"):
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (number % 256, number // 256, 0)).save(stream, kind)
    return stream.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def write_shards(folder, sizes, broken=()):
    """Shards of so many images, which are numbered through; returns what was found."""
    numbers = itertools.count()
    for i, size in enumerate(sizes):
        images = {
            f"{n:04d}.png": b"broken" if n in broken else picture(n)
            for n in itertools.islice(numbers, size)
        }
        write_tar(folder / f"s-{i:02d}.tar", images)
    return find_shards([f"{folder}/s-*.tar"])


def draw(image):
    """A stand-in for the mapper: the image's number, as its pixels say it, and a random one."""
    red, green, _ = Image.open(io.BytesIO(image["image_bytes"])).getpixel((0, 0))
    number = red + 256 * green
    assert image["file_name"].endswith(f".tar/{number:04d}.png")
    return {
        "file_name": image["file_name"],
        "view": torch.stack([torch.tensor(number), torch.randint(10**9, ())]),
    }


def consume(monkeypatch, shards, count, *, worker=0, workers=1, seed=5, **settings):
    """The first `count` views of a consumer, of shape (count, 2)."""
    info = SimpleNamespace(id=worker, num_workers=workers)
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: info)
    settings = {"batch_size": 3, "num_workers": workers, **settings}
    stream = ShardStream(shards, draw, seed, **settings)
    return torch.stack([sample["view"] for sample in itertools.islice(stream, count)])


def consume_all(monkeypatch, shards, count, world, workers):
    """The same of all consumers: their numbers, of shape (consumers, count)."""
    return torch.stack(
        [
            consume(
                monkeypatch,
                shards,
                count,
                rank=rank,
                world_size=world,
                worker=worker,
                workers=workers,
            )[:, 0]
            for rank in range(world)
            for worker in range(workers)
        ]
    )


def batches(shards, count, **settings):
    defaults = dict(total_batch_size=3, num_workers=2, seed=5)
    loader = build_shard_loader(shards, draw, **{**defaults, **settings})
    return list(itertools.islice(iter(loader), count))


def test_equal_shards_come_exactly_once_an_epoch_over_ranks_and_workers(tmp_path, monkeypatch):
    shards = write_shards(tmp_path, [5] * 8)
    numbers = consume_all(monkeypatch, shards, 30, world=2, workers=2)
    epochs = [numbers[:, e * 10 : e * 10 + 10] for e in range(3)]
    assert all(sorted(epoch.flatten().tolist()) == list(range(40)) for epoch in epochs)


def test_real_loader_processes_deliver_an_epoch_exactly_once(tmp_path, monkeypatch):
    shards = write_shards(tmp_path, [6] * 4)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    numbers = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        for batch in batches(shards, 4, total_batch_size=6):
            assert batch["view"].shape == (3, 2)
            numbers += batch["view"][:, 0].tolist()
    assert sorted(numbers) == list(range(24))


def test_unequal_shards_give_all_consumers_epochs_of_one_length_without_repeats(
    tmp_path, monkeypatch
):
    shards = write_shards(tmp_path, [1, 9, 4, 6, 2, 7, 5])
    stream = ShardStream(shards, draw, 5, batch_size=3, num_workers=3)
    images = {shard.path: shard.num_images for shard in shards}
    ends, left_out = [0], []
    for epoch in range(4):
        shares, lengths = zip(*(stream._deal(epoch, consumer) for consumer in range(3)))
        assert sorted(sum(shares, [])) == sorted(images)
        assert lengths == (min(sum(images[path] for path in share) for share in shares),) * 3
        ends.append(ends[-1] + lengths[0])
    numbers = consume_all(monkeypatch, shards, ends[-1], world=1, workers=3)
    for start, end in itertools.pairwise(ends):
        seen = numbers[:, start:end].flatten().tolist()
        assert len(seen) == len(set(seen))
        left_out.append(frozenset(range(34)) - set(seen))
    assert len(set(left_out)) > 1


def test_the_order_changes_with_epoch_and_seed_and_with_nothing_else(tmp_path, monkeypatch):
    shards = write_shards(tmp_path, [5] * 4)
    first = consume(monkeypatch, shards, 40)
    assert torch.equal(first, consume(monkeypatch, shards, 40))
    assert first[:20, 0].tolist() != first[20:, 0].tolist()
    other = consume(monkeypatch, shards, 40, seed=6)
    assert first[:20, 0].tolist() != other[:20, 0].tolist()
    assert len(set(first[:, 1].tolist() + other[:, 1].tolist())) == 80  # and no draw comes again


def test_the_buffer_shuffles_within_a_shard_anew_each_epoch(tmp_path, monkeypatch):
    numbers = consume(monkeypatch, write_shards(tmp_path, [20]), 40)[:, 0].tolist()
    assert numbers[:20] != sorted(numbers[:20])
    assert numbers[:20] != numbers[20:]
    plain = consume(monkeypatch, find_shards([f"{tmp_path}/s-*.tar"]), 20, shuffle_buffer=1)
    assert plain[:, 0].tolist() == list(range(20))


def test_the_order_of_the_shards_changes_with_epoch_and_seed(tmp_path, monkeypatch):
    shards = write_shards(tmp_path, [2] * 8)
    numbers = consume(monkeypatch, shards, 32, shuffle_buffer=1)[:, 0].tolist()
    other = consume(monkeypatch, shards, 16, shuffle_buffer=1, seed=6)[:, 0].tolist()
    orders = [order[::2] for order in (numbers[:16], numbers[16:], other)]
    assert all(sorted(order) == list(range(0, 16, 2)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_continues_exactly(tmp_path, workers):
    shards = write_shards(tmp_path, [5, 3, 6, 4])  # so that 12 iterations pass several epochs
    straight = batches(shards, 12, num_workers=workers)
    for start in (1, 3, 7, 10):
        resumed = batches(shards, 12 - start, num_workers=workers, start_iter=start)
        for ours, theirs in zip(resumed, straight[start:], strict=True):
            assert ours["file_name"] == theirs["file_name"]
            assert torch.equal(ours["view"], theirs["view"])


def test_what_was_delivered_before_is_not_decoded_again(tmp_path, monkeypatch):
    calls = []

    def count(image):
        calls.append(image["file_name"])
        return image

    shards = write_shards(tmp_path, [5] * 4)
    next(iter(ShardStream(shards, count, 5, batch_size=3, start_iter=9)))
    assert len(calls) == 1


def read(image):
    """As `draw`, but one that refuses broken images."""
    if image["image_bytes"] == b"broken":
        raise UnreadableImage("broken", image["file_name"])
    return draw(image)


def test_a_broken_image_is_replaced_by_the_next_of_its_stream(tmp_path):
    """In the last place of an epoch by one of the next epoch; the others stay where they are."""
    stream = ShardStream(write_shards(tmp_path, [5, 4, 3]), lambda image: image, 5, batch_size=3)
    names = [image["file_name"] for image in itertools.islice(stream, 60)]
    broken = [names[3], names[4], names[11]]
    write_shards(tmp_path, [5, 4, 3], {int(name[-8:-4]) for name in broken})
    samples = list(itertools.islice(ShardStream(stream.shards, read, 5, batch_size=3), 48))
    for i, sample in enumerate(samples):
        skipped = list(itertools.takewhile(broken.__contains__, names[i:]))
        assert sample["file_name"] == names[i + len(skipped)]
        assert sample.get("bad_images", []) == [(name, "broken") for name in skipped]
    assert samples[11]["file_name"] == names[12] and samples[3]["file_name"] == names[5]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_with_broken_images_continues_exactly(tmp_path, workers):
    shards = write_shards(tmp_path, [5, 3, 6, 4], {0, 4, 5, 6, 13, 17})

    def run(count, start=0):
        options = dict(total_batch_size=3, num_workers=workers, seed=5, start_iter=start)
        return list(itertools.islice(iter(build_shard_loader(shards, read, **options)), count))

    straight = run(14)
    assert sum(len(batch["bad_images"]) for batch in straight) > 10
    for start in range(1, 14, 2):
        for ours, theirs in zip(run(14 - start, start), straight[start:], strict=True):
            assert ours["file_name"] == theirs["file_name"]
            assert ours["bad_images"] == theirs["bad_images"]
            assert torch.equal(ours["view"], theirs["view"])


def test_shards_of_broken_images_stop_at_once_and_name_five(tmp_path):
    shards = write_shards(tmp_path, [8], set(range(8)))
    with pytest.raises(RuntimeError, match="100 images .* in a row, 8 of them differ") as caught:
        next(iter(ShardStream(shards, read, 5, batch_size=3)))
    assert str(caught.value).count(".png': broken") == 5


def test_the_process_random_state_is_left_alone(tmp_path, monkeypatch):
    shards = write_shards(tmp_path, [3])
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    consume(monkeypatch, shards, 2)
    assert torch.equal(torch.rand(3), expected)


def test_only_one_image_of_a_sample_is_counted_and_read(tmp_path):
    members = {
        "a.JPG": picture(1, "JPEG"),
        "a.json": b"{}",
        "a.cls": b"7",
        "b.mask.png": picture(2),
        "b.jpg": picture(3, "JPEG"),
        "c/._d.jpg": b"no image",
        "__meta__/e.jpg": b"no image",
        "readme.txt": b"no image",
        "c/f.webp": picture(4, "WEBP"),
    }
    path = write_tar(tmp_path / "mixed.tar", members)
    (shard,) = find_shards([path])
    assert shard == (path, 3)
    stream = ShardStream([shard], lambda image: image, 5, batch_size=1)
    seen = {image["file_name"]: image["image_bytes"] for image in itertools.islice(stream, 3)}
    assert seen == {
        f"{path}/a.jpg": members["a.JPG"],
        f"{path}/b.jpg": members["b.jpg"],
        f"{path}/c/f.webp": members["c/f.webp"],
    }


def test_braces_wildcards_and_plain_paths_find_the_same_files_once(tmp_path):
    shards = write_shards(tmp_path, [1, 2, 3])
    assert [shard.num_images for shard in shards] == [1, 2, 3]
    names = [f"{tmp_path}/s-{{00..02}}.tar", f"{tmp_path}/s-0[12].tar", f"{tmp_path}/s-00.tar"]
    assert find_shards(names[:1]) == find_shards(names) == shards
    assert all(is_shard_name(name) for name in names)
    assert not any(is_shard_name(name) for name in ("imagenet_train", "/a/tar", "/a/b.tar.gz"))


def test_fewer_shards_than_workers_are_refused_before_any_process_starts(tmp_path, monkeypatch):
    shards = write_shards(tmp_path, [1] * 5)
    numbers = r"5 tar shards .* 2 processes x 4 workers.*NUM_WORKERS to at most 2 "
    with pytest.raises(ValueError, match=numbers):
        ShardStream(shards, draw, 5, batch_size=1, world_size=2, num_workers=4)
    with pytest.raises(ValueError, match="5 tar shards .* 6 processes x 1 workers.*fewer process"):
        ShardStream(shards, draw, 5, batch_size=1, world_size=6)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="IMS_PER_BATCH is 3, no multiple of 2 processes"):
        build_shard_loader(shards, draw, total_batch_size=3, num_workers=0, seed=5)


def test_a_loader_with_other_workers_than_the_stream_is_refused(tmp_path):
    stream = ShardStream(write_shards(tmp_path, [1] * 4), draw, 5, batch_size=1, num_workers=2)
    with pytest.raises(ValueError, match="for 2 workers is read by 1"):
        next(iter(stream))


def test_missing_files_are_counted_and_named(tmp_path):
    write_shards(tmp_path, [1])
    with pytest.raises(FileNotFoundError, match=r"4 of 5 .*s-01\.tar, .*s-03\.tar, \.\.\."):
        find_shards([f"{tmp_path}/s-{{00..04}}.tar"])
    with pytest.raises(FileNotFoundError, match=r"1 of 1 .*none-\*\.tar"):
        find_shards([f"{tmp_path}/none-*.tar"])


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"garbage" * 1000,
        lambda content: content[: 512 + 40],  # within the first image
        lambda content: content[:1024],  # all of the first image, and no more
        lambda content: content[: 1024 + 300],  # within the second header
        lambda content: content[:1024] + b"x" * 512 + content[1536:],
    ],
)
def test_a_damaged_tar_file_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "bad.tar"
    write_tar(path, {f"{i}.png": picture(i) for i in range(3)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"bad\.tar' is no complete, uncompressed tar file \(\w+"):
        find_shards([str(path)])


def test_a_tar_file_without_images_is_refused_by_name(tmp_path):
    path = write_tar(tmp_path / "text.tar", {"a.txt": b"text"})
    with pytest.raises(ValueError, match=r"text\.tar' holds no image; looked for \.jpg"):
        find_shards([path])


@pytest.mark.parametrize("name", ["pipe:cat a.tar", "s3://b/{0..3}.tar", "https://h/a.tar"])
def test_a_remote_address_is_refused_by_name(name):
    with pytest.raises(ValueError, match="must be local files") as caught:
        find_shards([name])
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    "keep, message", [(9000, "Cannot read.*s-00.tar"), (None, "gave 1 images")]
)
def test_a_shard_that_is_damaged_during_training_stops_it(tmp_path, monkeypatch, keep, message):
    shards = write_shards(tmp_path, [20])
    if keep:
        with open(shards[0].path, "r+b") as file:
            file.truncate(keep)
    else:
        write_tar(shards[0].path, {"0000.png": picture(0)})
    with pytest.raises(RuntimeError, match=message):
        consume(monkeypatch, shards, 20)


def test_without_webdataset_the_remedy_is_named(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", {"0000.png": picture(0)})
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ImportError, match="pip install webdataset"):
        find_shards([path])

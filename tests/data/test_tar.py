"""Tar shards: indexed once, read at random, streamed and resumed like folders, refused by name."""

import gzip
import io
import itertools
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.utils import comm
from PIL import Image

from detco_d2.data import tar as tar_module
from detco_d2.data.datasets import is_shard_name
from detco_d2.data.decode import UnreadableImage
from detco_d2.data.stream import StreamDataset, build_pretrain_loader, load_train_images
from detco_d2.data.tar import TarImages, list_shards, read_member

from .test_decode import encode, pixel


def picture(number, kind="PNG"):
    return encode(pixel("RGB", (number % 256, number // 256, 0)), kind)


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def write_shards(folder, sizes, broken=()):
    """Shards of so many images, which are numbered through."""
    numbers = itertools.count()
    for i, size in enumerate(sizes):
        images = {
            f"{n:04d}.png": b"broken" if n in broken else picture(n)
            for n in itertools.islice(numbers, size)
        }
        write_tar(folder / f"s-{i:02d}.tar", images)
    return load_train_images([f"{folder}/s-*.tar"], str(folder / "out"))


def draw(image):
    """A stand-in for the mapper: the image's number, as its pixels say it, and a random one."""
    content = read_member(*image["member"])
    if content == b"broken":
        raise UnreadableImage("broken", image["file_name"])
    red, green, _ = Image.open(io.BytesIO(content)).getpixel((0, 0))
    number = red + 256 * green
    assert image["file_name"] == f"{image['member'][0]}/{number:04d}.png"
    return {
        "file_name": image["file_name"],
        "view": torch.stack([torch.tensor(number), torch.randint(10**9, ())]),
    }


def names_in(images):
    return [image["file_name"].partition(".tar/")[2] for image in images]


@pytest.mark.parametrize("world, workers", [(1, 0), (1, 3), (2, 1), (3, 0)])
def test_processes_workers_and_resumes_change_nothing(tmp_path, monkeypatch, world, workers):
    images = write_shards(tmp_path, [5, 3, 6, 4], {0, 4, 5, 13})

    def batches(count, start=0, num_workers=0):
        options = dict(total_batch_size=6, num_workers=num_workers, seed=5, start_iter=start)
        return list(itertools.islice(iter(build_pretrain_loader(images, draw, **options)), count))

    straight = batches(6)  # two epochs
    assert sum(len(batch["bad_images"]) for batch in straight) >= 8
    monkeypatch.setattr(comm, "get_world_size", lambda: world)
    for rank in range(world):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        for ours, whole in zip(batches(4, 2, workers), straight[2:], strict=True):
            assert ours["file_name"] == whole["file_name"][rank::world]
            assert torch.equal(ours["view"], whole["view"][rank::world])


def test_every_image_comes_once_an_epoch_from_a_few_shards_at_a_time(tmp_path):
    images = write_shards(tmp_path, [7] * 20)
    stream = StreamDataset(images, draw, 5)
    epochs = [[stream.index_at(e * 140 + i) for i in range(140)] for e in range(2)]
    assert epochs[0] != epochs[1]
    for epoch in epochs:
        assert sorted(epoch) == list(range(140))
        windows = [{number // 7 for number in epoch[i : i + 56]} for i in (0, 56, 112)]
        assert [len(shards) for shards in windows] == [8, 8, 4]
        assert epoch[:56] != sorted(epoch[:56])
        shards = [number // 7 for number in epoch[:14]]
        assert shards != sorted(shards)


def test_only_one_image_of_a_sample_is_taken(tmp_path):
    members = {
        "a.JPG": picture(1, "JPEG"),
        "a.json": b"{}",
        "b.mask.png": picture(2),
        "b.jpg": picture(3, "JPEG"),
        "c/._d.jpg": b"no image",
        "__meta__/e.jpg": b"no image",
        "readme.txt": b"no image",
        "c/f.webp": picture(4, "WEBP"),
        "g.v2/a.png": picture(5),
        "g.v2/b.png": picture(6),
    }
    images = TarImages([write_tar(tmp_path / "mixed.tar", members)], "")
    assert names_in(images) == ["a.JPG", "b.jpg", "c/f.webp", "g.v2/a.png", "g.v2/b.png"]
    for image, name in zip(images, names_in(images)):
        assert read_member(*image["member"]) == members[name]


def test_names_are_data_whatever_they_are(tmp_path):
    names = ["../../etc/a.png", "/etc/b.png", "ü 画\n.png", "x" * 300 + ".png", "\udcff.png"]
    images = TarImages([write_tar(tmp_path / "a.tar", dict.fromkeys(names, b"1"))], "")
    assert names_in(images) == names
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "a.tar.index.npz"]


def test_only_regular_files_are_taken(tmp_path):
    kinds = [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for kind in [*kinds, tarfile.DIRTYPE]:
            info = tarfile.TarInfo(f"{kind.decode()}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        sparse = tarfile.TarInfo("sparse.png")
        sparse.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(10**15)}
        for info in (sparse, tarfile.TarInfo("good.png")):
            info.size = 4
            tar.addfile(info, io.BytesIO(b"1234"))
    assert names_in(TarImages([f"{tmp_path}/a.tar"], "")) == ["good.png"]


def forbid_indexing(monkeypatch):
    monkeypatch.setattr(tar_module, "_make_index", lambda *_: pytest.fail("made anew"))


def test_an_index_is_made_once_and_anew_for_a_changed_tar_file(tmp_path, monkeypatch):
    first = names_in(write_shards(tmp_path, [3, 2]))
    with monkeypatch.context() as context:
        forbid_indexing(context)
        assert names_in(TarImages([f"{tmp_path}/s-*.tar"], "")) == first
    path = tmp_path / "s-01.tar"
    before = path.stat()
    write_tar(path, {"new.png": picture(0), "two.png": picture(1)})
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert names_in(TarImages([f"{tmp_path}/s-*.tar"], "")) == [*first[:3], "new.png", "two.png"]


def test_where_shards_cannot_be_written_beside_the_run_has_the_index(tmp_path, monkeypatch):
    for folder in ("a", "b"):
        (tmp_path / folder / "s.tar.index.npz").mkdir(parents=True)  # as good as a read-only folder
        write_tar(tmp_path / folder / "s.tar", {f"{folder}.png": picture(0)})
    for _ in range(2):
        images = TarImages([f"{tmp_path}/{{a,b}}/s.tar"], str(tmp_path / "out"))
        assert names_in(images) == ["a.png", "b.png"]
        assert len(os.listdir(tmp_path / "out" / "shards")) == 2
        forbid_indexing(monkeypatch)


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle was run",)


@pytest.mark.parametrize("damage", ["cut", "pickle", "text", "array", "empty"])
def test_a_damaged_or_hostile_index_is_made_anew(tmp_path, damage):
    write_shards(tmp_path, [3])
    file = Path(f"{tmp_path}/s-00.tar.index.npz")
    content = file.read_bytes()
    if damage == "pickle":
        objects = np.array([Trap()], object)
        np.savez(open(file, "wb"), stamp=objects, places=objects, names=objects)
    elif damage == "array":
        np.save(open(file, "wb"), np.zeros(3))
    else:
        file.write_bytes({"cut": content[:-400], "text": b"no index", "empty": b""}[damage])
    assert len(TarImages([f"{tmp_path}/s-00.tar"], "")) == 3
    assert np.load(file)["places"].shape == (3, 3)


def test_braces_wildcards_and_plain_paths_find_the_same_files_once(tmp_path):
    write_shards(tmp_path, [1] * 11)
    paths = [f"{tmp_path}/s-{i:02d}.tar" for i in range(11)]
    assert list_shards([f"{tmp_path}/s-{{00..10}}.tar"]) == paths
    assert list_shards([f"{tmp_path}/{{s-0,s-1}}{{0..0}}.tar"]) == [paths[0], paths[10]]
    names = [f"{tmp_path}/s-{{0{{0..8}},09,10}}.tar", f"{tmp_path}/s-0[12].tar", paths[0]]
    assert list_shards(names) == paths
    assert all(is_shard_name(name) for name in names)
    assert not any(is_shard_name(name) for name in ("imagenet_train", "/a/tar", "/a.tar/b"))
    literal = write_tar(tmp_path / "{a,b}.tar", {"0.png": picture(0)})
    assert list_shards([literal]) == [literal]


def test_missing_files_are_counted_and_named(tmp_path):
    write_shards(tmp_path, [1])
    with pytest.raises(FileNotFoundError, match=r"4 of 5 .*s-01\.tar, .*s-03\.tar, \.\.\."):
        list_shards([f"{tmp_path}/s-{{00..04}}.tar"])
    with pytest.raises(FileNotFoundError, match=r"1 of 1 .*none-\*\.tar"):
        list_shards([f"{tmp_path}/none-*.tar"])


@pytest.mark.parametrize(
    "name, why",
    [
        ("pipe:cat a.tar", "must be local files"),
        ("s3://b/{0..3}.tar", "must be local files"),
        ("/data/a.tar.gz", "unpack this one"),
        ("/data/a.tgz", "unpack this one"),
        ("imagenet_train", "on shards alone or on data sets"),
    ],
)
def test_what_cannot_be_read_as_shards_is_refused_by_name(tmp_path, name, why):
    shard = write_tar(tmp_path / "a.tar", {"0.png": picture(0)})
    with pytest.raises(ValueError, match=why) as caught:
        list_shards([shard, name])
    assert repr(name) in str(caught.value)


def change_size(content, size):
    """The first header with another size in it, and a checksum that is right."""
    header = tarfile.TarInfo.frombuf(content[:512], "utf-8", "strict")
    header.size = size
    return header.tobuf(tarfile.GNU_FORMAT) + content[512:]


def long_name(size):
    """A header that says that a name of so many bytes comes."""
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, size
    return header.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"garbage" * 1000,
        gzip.compress,
        lambda content: content[: 512 + 40],  # within the first image
        lambda content: content[:1024],  # all of the first image, and no more
        lambda content: content[: 1024 + 300],  # within the second header
        lambda content: content[:1024] + b"x" * 512 + content[1536:],
        lambda content: change_size(content, 2**50),
        lambda content: change_size(content, -1024),
        lambda content: long_name(2**40) + content,
        lambda content: long_name(0) * 3000 + content,
    ],
)
def test_a_damaged_or_hostile_tar_file_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "bad.tar"
    write_tar(path, {f"{i}.png": picture(i) for i in range(3)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"bad\.tar' cannot be indexed: .*without compression"):
        TarImages([str(path)], "")


def test_a_tar_file_without_images_is_refused_by_name(tmp_path):
    path = write_tar(tmp_path / "text.tar", {"a.txt": b"text"})
    with pytest.raises(ValueError, match=r"text\.tar' holds no image; looked for .* \.jpg"):
        TarImages([path], "")


def test_a_shard_that_is_cut_or_lost_during_training_makes_its_images_unreadable(tmp_path):
    images = write_shards(tmp_path, [20])
    path, offset, size = images[10]["member"]
    os.truncate(path, offset + size - 1)
    with pytest.raises(UnreadableImage, match="ends within it; was '.*s-00.tar' changed or cut"):
        read_member(path, offset, size)
    read_member(*images[9]["member"])
    with pytest.raises(UnreadableImage, match="more than any image has"):
        read_member(path, 0, 2**40)
    with pytest.raises(ValueError, match=r"s-00\.tar' cannot be indexed"):
        TarImages([path], "")

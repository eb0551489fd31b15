"""The stream of positions: complete epochs, independent of processes, workers and resumes."""

import itertools
import os

import pytest
import torch
from detectron2.utils import comm

from detco_d2.data.stream import (
    StreamDataset,
    build_pretrain_loader,
    pack_images,
    shuffle_windows,
)

IMAGES = [{"file_name": f"{i}.jpg"} for i in range(10)]


def draw(dataset_dict):
    """A stand-in for the mapper: the file's number and a random one."""
    number = torch.tensor(int(dataset_dict["file_name"].split(".")[0]))
    return {
        "file_name": dataset_dict["file_name"],
        "view": torch.stack([number, torch.randint(10**9, ())]),
    }


def batches(count, **settings):
    defaults = dict(total_batch_size=4, num_workers=0, seed=5)
    loader = build_pretrain_loader(IMAGES, draw, **{**defaults, **settings})
    return [batch["view"] for batch in itertools.islice(iter(loader), count)]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_image_comes_once_an_epoch_over_all_processes(world, monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: world)
    dataset = StreamDataset(IMAGES, draw, seed=5)
    seen = {}
    for rank in range(world):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        positions = build_pretrain_loader(IMAGES, draw, total_batch_size=6, num_workers=0, seed=5)
        for position in itertools.takewhile(lambda p: p < 30, positions.sampler):
            seen[position] = dataset.index_at(position)
    epochs = [[seen[p] for p in range(e * 10, e * 10 + 10)] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_another_seed_gives_another_order_and_other_draws():
    ours, theirs = torch.cat(batches(2)), torch.cat(batches(2, seed=6))
    assert not torch.equal(ours[:, 0], theirs[:, 0])
    assert not set(ours[:, 1].tolist()) & set(theirs[:, 1].tolist())


def test_an_image_is_drawn_anew_in_the_next_epoch():
    views = torch.cat(batches(5))  # 20 positions of 10 images
    assert len(set(views[:, 1].tolist())) == 20


def test_the_process_random_state_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    StreamDataset(IMAGES, draw, seed=5)[12]
    assert torch.equal(torch.rand(3), expected)


def test_one_shard_is_shuffled_like_a_folder_and_none_is_lost_of_several():
    plain = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    assert torch.equal(shuffle_windows([50], 3), plain)
    assert sorted(shuffle_windows([4, 1, 7] * 9, 3).tolist()) == list(range(108))


def private_memory(dataset_dict):
    """Bytes that the calling process shares with no other; 0 except for every 40th file."""
    if int(dataset_dict["file_name"].split(".")[0]) % 40:
        return {"file_name": "", "view": torch.tensor(0)}
    with open("/proc/self/smaps_rollup") as file:
        fields = dict(line.split(":") for line in file if line.startswith("Private"))
    total = sum(int(field.split()[0]) for field in fields.values()) * 1024
    return {"file_name": "", "view": torch.tensor(total)}


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="Linux only")
def test_a_worker_does_not_grow_with_the_images_it_has_read():
    """A list of dicts would: reading one writes its reference count, and copies its page."""
    images = pack_images([{"file_name": f"{i:050d}.jpg"} for i in range(300_000)])
    sizes = dict(total_batch_size=50, num_workers=1, seed=0)
    loader = build_pretrain_loader(images, private_memory, **sizes)
    highest = (batch["view"].max().item() for batch in itertools.islice(iter(loader), 140))
    memory = [value for value in highest if value]
    assert memory[-1] - memory[20] < 3 * 2**20  # 5000 reads of 4 KiB pages would be 20 MiB

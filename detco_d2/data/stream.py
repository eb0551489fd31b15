"""The pretraining loader: an endless stream of positions, each a pure function of the seed.

Position p of the stream is image `order(p // N)[p % N]` of N, with its augmentations drawn from a
generator seeded with (seed, p). Iteration t of batch B reads positions tB .. tB+B-1, whatever the
number of processes and workers, so resuming needs no state but the iteration. Where an image cannot
be read, others are drawn from (seed, p) until one can. Folders, data sets and tar shards differ in
their order alone.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.utils import comm

from .datasets import is_shard_name, load_images
from .decode import UnreadableImage

_ORDER, _VIEWS, _REPLACEMENT = 0, 1, 5  # kinds of draws
_WINDOW = 8  # shards whose images are shuffled together
_MAX_UNREADABLE = 100  # in a row: this is no damaged file, but a damaged folder


def pack_images(images: list[dict[str, Any]]) -> DatasetFromList:
    """Serialise data-set dicts into one array, which forked workers share and never copy."""
    return DatasetFromList(images, copy=False)


def load_train_images(names: Sequence[str], folder: str) -> Sequence[dict[str, Any]]:
    """The images that DATASETS.TRAIN names, packed: those of tar shards, or of everything else.

    `folder`, OUTPUT_DIR, takes what cannot be kept beside the shards.
    """
    if any(is_shard_name(name) for name in names):
        from .tar import TarImages  # a run on folders does not need it

        return TarImages(names, folder)
    return pack_images(load_images(names))


def mix_seed(*numbers: int) -> int:
    """One seed of several numbers: that of the run, the kind of draw, and which of these draws."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def shuffle_windows(sizes: Sequence[int], seed: int) -> torch.Tensor:
    """A random order of the images of shards of these sizes, of shape (N,).

    A slow disk reads mostly forward: the shards come in random order, a window of them at a time,
    within which all images are shuffled. A folder counts as one shard, and is a plain permutation.
    """
    generator = torch.Generator().manual_seed(seed)
    shards = torch.arange(sum(sizes)).split(list(sizes))
    order = []
    for window in torch.randperm(len(sizes), generator=generator).split(_WINDOW):
        images = torch.cat([shards[shard] for shard in window])
        order.append(images[torch.randperm(len(images), generator=generator)])
    return torch.cat(order)


class StreamDataset(torch.utils.data.Dataset):
    """Maps a stream position to a sample; shuffles anew in every epoch."""

    def __init__(
        self, images: Sequence[dict[str, Any]], mapper: Callable[[Any], Any], seed: int
    ) -> None:
        self.images = images
        self.mapper = mapper
        self.seed = seed
        self.shard_sizes = getattr(images, "shard_sizes", [len(images)])  # a folder is one shard
        self._order: tuple[int, torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def index_at(self, position: int) -> int:
        """The index of the image at a stream position."""
        epoch, offset = divmod(position, len(self))
        if self._order is None or self._order[0] != epoch:
            seed = mix_seed(self.seed, _ORDER, epoch)
            self._order = (epoch, shuffle_windows(self.shard_sizes, seed))
        return int(self._order[1][offset])

    def candidates(self, position: int) -> Iterator[dict[str, Any]]:
        """The image at a stream position, then those that replace it if it cannot be read."""
        yield self.images[self.index_at(position)]
        for attempt in itertools.count():
            yield self.images[mix_seed(self.seed, _REPLACEMENT, position, attempt) % len(self)]

    def __getitem__(self, position: int) -> Any:
        """The sample of the first candidate that can be read, made with a seed of the position.

        If others could not be read, `bad_images` in it is the list of their (path, reason). The
        state of torch's generator is left as it was.

        Raises:
            RuntimeError: a hundred candidates in a row cannot be read.
        """
        seed = mix_seed(self.seed, _VIEWS, position)
        bad: dict[tuple[str, str], None] = {}  # a set in the order of the candidates
        for image in itertools.islice(self.candidates(position), _MAX_UNREADABLE):
            try:
                with torch.random.fork_rng(devices=[]):
                    torch.default_generator.manual_seed(seed)
                    sample = self.mapper(image)
            except UnreadableImage as error:
                bad[error.path, error.reason] = None
                continue
            if bad:
                sample["bad_images"] = list(bad)
            return sample
        first = "\n".join(f"  {path!r}: {reason}" for path, reason in list(bad)[:5])
        raise RuntimeError(
            f"{_MAX_UNREADABLE} images of DATASETS.TRAIN that were tried in a row, {len(bad)} of "
            f"them different, cannot be read; the first are:\n{first}"
        )


def collate_views(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack the views of N samples; `bad_images` lists all (path, reason) of the batch."""
    batch: dict[str, Any] = {
        "file_name": [sample["file_name"] for sample in samples],
        "bad_images": [pair for sample in samples for pair in sample.get("bad_images", ())],
    }
    for view in samples[0]:
        if view not in batch:
            batch[view] = torch.stack([sample[view] for sample in samples])
    return batch


def build_pretrain_loader(
    images: Sequence[dict[str, Any]],
    mapper: Callable[[Any], Any],
    *,
    total_batch_size: int,
    num_workers: int,
    seed: int,
    start_iter: int = 0,
    pin_memory: bool = False,
    timeout: float = 0,
    start_worker: Callable[[int], None] | None = None,
) -> torch.utils.data.DataLoader:
    """An endless loader of this process's share of each batch.

    Args:
        images: Detectron2 data-set dicts; see :func:`load_train_images`.
        mapper: makes a dict of tensors of one of them, with randomness from torch's generator only.
        total_batch_size: images in a batch over all processes, whose number must divide it.
        timeout: seconds that a loader process may take for a batch; 0: any number.
    """
    world_size = comm.get_world_size()
    return torch.utils.data.DataLoader(
        StreamDataset(images, mapper, seed),
        batch_size=total_batch_size // world_size,
        sampler=itertools.count(start_iter * total_batch_size + comm.get_rank(), world_size),
        num_workers=num_workers,
        collate_fn=collate_views,
        pin_memory=pin_memory,
        timeout=timeout if num_workers else 0,
        worker_init_fn=start_worker,
    )

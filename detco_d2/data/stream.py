"""The pretraining loader: an endless stream of positions, each a pure function of the seed.

Position p of the stream is image `order(p // N)[p % N]` of N, with its augmentations drawn from a
generator seeded with (seed, p). Iteration t of batch B reads positions tB .. tB+B-1, whatever the
number of processes and workers, so resuming needs no state but the iteration. Where an image cannot
be read, others are drawn from (seed, p) until one can.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList
from detectron2.utils import comm

from ..compat import build_train_loader
from .decode import UnreadableImage

_ORDER, _VIEWS, _REPLACEMENT = 0, 1, 5  # kinds of draws; tar.py has 2 to 4
_MAX_UNREADABLE = 100  # in a row: this is no damaged file, but a damaged folder


def pack_images(images: list[dict[str, Any]]) -> DatasetFromList:
    """Serialise data-set dicts into one array, which forked workers share and never copy."""
    return DatasetFromList(images, copy=False)


def mix_seed(*numbers: int) -> int:
    """One seed of several numbers: that of the run, the kind of draw, and which of these draws."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def map_seeded(mapper: Callable[[Any], Any], item: Any, seed: int) -> Any:
    """Call a mapper with torch's generator seeded, and leave that generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return mapper(item)


def map_readable(
    mapper: Callable[[Any], Any], candidates: Iterable[dict[str, Any]], seed: int
) -> Any:
    """The sample of the first candidate that can be read.

    Returns:
        what the mapper makes of it with this seed; if others could not be read, `bad_images` in it
        is the list of their (path, reason).

    Raises:
        RuntimeError: a hundred candidates in a row cannot be read.
    """
    bad: dict[tuple[str, str], None] = {}  # a set in the order of the candidates
    for image in itertools.islice(candidates, _MAX_UNREADABLE):
        try:
            sample = map_seeded(mapper, image, seed)
        except UnreadableImage as error:
            bad[error.path, error.reason] = None
            continue
        if bad:
            sample["bad_images"] = list(bad)
        return sample
    first = "\n".join(f"  {path!r}: {reason}" for path, reason in itertools.islice(bad, 5))
    raise RuntimeError(
        f"{_MAX_UNREADABLE} images of DATASETS.TRAIN that were tried in a row, {len(bad)} of them "
        f"different, cannot be read; the first are:\n{first}"
    )


class StreamSampler(torch.utils.data.Sampler):
    """Positions start + rank, start + rank + world, ...: this process's share of the stream."""

    def __init__(self, start: int) -> None:
        self.first = start + comm.get_rank()
        self.step = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first, self.step)


class StreamDataset(torch.utils.data.Dataset):
    """Maps a stream position to a sample; shuffles anew in every epoch."""

    def __init__(
        self, images: Sequence[dict[str, Any]], mapper: Callable[[Any], Any], seed: int
    ) -> None:
        """
        Args:
            images: Detectron2 data-set dicts; see :func:`pack_images`.
            mapper: makes a sample of one of them, with randomness from torch's generator only.
            seed: the same on all processes.
        """
        self.images = images
        self.mapper = mapper
        self.seed = seed
        self._order: tuple[int, torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def index_at(self, position: int) -> int:
        """The index of the image at a stream position."""
        epoch, offset = divmod(position, len(self))
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, _ORDER, epoch))
            self._order = (epoch, torch.randperm(len(self), generator=generator))
        return int(self._order[1][offset])

    def candidates(self, position: int) -> Iterator[dict[str, Any]]:
        """The image at a stream position, then those that replace it if it cannot be read."""
        yield self.images[self.index_at(position)]
        for attempt in itertools.count():
            yield self.images[mix_seed(self.seed, _REPLACEMENT, position, attempt) % len(self)]

    def __getitem__(self, position: int) -> Any:
        seed = mix_seed(self.seed, _VIEWS, position)
        return map_readable(self.mapper, self.candidates(position), seed)


def collate_views(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack the views of N samples; `file_name` becomes a list.

    `bad_images` is the list of all (path, reason) of the batch, not one entry an image.
    """
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
) -> Any:
    """An endless loader of this process's share of each batch.

    Args:
        images: Detectron2 data-set dicts, packed by :func:`pack_images` if there are many.
        mapper: a :class:`DetCoDatasetMapper`, or anything that returns a dict of tensors.
        total_batch_size: images in a batch over all processes.
        num_workers: loader processes of this training process.
        seed: the same on all processes.
        start_iter: the iteration at which the stream starts.
        pin_memory: page-locked batches, for copies to a GPU.
    """
    return build_train_loader(
        StreamDataset(images, mapper, seed),
        StreamSampler(start_iter * total_batch_size),
        total_batch_size,
        num_workers,
        collate_views,
        pin_memory,
    )

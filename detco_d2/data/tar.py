"""Pretraining from WebDataset tar shards: read in sequence, shuffled, shared without overlap.

A consumer is one loader process of one training process. In each epoch the shards are shuffled and
dealt to the consumers; each reads its own through a shuffle buffer. The order follows from the
seed, the epoch and the number of consumers, so resuming needs no state but the iteration.
"""

import collections
import glob
import itertools
import logging
import os
import random
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.utils import comm

from .datasets import IMAGE_EXTENSIONS
from .stream import collate_views, map_readable, mix_seed

_ORDER, _BUFFER, _VIEWS = 2, 3, 4  # kinds of draws; stream.py has the others

logger = logging.getLogger(__name__)


class Shard(NamedTuple):
    """A tar file and how many images it holds."""

    path: str
    num_images: int


def is_shard_name(name: str) -> bool:
    """Whether an entry of DATASETS.TRAIN means tar shards: `x.tar`, `x-{00..41}.tar`, `x-*.tar`."""
    return name.endswith(".tar")


def list_shards(names: Sequence[str]) -> list[str]:
    """The local tar files that names stand for.

    Args:
        names: paths, with braces (`train-{000..146}.tar`) or wildcards (`train-*.tar`) or without;
            a file that several of them name is taken once.

    Raises:
        FileNotFoundError: some of the files do not exist.
        ValueError: a remote address, unbalanced braces, or names of folders among them.
        ImportError: webdataset is not installed.
    """
    _webdataset()
    others = [name for name in names if not is_shard_name(name)]
    if others:
        raise ValueError(
            f"DATASETS.TRAIN names tar shards and {others[0]!r}; train on shards alone or on "
            "data sets and folders alone."
        )
    paths = list(dict.fromkeys(path for name in names for path in _expand(name)))
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} tar shards of DATASETS.TRAIN do not exist: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
    return paths


def find_shards(names: Sequence[str]) -> list[Shard]:
    """Count the images of tar files by reading the headers of their members.

    As everywhere in WebDataset, members whose names agree up to the first dot are one sample; a
    sample with an image in it counts as one image.

    Args:
        names: see :func:`list_shards`.

    Raises:
        ValueError: a file that is no complete tar file, or one without images.
        FileNotFoundError, ImportError: see :func:`list_shards`.
    """
    shards: list[Shard] = []
    paths = list_shards(names)
    for i, path in enumerate(paths):
        if i % 100 == 0:
            logger.info("Counting the images of tar shards: %d of %d counted", i, len(paths))
        shards.append(Shard(path, _count_images(path)))
    logger.info("%d tar shards: %d images", len(shards), sum(s.num_images for s in shards))
    return shards


class ShardStream(torch.utils.data.IterableDataset):
    """An endless stream of the samples of one consumer.

    All consumers take the same number of images in an epoch, so no process runs ahead. What the
    others have more than the smallest share is left out of that epoch, a different part each time.
    An image that cannot be read is replaced by the consumer's next that can, which comes again in
    its own place.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        mapper: Callable[[Any], Any],
        seed: int,
        *,
        batch_size: int,
        start_iter: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        shuffle_buffer: int = 1000,
    ) -> None:
        """
        Args:
            shards: from :func:`find_shards`, in the same order on all processes.
            mapper: makes a sample of `file_name` (tar file/member) and `image_bytes`, with
                randomness from torch's generator only.
            seed: the same on all processes.
            batch_size: images in a batch of this process.
            start_iter: the iteration at which the stream starts; it continues an earlier run only
                with that run's shards, batch size, processes, workers and buffer.
            rank, world_size: this training process, and how many there are.
            num_workers: loader processes of this training process.
            shuffle_buffer: images, still encoded, that each loader process holds to shuffle them.
                Neighbours in a shard stay near each other, so write shards in random order.

        Raises:
            ValueError: fewer shards than consumers.
        """
        self.workers = max(1, num_workers)  # without loader processes, this process is the worker
        self.consumers = world_size * self.workers
        if len(shards) < self.consumers:
            fewer = f"lower DATALOADER.NUM_WORKERS to at most {len(shards) // world_size}"
            if len(shards) < world_size:
                fewer = "train with fewer processes"
            raise ValueError(
                f"{len(shards)} tar shards cannot be shared by {world_size} processes x "
                f"{self.workers} workers, each of which needs its own; {fewer} or write more "
                "(smaller) shards."
            )
        self.shards = list(shards)
        self.mapper = mapper
        self.seed = seed
        self.batch_size = batch_size
        self.start_iter = start_iter
        self.rank = rank
        self.shuffle_buffer = shuffle_buffer

    def __iter__(self) -> Iterator[Any]:
        """
        Raises:
            RuntimeError: a shard cannot be read, or holds less than was counted; or a hundred
                images in a row cannot be read.
            ValueError: the loader has not the workers that the stream was made for.
        """
        info = torch.utils.data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        if workers != self.workers:
            raise ValueError(f"A stream for {self.workers} workers is read by {workers}.")
        # The loader asks its workers in turn for a batch each, after a resume again from the first.
        worker = (worker + self.start_iter) % workers
        delivered = self.batch_size * len(range(worker, self.start_iter, workers))
        consumer = self.rank * workers + worker
        images = self._images(consumer, delivered)
        ahead: collections.deque[dict[str, Any]] = collections.deque()
        for number in itertools.count(delivered):
            image = ahead.popleft() if ahead else next(images)
            candidates = itertools.chain([image], _look_ahead(ahead, images))
            seed = mix_seed(self.seed, _VIEWS, consumer, number)
            yield map_readable(self.mapper, candidates, seed)

    def _images(self, consumer: int, skip: int) -> Iterator[dict[str, Any]]:
        """A consumer's images of all epochs, still encoded, without the first `skip`."""
        for epoch in itertools.count():
            paths, length = self._deal(epoch, consumer)
            if skip < length:
                yield from itertools.islice(self._read(paths, length, epoch, consumer), skip, None)
            skip = max(0, skip - length)

    def _deal(self, epoch: int, consumer: int) -> tuple[list[str], int]:
        """The shards of a consumer in an epoch, and how many images every consumer takes."""
        shards = list(self.shards)
        random.Random(mix_seed(self.seed, _ORDER, epoch)).shuffle(shards)
        shares = [shards[c :: self.consumers] for c in range(self.consumers)]
        length = min(sum(shard.num_images for shard in share) for share in shares)
        return [shard.path for shard in shares[consumer]], length

    def _read(
        self, paths: list[str], length: int, epoch: int, consumer: int
    ) -> Iterator[dict[str, Any]]:
        wds = _webdataset()
        rng = random.Random(mix_seed(self.seed, _BUFFER, epoch, consumer))
        images = wds.DataPipeline(
            wds.SimpleShardList(paths),
            wds.tarfile_to_samples(handler=wds.reraise_exception, select_files=_is_image),
            _pick_images,
            wds.shuffle(self.shuffle_buffer, rng=rng),
        )
        count = 0
        try:
            for image in itertools.islice(images, length):
                count += 1
                yield image
        except (tarfile.TarError, OSError) as error:
            raise RuntimeError(f"Cannot read a tar shard: {error!r}") from error
        if count < length:
            raise RuntimeError(
                f"The tar shards {', '.join(paths[:3])} ... ({len(paths)} of them) gave {count} "
                f"images of the {length} counted at the start; start again if they have changed."
            )


def build_shard_loader(
    shards: Sequence[Shard],
    mapper: Callable[[Any], Any],
    *,
    total_batch_size: int,
    num_workers: int,
    seed: int,
    start_iter: int = 0,
    pin_memory: bool = False,
) -> Any:
    """An endless loader of this process's share of each batch.

    Args: those of :func:`.build.build_pretrain_loader`, with shards for images.

    Raises:
        ValueError: the batch cannot be divided among the processes, or the shards among their
            workers.
    """
    world_size = comm.get_world_size()
    if total_batch_size % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {total_batch_size}, no multiple of {world_size} processes."
        )
    batch_size = total_batch_size // world_size
    stream = ShardStream(
        *(shards, mapper, seed),
        batch_size=batch_size,
        start_iter=start_iter,
        rank=comm.get_rank(),
        world_size=world_size,
        num_workers=num_workers,
    )
    return torch.utils.data.DataLoader(
        stream, batch_size, num_workers=num_workers, collate_fn=collate_views, pin_memory=pin_memory
    )


def _webdataset() -> Any:
    try:
        import webdataset  # only those who train from shards need it
    except ImportError as error:
        raise ImportError("Tar shards are read with webdataset: pip install webdataset") from error
    return webdataset


def _expand(name: str) -> list[str]:
    """The absolute paths that a name stands for, sorted; those without wildcards may not exist."""
    if re.match(r"pipe:|\w[\w+.-]*://", name):
        raise ValueError(
            f"DATASETS.TRAIN names {name!r}; tar shards must be local files (mounted or copied), "
            "since their images are counted first."
        )
    if os.path.isfile(name):
        return [os.path.abspath(name)]
    from braceexpand import braceexpand  # comes with webdataset

    paths: list[str] = []
    for path in braceexpand(name):
        paths += sorted(glob.glob(path)) or [path]
    return sorted(os.path.abspath(path) for path in paths)


def _is_image(member: str) -> bool:
    # Hidden files are macOS's `._x.jpg`, no images; webdataset takes `__x__/` for its own notes.
    hidden = re.match(r"(.*/)?\.[^/]*$|__[^/]*__/", member)
    return not hidden and member.lower().endswith(IMAGE_EXTENSIONS)


def _count_images(path: str) -> int:
    """How many samples webdataset will make of the images of a tar file."""
    group = _webdataset().tariterators.group_by_keys

    def members(tar: tarfile.TarFile) -> Iterator[dict[str, Any]]:
        for member in tar:
            if member.isreg() and _is_image(member.name):
                yield {"fname": member.name, "data": b"", "__url__": path}
            # TarFile would keep them all: a gigabyte for a million images.
            tar.members = []  # type: ignore[attr-defined]

    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            count = sum(1 for _ in group(members(tar)))
            file.seek(tar.offset)  # tarfile takes a damaged or missing header for the end
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no member and no end mark at byte {tar.offset}")
    except (tarfile.TarError, ValueError) as error:
        raise ValueError(
            f"{path!r} is no complete, uncompressed tar file ({error.args[0]}); copy or write it "
            "again."
        ) from error
    if count == 0:
        raise ValueError(
            f"The tar shard {path!r} holds no image; looked for {', '.join(IMAGE_EXTENSIONS)}."
        )
    return count


def _look_ahead(
    ahead: collections.deque[dict[str, Any]], images: Iterator[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """What comes next: images that were pulled ahead, then more, which are kept there too."""
    yield from tuple(ahead)
    for image in images:
        ahead.append(image)
        yield image


def _pick_images(samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One image of each sample: `x.jpg` before `x.mask.png`, otherwise the first."""
    for sample in samples:
        suffixes = [key for key in sample if f".{key}".endswith(IMAGE_EXTENSIONS)]
        suffix = min(suffixes, key=lambda suffix: "." in suffix)
        name = f"{sample['__url__']}/{sample['__key__']}.{suffix}"
        yield {"file_name": name, "image_bytes": sample[suffix]}

"""The sizes of a data set's images, from their headers, which a run keeps for its next start."""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..files import replacing
from .decode import MAX_PIXELS, UnreadableImage, strict, upright_size

_FILE = "image_sizes.npy"
_CHUNK = 1000  # images between two steps of the progress bar
_LONG = 10000  # files that take long enough for one
_THREADS = 16

_known: dict[int, tuple[int, int]] = {}  # by path, length and time of change


def read_sizes(files: Sequence[str]) -> list[tuple[int, int] | str]:
    """Width and height of each image, upright; or why it cannot be read.

    Paths with `://`, which only Detectron2 opens, have the size (0, 0): unknown.
    """
    sizes: list[tuple[int, int] | str] = []
    with strict(MAX_PIXELS), ThreadPoolExecutor(_THREADS) as pool:
        bar = with_progress(files, "Image headers")
        for start in range(0, len(files), _CHUNK):
            sizes += pool.map(_read_size, files[start : start + _CHUNK])
            bar.update(len(sizes) - start)
    return sizes


def with_progress(items: Sequence[Any], what: str) -> tqdm:
    """The items, with a bar where there are so many that it takes a while."""
    return tqdm(items, what, disable=len(items) < _LONG)


def _read_size(file: str) -> tuple[int, int] | str:
    if "://" in file:
        return 0, 0
    try:
        status = os.stat(file)
        text = f"{file} {status.st_size} {status.st_mtime_ns}".encode(errors="surrogateescape")
        key = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
        if key not in _known:
            with open(file, "rb") as stream:
                _known[key] = upright_size(stream)
        return _known[key]
    except (OSError, UnreadableImage) as error:
        return str(error)


def recall_sizes(folder: str) -> None:
    """Take over what :func:`keep_sizes` wrote for the same files, if it did."""
    try:
        rows = np.load(Path(folder, _FILE), allow_pickle=False)
        _known.update((int(key), (int(width), int(height))) for key, width, height in rows)
    except (OSError, ValueError, TypeError):
        return  # the headers are read again


def keep_sizes(folder: str) -> None:
    """Write the sizes that are known into a folder, for the next start."""
    rows = np.array([(key, *size) for key, size in _known.items()], np.uint64).reshape(-1, 3)
    with contextlib.suppress(OSError):  # they are read again
        os.makedirs(folder, exist_ok=True)
        with replacing(Path(folder, _FILE)) as part, open(part, "wb") as file:
            np.save(file, rows)

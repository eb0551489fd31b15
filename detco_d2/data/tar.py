"""Tar shards as a data set: an index says where each image lies, so that any can be read alone.

The index of a shard is made once, from the headers of its members. Names of members are words in
messages and never paths; only regular files are taken.
"""

import array
import glob
import itertools
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ..files import replacing
from .datasets import is_shard_name
from .decode import EXTENSIONS, UnreadableImage
from .folders import is_hidden

_FORMAT = 2  # of an index, and of what it takes for an image
_MAX_BYTES = 2**30  # of an image


class ShardIndex(NamedTuple):
    """Where the N images of a tar file lie: (offset, size, end of its name), of shape (N, 3)."""

    places: np.ndarray
    names: np.ndarray  # all in UTF-8, one after the other


class TarImages(Sequence[dict[str, Any]]):
    """The images of tar shards, as data-set dicts that are made when they are asked for.

    Each has `file_name` (tar file/member) and `member`, what :func:`read_member` takes.
    """

    def __init__(self, names: Sequence[str], folder: str) -> None:
        """Read the index of every shard, and make those that are missing or out of date.

        `folder` takes the indices of shards whose own folder cannot be written to.

        Raises:
            FileNotFoundError, ValueError: see :func:`list_shards`; or a file that is no complete
                tar file, or has no image; names it.
        """
        self.paths = list_shards(names)
        bar = tqdm(self.paths, "Indexing tar shards", mininterval=5, delay=5)
        self.indices = [_load_index(path, folder) for path in bar]
        self.shard_sizes = [len(index.places) for index in self.indices]
        self._ends = np.cumsum(self.shard_sizes)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(number)
        shard = int(np.searchsorted(self._ends, number, side="right"))
        path, (places, names) = self.paths[shard], self.indices[shard]
        row = number - int(self._ends[shard]) + len(places)
        offset, size, end = places[row].tolist()
        start = int(places[row - 1, 2]) if row else 0
        name = names[start:end].tobytes().decode(errors="surrogateescape")
        return {"file_name": f"{path}/{name}", "member": (path, offset, size)}


def read_member(path: str, offset: int, size: int) -> bytes:
    """The bytes of a tar file's member.

    Raises:
        UnreadableImage: the file is shorter than its index says, or the member too large.
    """
    if size > _MAX_BYTES:
        raise UnreadableImage(f"{size} bytes, more than any image has ({_MAX_BYTES})")
    with open(path, "rb", buffering=0) as file:
        content = os.pread(file.fileno(), size, offset)
    if len(content) < size:
        raise UnreadableImage(f"the tar file ends within it; was {path!r} changed or cut?")
    return content


def list_shards(names: Sequence[str]) -> list[str]:
    """The absolute paths of the tar files that names with braces or wildcards stand for, each once.

    Raises:
        FileNotFoundError: some of the files do not exist.
        ValueError: a remote address, a compressed tar file, or names of folders among them.
    """
    found: list[str] = []
    for name in names:
        if reason := _refusal(name):
            raise ValueError(f"DATASETS.TRAIN names {name!r}; {reason}")
        paths = [name] if os.path.isfile(name) else _expand_braces(name)
        matches = [match for path in paths for match in glob.glob(path) or [path]]
        found += sorted(os.path.abspath(match) for match in matches)
    found = list(dict.fromkeys(found))
    if missing := [path for path in found if not os.path.isfile(path)]:
        raise FileNotFoundError(
            f"{len(missing)} of {len(found)} tar shards of DATASETS.TRAIN do not exist: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
    return found


def _refusal(name: str) -> str:
    """Why a name cannot be read as tar shards; empty where it can."""
    if not is_shard_name(name):
        return "train on shards alone or on data sets and folders alone."
    if re.match(r"pipe:|\w[\w+.-]*://", name):
        return "tar shards must be local files (mounted or copied), which are read in any order."
    if not name.endswith(".tar"):
        return "tar shards are read in any order, so unpack this one to a .tar file first (gunzip)."
    return ""


def _expand_braces(name: str) -> list[str]:
    """As a shell does: `{008..112}` with its zeros, and `{train,val}`."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", name)
    if not match:
        return [name]
    first, last, listed = match.groups()
    if listed is None:
        width = len(first) if first.startswith("0") else 0
        choices = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    else:
        choices = listed.split(",")
    head, tail = name[: match.start()], name[match.end() :]
    return [path for choice in choices for path in _expand_braces(f"{head}{choice}{tail}")]


def _load_index(path: str, folder: str) -> ShardIndex:
    """The index of a tar file: the one that was made for this very file, or a new one."""
    status = os.stat(path)
    stamp = np.array([_FORMAT, status.st_size, status.st_mtime_ns])
    elsewhere = f"{os.path.basename(path)}.{zlib.crc32(os.fsencode(path)):08x}.npz"
    beside, fallback = Path(f"{path}.index.npz"), Path(folder, "shards", elsewhere)
    for file in (beside, fallback):
        try:
            with np.load(file, allow_pickle=False) as found:
                if np.array_equal(found["stamp"], stamp):
                    return ShardIndex(found["places"].reshape(-1, 3), found["names"])
        except Exception:  # not there or damaged, for which NumPy raises nearly anything
            continue
    index = _make_index(path)
    try:
        _write_index(beside, stamp, index)
    except OSError:  # a read-only folder
        fallback.parent.mkdir(parents=True, exist_ok=True)
        _write_index(fallback, stamp, index)
    return index


def _write_index(target: Path, stamp: np.ndarray, index: ShardIndex) -> None:
    with replacing(target) as part, open(part, "wb") as file:
        np.savez(file, stamp=stamp, **index._asdict())


def _make_index(path: str) -> ShardIndex:
    """Find the images of a tar file by its headers.

    As in WebDataset, members whose names agree up to the first dot are one sample, and a sample
    has one image: `x.jpg` rather than `x.mask.png`, otherwise the first.
    """
    places, names = array.array("q"), bytearray()
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            images = filter(_is_image, _members(tar))
            for _, sample in itertools.groupby(images, key=lambda m: _split(m.name)[0]):
                image = min(sample, key=lambda m: "." in _split(m.name)[1])
                names += image.name.encode(errors="surrogateescape")
                places.extend((image.offset_data, image.size, len(names)))
            file.seek(tar.offset)  # tarfile takes a damaged or missing header for the end
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no member and no end mark at byte {tar.offset}")
    except Exception as error:  # a damaged header makes tarfile raise nearly anything
        raise ValueError(
            f"The tar shard {path!r} cannot be indexed: {error!r}. It must be a complete tar file "
            "without compression; copy or write it again."
        ) from error
    if not places:
        raise ValueError(
            f"The tar shard {path!r} holds no image; looked for {', '.join(EXTENSIONS)}."
        )
    rows = np.frombuffer(places, np.int64).reshape(-1, 3)
    return ShardIndex(rows, np.frombuffer(bytes(names), np.uint8))


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    done = 0
    while member := tar.next():
        tar.members = []  # type: ignore[attr-defined]  # it would keep them all
        if tar.offset <= done:  # a negative size would lead in a circle
            raise tarfile.ReadError(f"the member at byte {member.offset} has no valid size")
        done = tar.offset
        yield member


def _is_image(member: tarfile.TarInfo) -> bool:
    if not member.isreg() or member.issparse():
        return False
    # WebDataset keeps its own notes in `__x__/`
    parts = map(Path, member.name.split("/"))
    hidden = re.match("__[^/]*__/", member.name) or any(map(is_hidden, parts))
    return not hidden and member.name.lower().endswith(EXTENSIONS)


def _split(name: str) -> tuple[str, str]:
    """A member's name up to the first dot behind its folders, and what is behind that dot."""
    folder, _, base = name.rpartition("/")
    key, _, suffix = base.partition(".")
    return f"{folder}/{key}", suffix

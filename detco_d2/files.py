"""Files that appear whole or not at all, paths of the home folder, JSON that all can read."""

import contextlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

# At the beginning of a path: of a word, or of a part of one (voc_...@~/data, NAME=~/a.pth).
_HOME = re.compile(r"""(?:^|(?<=[@='"(,]))~[\w.-]*(?=/|$)""")


def at_home(value: Any) -> Any:
    """Text, or lists of it, in which `~` and `~user` before a path are written out."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(at_home, value))
    if not isinstance(value, str):
        return value
    return _HOME.sub(lambda found: os.path.expanduser(found[0]), value)


def to_json(value: Any, **options: Any) -> str:
    """JSON in which null stands for NaN and infinities, for which JSON has no word."""
    words = json.dumps(value, default=float)
    return json.dumps(json.loads(words, parse_constant=lambda word: None), **options)


class StrictLines:
    """A file whose lines are JSON, as :func:`to_json` writes it."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, line: str) -> None:
        self._file.write(f"{to_json(json.loads(line))}\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name to write to; what is there at the end takes the place of `path` in one step.

    It is on the disk, and not just in memory, before it gets its name. Several processes may do
    this with one path at a time: the last one stands.

    Yields:
        a hidden file's name in the same folder, which is removed if an error ends the block. Only
        a process that is killed leaves it behind; see :func:`is_leftover`.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        yield part
        _flush(part)
        os.replace(part, target)
        _flush(target.parent)
    finally:
        part.unlink(missing_ok=True)


def is_leftover(name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file's name is one that :func:`replacing` gives on the way to such a suffix."""
    head, _, tail = name.rpartition(".")
    is_hex = len(tail) == 32 and set(tail) <= set("0123456789abcdef")
    return is_hex and head.startswith(".") and head.endswith(suffixes)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

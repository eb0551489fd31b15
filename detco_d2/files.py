"""Files that appear whole or not at all."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name to write to; what is there at the end takes the place of `path` in one step.

    Several processes may do this with one path at a time: the last one stands.

    Args:
        path: in a folder that exists.

    Yields:
        a hidden file's name in the same folder, which is removed if an error ends the block.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        yield part
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)

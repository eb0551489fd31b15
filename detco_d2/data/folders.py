"""The images below a folder."""

import logging
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from .check import describe_folder
from .decode import EXTENSIONS

# What systems keep beside photographs: twins, thumbnails, the bin.
_SYSTEMS = re.compile(
    r"\.(?!\.|$)|~\$|(__macosx|@(eadir|tmp|recycle)|#(recycle|snapshot)|lost\+found|recycler|"
    r"\$recycle\.bin|system volume information|thumbs\.db|desktop\.ini)$",
    re.IGNORECASE,
)

logger = logging.getLogger(__name__)


def list_images(folder: str) -> list[dict[str, Any]]:
    """All images below a folder, sorted by path, as Detectron2 data-set dicts.

    Links are followed, and a folder that is reached in several ways is read once. A link to a file
    that is not there counts as an image, which training will find unreadable. Hidden files and
    those of systems are left out; the log counts what is, by ending.

    Raises:
        FileNotFoundError, OSError: no such folder, no image in it, or a part that cannot be read.
    """
    # Detectron2 opens paths after `link/..` has been struck out of them, which may lead elsewhere.
    root = os.path.realpath(folder) if ".." in Path(folder).parts else folder
    if not os.path.isdir(root):
        raise FileNotFoundError(describe_folder(root))
    files: list[str] = []
    left: Counter[str] = Counter()
    seen: set[str] = set()
    for directory, folders, names in os.walk(root, onerror=_stop, followlinks=True):
        # in order, so that the same one of several ways is taken everywhere
        folders[:] = sorted(name for name in folders if not _SYSTEMS.match(name))
        real = os.path.realpath(directory)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in names:
            _, dot, ending = name.lower().rpartition(".")
            if _SYSTEMS.match(name):
                left["hidden or of the system"] += 1
            elif dot and f".{ending}" in EXTENSIONS:
                files.append(os.path.join(directory, name))
            else:
                left[f".{ending}" if dot else "without an ending"] += 1
    if left:
        counts = ", ".join(f"{count} {ending}" for ending, count in left.most_common(10))
        logger.info("%s: %d files are left out: %s", folder, left.total(), counts)
    if not files:
        looked_for = f"looked for {', '.join(EXTENSIONS)}"
        raise FileNotFoundError(f"No image below: {describe_folder(root)}; {looked_for}.")
    return [{"file_name": name, "image_id": i} for i, name in enumerate(sorted(files))]


def is_hidden(path: Path) -> bool:
    """Whether a file is hidden, or one that a system keeps for itself, or in a folder that is."""
    return any(_SYSTEMS.match(part) for part in path.parts[-2:])


def _stop(error: OSError) -> None:
    """Of os.walk, which would leave out what it cannot read."""
    raise type(error)(f"{error}: a folder below one of DATASETS.TRAIN cannot be read.") from error

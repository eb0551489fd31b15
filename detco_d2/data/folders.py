"""The images below a folder."""

import os
from pathlib import Path
from typing import Any

from .check import describe_folder

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")


def list_images(folder: str) -> list[dict[str, Any]]:
    """All images below a folder, sorted by path, as Detectron2 data-set dicts.

    Links are followed, and a folder that is reached in several ways is read once. A link to a file
    that is not there counts as an image, which training will find unreadable.

    Raises:
        FileNotFoundError, OSError: no such folder, no image in it, or a part that cannot be read.
    """
    # Detectron2 opens paths after `link/..` has been struck out of them, which may lead elsewhere.
    root = os.path.realpath(folder) if ".." in Path(folder).parts else folder
    if not os.path.isdir(root):
        raise FileNotFoundError(describe_folder(root))
    files: list[str] = []
    seen: set[str] = set()
    for directory, folders, names in os.walk(root, onerror=_stop, followlinks=True):
        folders.sort()  # so that the same one of several ways is taken everywhere
        real = os.path.realpath(directory)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        files += [
            os.path.join(directory, name)
            for name in names
            if name.lower().endswith(IMAGE_EXTENSIONS) and not is_hidden(Path(name))
        ]
    if not files:
        looked_for = f"looked for {', '.join(IMAGE_EXTENSIONS)}"
        raise FileNotFoundError(f"No image below: {describe_folder(root)}; {looked_for}.")
    return [{"file_name": name, "image_id": i} for i, name in enumerate(sorted(files))]


def is_hidden(path: Path) -> bool:
    """Whether a file is one that a system keeps for itself, such as macOS's twins of files."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts[-2:])


def _stop(error: OSError) -> None:
    """Of os.walk, which would leave out what it cannot read."""
    raise type(error)(f"{error}: a folder below one of DATASETS.TRAIN cannot be read.") from error

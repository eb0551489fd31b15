"""What `DATASETS.TRAIN` may name in pretraining: any data set, annotated or not, or any folder."""

import difflib
import logging
import os
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")

logger = logging.getLogger(__name__)


def list_images(folder: str) -> list[dict[str, Any]]:
    """All images below a folder, sorted by path, as Detectron2 data-set dicts.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it; says what was tried.
    """
    root = Path(folder)
    if not root.is_dir():
        parent = next((p for p in root.absolute().parents if p.exists()), None)
        raise FileNotFoundError(
            f"No folder {str(root.absolute())!r} (the nearest that exists is {str(parent)!r}; "
            f"DETECTRON2_DATASETS is {os.environ.get('DETECTRON2_DATASETS')!r})."
        )
    files = [
        os.path.join(directory, name)
        for directory, _, names in os.walk(root, followlinks=True)
        for name in names
        if name.lower().endswith(IMAGE_EXTENSIONS)
    ]
    if not files:
        raise FileNotFoundError(
            f"No image below {str(root.absolute())!r}; looked for {', '.join(IMAGE_EXTENSIONS)}."
        )
    return [{"file_name": name, "image_id": i} for i, name in enumerate(sorted(files))]


def register_folders(names: tuple[str, ...] | list[str]) -> None:
    """Register each name that is an existing directory as a data set of its images."""
    for name in names:
        if name not in DatasetCatalog.list() and os.path.isdir(name):
            DatasetCatalog.register(name, lambda name=name: list_images(name))
            MetadataCatalog.get(name).set(evaluator_type=None)


def load_images(names: tuple[str, ...] | list[str]) -> list[dict[str, Any]]:
    """The images of several data sets without their annotations; none is dropped.

    Args:
        names: registered data sets or directories.

    Raises:
        ValueError: no names, or one that is neither; suggests the nearest registered ones.
    """
    if not names:
        raise ValueError(
            "DATASETS.TRAIN is empty; name a registered data set or a folder of images, such as "
            """DATASETS.TRAIN '("/my/photos",)'."""
        )
    register_folders(names)
    images = []
    for name in names:
        if name not in DatasetCatalog.list():
            close = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
            raise ValueError(
                f"DATASETS.TRAIN names {name!r}, which is neither a registered data set nor an "
                f"existing folder. Nearest registered names: {close or 'none'}."
            )
        found = [{"file_name": d["file_name"]} for d in DatasetCatalog.get(name)]
        logger.info("%s: %d images", name, len(found))
        images += found
    return images


def _register_imagenet() -> None:
    for split in ("train", "val"):
        DatasetCatalog.register(
            f"imagenet_{split}",
            lambda split=split: list_images(
                os.path.join(os.getenv("DETECTRON2_DATASETS", "datasets"), "imagenet", split)
            ),
        )


_register_imagenet()

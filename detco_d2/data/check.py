"""Say before anything starts which files of a data set are missing, and where they should be."""

import difflib
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

# What data sets read: the metadata that tells their kind, and (path that must exist, what is in it)
# with the metadata in braces.
_EXPECTED = {
    "json_file": [("{json_file}", ""), ("{image_root}", "*.jpg")],
    "dirname": [
        ("{dirname}/ImageSets/Main/{split}.txt", ""),
        ("{dirname}/Annotations", "*.xml"),
        ("{dirname}/JPEGImages", "*.jpg"),
    ],
    "gt_dir": [
        ("{image_dir}", "<city>/*_leftImg8bit.png"),
        ("{gt_dir}", "<city>/*_gtFine_{polygons.json, instanceIds.png, labelIds.png}"),
    ],
    "image_root": [("{image_root}", "**/*.JPEG")],
}


def _expected_paths(metadata: Metadata) -> list[tuple[str, str]]:
    found = metadata.as_dict()
    if "share_of" in found:
        return _expected_paths(MetadataCatalog.get(found["share_of"]))
    kind = next((kind for kind in _EXPECTED if kind in found), "")
    return [(path.format_map(found), what) for path, what in _EXPECTED.get(kind, [])]


def describe_folder(folder: str) -> str:
    """What a path is that should be a folder of images, and where it may have been meant to be."""
    path = Path(folder).absolute()
    kind = "a folder" if os.path.isdir(path) else "a file" if os.path.exists(path) else "not there"
    parent = next((str(p) for p in path.parents if os.path.isdir(p)), None)
    return (
        f"{str(path)!r} is {kind} (the nearest folder above that exists is {parent!r}; "
        f"DETECTRON2_DATASETS is {os.environ.get('DETECTRON2_DATASETS')!r})"
    )


def check_datasets(names: Sequence[str], key: str) -> None:
    """Refuse data sets that are unknown, or whose files are not where they are expected.

    Args:
        names: of the data sets.
        key: the config key that names them, for the message.

    Raises:
        ValueError: an unknown name, or Cityscapes without the packages that read it.
        FileNotFoundError: a file or folder is missing; shows the expected tree.
    """
    for name in names:
        if name not in DatasetCatalog.list():
            close = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
            raise ValueError(
                f"{key} names {name!r}, which is neither a registered data set nor an existing "
                f"folder. Nearest registered names: {close or 'none'}. As a path, "
                f"{describe_folder(name)}."
            )
        metadata = MetadataCatalog.get(name)
        if str(metadata.get("evaluator_type")).startswith("cityscapes"):
            absent = [m for m in ("cityscapesscripts", "shapely") if not find_spec(m)]
            if absent:
                raise ValueError(f"{name!r} needs packages: pip install {' '.join(absent)}")
        expected = _expected_paths(metadata)
        state = [(os.path.abspath(path), what, os.path.exists(path)) for path, what in expected]
        if all(exists for *_, exists in state):
            continue
        tree = "\n".join(
            f"  {'found  ' if exists else 'MISSING'} {os.path.join(path, what) if what else path}"
            for path, what, exists in state
        )
        root = os.environ.get("DETECTRON2_DATASETS")
        where = repr(root) if root else "not set, so ./datasets of the working directory was taken"
        raise FileNotFoundError(
            f"{key} names {name!r}, whose files are not complete:\n{tree}\n"
            f"DETECTRON2_DATASETS is {where}; set it to the folder that holds this tree."
        )

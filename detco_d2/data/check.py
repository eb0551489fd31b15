"""Say before anything starts which files of a data set are missing, and where they should be."""

import difflib
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog


def _expected_paths(metadata: Metadata) -> list[tuple[str, str]]:
    """What a data set's metadata says it reads: (path that must exist, what is in it)."""
    found = metadata.as_dict()
    if "share_of" in found:
        return _expected_paths(MetadataCatalog.get(found["share_of"]))
    if "json_file" in found:
        return [(found["json_file"], ""), (found["image_root"], "*.jpg")]
    if "dirname" in found:
        root = Path(found["dirname"])
        return [
            (str(root / "ImageSets" / "Main" / f"{found['split']}.txt"), ""),
            (str(root / "Annotations"), "*.xml"),
            (str(root / "JPEGImages"), "*.jpg"),
        ]
    if "gt_dir" in found:
        ground_truth = "<city>/*_gtFine_{polygons.json, instanceIds.png, labelIds.png}"
        return [
            (found["image_dir"], "<city>/*_leftImg8bit.png"),
            (found["gt_dir"], ground_truth),
        ]
    return [(found["image_root"], "**/*.JPEG")] if "image_root" in found else []


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
        raise FileNotFoundError(
            f"{key} names {name!r}, whose files are not complete:\n{tree}\n"
            + (
                f"DETECTRON2_DATASETS is {root!r}; set it to the folder that holds this tree."
                if root
                else "DETECTRON2_DATASETS is not set, so ./datasets of the working directory was "
                "taken; set it to the folder that holds this tree."
            )
        )

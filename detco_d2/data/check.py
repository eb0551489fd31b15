"""Say before anything starts what a data set lacks: files, and where they belong, or labels."""

import difflib
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from .sizes import read_sizes

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
                "folder, FILE.json (COCO), FOLDER:SPLIT (VOC) or FILE.yaml:SPLIT (YOLO). Nearest "
                f"registered names: {close or 'none'}. As a path, {describe_folder(name)}."
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


def check_labels(
    images: Sequence[dict[str, Any]], name: str, key: str, fields: Sequence[str] = ()
) -> None:
    """Refuse labelled images that would fail, or count wrongly, in training or evaluation.

    Args:
        images: Detectron2's dicts of the data set `name`, which the config key `key` names.
        fields: what each box must have besides: "segmentation", "keypoints".

    Raises:
        ValueError: an image that is missing, cut, or of another size than its labels say; two of
            one id; a box without a field; no box at all.
    """
    source = f"{key} names {name!r}{_of_file(name)}"
    ids: dict[Any, str] = {}
    found = 0
    _check_sizes(images, source, [(x.get("width", 0), x.get("height", 0)) for x in images])
    for image in images:
        file = image["file_name"]
        if (other := ids.setdefault(image.get("image_id", file), file)) != file:
            raise ValueError(f"{source}: {other!r} and {file!r} have one id {image['image_id']!r}.")
        for box in image.get("annotations", []):
            if box.get("iscrowd", 0):
                continue
            found += 1
            if lacking := [field for field in fields if not box.get(field)]:
                raise ValueError(
                    f"{source}: the box {box['bbox']} of {file!r} has no {' and no '.join(lacking)}"
                    ", which this model learns. Add it, or take a config of boxes alone."
                )
    if not found:
        raise ValueError(
            f"{source}, {len(images)} images without a box that counts; give labelled data."
        )


def check_label_maps(images: Sequence[dict[str, Any]], name: str, key: str) -> None:
    """Refuse images of a segmentation that are missing, or have no label map of their size.

    Raises:
        ValueError: names the file.
    """
    source = f"{key} names {name!r}"
    maps = [image.get("sem_seg_file_name", "") for image in images]
    sizes = read_sizes(maps)
    for file, size in zip(maps, sizes):
        if isinstance(size, str):
            raise ValueError(f"{source}: the label map {file!r} cannot be read: {size}")
    _check_sizes(images, source, sizes)


def _check_sizes(images: Sequence[dict[str, Any]], source: str, expected: Sequence[Any]) -> None:
    """Compare the upright size of each image with the width and height that belong to it."""
    sizes = read_sizes([image["file_name"] for image in images])
    for image, size, said in zip(images, sizes, expected):
        file = image["file_name"]
        if isinstance(size, str):
            raise ValueError(f"{source}: the image {file!r} cannot be read: {size}")
        if all(size) and all(said) and size != tuple(said):
            turned = " They are exchanged, as a turn in the EXIF data does."
            hint = turned if size == tuple(said)[::-1] else ""
            raise ValueError(
                f"{source}: {file!r} has {size[0]} x {size[1]} pixels upright, and in the labels "
                f"{said[0]} x {said[1]}.{hint} Correct the labels, or take the image they are of."
            )


def _of_file(name: str) -> str:
    file = MetadataCatalog.get(name).get("json_file")
    return f" (of {file!r})" if file else ""

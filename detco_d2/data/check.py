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
        base = name
        while share_of := MetadataCatalog.get(base).get("share_of"):
            base = share_of
        if base not in DatasetCatalog.list():
            close = difflib.get_close_matches(base, DatasetCatalog.list(), n=3)
            raise ValueError(
                f"{key} names {base!r}, which is neither a registered data set nor an existing "
                "folder, FILE.json (COCO), FOLDER:SPLIT (VOC) or FILE.yaml:SPLIT (YOLO). Nearest "
                f"registered names: {close or 'none'}. As a path, {describe_folder(base)}."
            )
        metadata = MetadataCatalog.get(base)
        if str(metadata.get("evaluator_type")).startswith("cityscapes"):
            if absent := [m for m in ("cityscapesscripts", "shapely") if not find_spec(m)]:
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
    images: Sequence[dict[str, Any]], name: str, key: str, fields: Sequence[str] | None
) -> None:
    """Refuse labelled images that would fail, or count wrongly, in training or evaluation.

    Args:
        images: Detectron2's dicts of the data set `name`, which the config key `key` names.
        fields: what each box must have besides: "segmentation", "keypoints". None: no boxes.

    Raises:
        ValueError: an image or label map that is missing, cut, or of another size than the labels
            say; two images of one id; a box without a field; no box at all.
    """
    file = MetadataCatalog.get(name).get("json_file")
    source = f"{key} names {name!r}" + (f" (of {file!r})" if file else "")
    for field in ("file_name", "sem_seg_file_name"):
        having = [image for image in images if field in image]
        for image, size in zip(having, read_sizes([image[field] for image in having])):
            said = image.get("width", 0), image.get("height", 0)
            if isinstance(size, str):
                raise ValueError(f"{source}: the image {image[field]!r} cannot be read: {size}")
            if all(size) and all(said) and size != said:
                turned = " They are exchanged, as a turn in the EXIF data does."
                raise ValueError(
                    f"{source}: {image[field]!r} has {size[0]} x {size[1]} pixels upright, and in "
                    f"the labels {said[0]} x {said[1]}.{turned if size == said[::-1] else ''} "
                    "Correct the labels, or take the image that they are of."
                )
    ids: dict[Any, str] = {}
    found = 0
    for image in images:
        file = image["file_name"]
        if (other := ids.setdefault(image.get("image_id", file), file)) != file:
            raise ValueError(f"{source}: {other!r} and {file!r} have one id {image['image_id']!r}.")
        for box in image.get("annotations", []):
            if box.get("iscrowd", 0):
                continue
            found += 1
            if lacking := [field for field in fields or () if not box.get(field)]:
                raise ValueError(
                    f"{source}: the box {box['bbox']} of {file!r} has no {' and no '.join(lacking)}"
                    ", which this model learns. Add it, or take a config of boxes alone."
                )
    if fields is not None and not found:
        raise ValueError(
            f"{source}, {len(images)} images without a box that counts; give labelled data."
        )

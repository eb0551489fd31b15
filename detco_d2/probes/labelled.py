"""Labelled images for probes.

Of a folder of class folders: the whole image, its class. Of a detection data set, as "crops": the
inside of every box, its class; as "images": the whole image, which classes it contains (the VOC07
SVM task).
"""

import contextlib
import logging
import os
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image
from torchvision.transforms import functional as TF

from ..data.check import check_datasets
from ..data.datasets import list_images, register_by_name, seeded_subset
from ..data.decode import UnreadableImage
from ..data.images import read_image
from ..data.stream import pack_images

KINDS = ("crops", "images")
# What the halves of labelled folders are called, the test half by the first that is there.
_HALVES = (
    ("train", "training"),
    ("val", "valid", "validation", "dev"),
    ("test", "testing", "eval"),
)
_MIN_BOX = 16  # pixels of the shorter side of a box that becomes a crop
_TEST_SHARE = 0.25
_CONTEXT = 0.1  # of a box's longer side, on each side of a crop

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labelled:
    """Images, or parts of images, and their labels.

    Attributes:
        items: dicts of `file_name`, `kind` ("folder" or one of KINDS), and `box` (x0, y0, x1, y1).
        labels: class numbers of shape (N,); or, of shape (N, C), 1 where an image has a class, 0
            where it has not, -1 where that cannot be told.
        classes: their names.
    """

    items: Sequence[dict[str, Any]]
    labels: np.ndarray
    classes: list[str]

    def take(self, indices: Sequence[int] | np.ndarray) -> "Labelled":
        return replace(self, items=[self.items[i] for i in indices], labels=self.labels[indices])


class LabelledImages(torch.utils.data.Dataset):
    """Pairs of an item's number and its uint8 image of shape (3, S, S), or None if unreadable."""

    def __init__(self, labelled: Labelled, size: int) -> None:
        """
        Args:
            labelled: what to read.
            size: S. A folder's image is resized to 256/224 of it and cut to its centre.
        """
        self.items = pack_images(list(labelled.items))
        self.size = size
        self._decoded: tuple[str, Image.Image | None] = ("", None)  # its boxes come one by one

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor | None]:
        item = self.items[index]
        if self._decoded[0] != item["file_name"]:
            self._decoded = (item["file_name"], None)
            with contextlib.suppress(UnreadableImage):
                self._decoded = (item["file_name"], read_image(item))
        image = self._decoded[1]
        if image is None:
            return index, None
        if "box" in item:
            image = image.crop(_square(item["box"], image.size))
        if item["kind"] == "folder":
            image = TF.resize(image, round(self.size * 256 / 224))
            image = TF.center_crop(image, [self.size, self.size])
        else:
            image = TF.resize(image, [self.size, self.size])
        return index, torch.from_numpy(np.array(image).transpose(2, 0, 1).copy())


def _square(box: Sequence[float], size: tuple[int, int]) -> tuple[int, ...]:
    """A square around a box with some context, moved into the image; less where it is too small."""
    side = max(box[2] - box[0], box[3] - box[1]) * (1 + 2 * _CONTEXT)
    corners = []
    for low, high, length in zip(box[:2], box[2:], size):
        start = min(max((low + high - side) / 2, 0), max(length - side, 0))
        corners.append((round(start), min(round(start + side), length)))
    return (corners[0][0], corners[1][0], corners[0][1], corners[1][1])


def load_halves(
    data: str,
    test: str = "",
    *,
    kind: str = "crops",
    max_images: int = 0,
    seed: int = 0,
    key: str = "--data",
) -> tuple[Labelled, Labelled]:
    """What a probe trains on, and what it is tested on.

    Args:
        data: a folder of class folders, or of such folders in `train` and `val` (or `test`); a
            folder in VOC's layout; or a detection data set that :func:`register_by_name` knows.
        test: the same; by default the half that `data` brings, or else a quarter of its images.
        kind: "crops" or "images", of a detection data set.
        max_images: most items of each half; 0: all.
        seed: of what is drawn.
        key: what names `data`, for messages.

    Raises:
        ValueError: no labels, a single class, an unknown data set, a test half with other classes.
        FileNotFoundError: no such folder or file, or no image in it.
    """
    first, second = _find_halves(data)
    train = _read_half(first, kind, key)
    if test or second:
        tested = _read_half(test or second, kind, "--test" if test else key)
        tested = _with_classes(tested, train.classes, f"{test or second!r}", f"{first!r}")
    else:
        train, tested = _split_by_image(train, seed)
    if max_images:
        train, tested = (
            half.take(seeded_subset(range(len(half.items)), max_images, seed))
            for half in (train, tested)
        )
    labels = train.labels
    present = len(np.unique(labels)) if labels.ndim == 1 else (labels == 1).any(axis=0).sum()
    if present < 2 or not len(tested.items):
        raise ValueError(
            f"{key} {data!r} has {present} classes in {len(train.items)} training items, and "
            f"{len(tested.items)} test items; a probe needs two classes, and something to be "
            "tested on."
        )
    return train, tested


def _find_halves(data: str) -> tuple[str, str]:
    """The names of the training and the test half; the second is empty where there is none."""
    root = Path(data)
    lists = root / "ImageSets" / "Main"
    if lists.is_dir():
        return f"{data}:trainval", f"{data}:test" if (lists / "test.txt").is_file() else ""
    folders = {path.name.lower(): str(path) for path in root.glob("[!.]*") if path.is_dir()}
    trains, *tests = ([folders[n] for n in names if n in folders] for names in _HALVES)
    others = [path for found in tests for path in found]
    if trains and (others or len(folders) == 1):  # beside other classes, train is one of them
        return trains[0], others[0] if others else ""
    return data, ""


def _read_half(name: str, kind: str, key: str) -> Labelled:
    """All that has a label in one half; see :func:`load_halves`."""
    if os.path.isdir(name):
        return _read_folder(name, key)
    register_by_name([name])
    check_datasets([name], key)
    images, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
    if not any("annotations" in image for image in images):
        if metadata.get("image_root"):
            return _read_folder(metadata.image_root, key)  # ImageNet
        raise ValueError(f"{key} {name!r} has no labels: neither class folders nor boxes.")
    if kind == "images":
        return _read_contained(images, metadata)
    found = _read_crops(images, metadata, name)
    if not found.items:
        raise ValueError(
            f"{key} {name!r} has no box of {_MIN_BOX} pixels or more in {len(images)} images."
        )
    return found


def _read_folder(folder: str, key: str) -> Labelled:
    root = os.path.realpath(folder)
    files = [image["file_name"] for image in list_images(root)]
    parts = [Path(os.path.relpath(file, root)).parts for file in files]
    if loose := [file for file, names in zip(files, parts) if len(names) < 2]:
        raise ValueError(
            f"{key} {folder!r} has {len(loose)} of {len(files)} images outside of any class folder "
            f"(such as {loose[0]!r}); expected {os.path.join(folder, 'CLASS', 'IMAGE')}, the same "
            "below train/ and val/, or a detection data set."
        )
    classes = sorted({names[0] for names in parts})
    names_of_halves = {name for names in _HALVES for name in names}
    if halves := {n[0] for n in parts if len(n) > 2 and n[0].lower() in names_of_halves}:
        raise ValueError(
            f"{key} {folder!r} has folders in {', '.join(sorted(halves))}, which is the name of a "
            "half and not of a class; name a folder with train/ and val/, or one of the halves."
        )
    number = {name: i for i, name in enumerate(classes)}
    items = [{"file_name": file, "kind": "folder"} for file in files]
    return Labelled(items, np.array([number[names[0]] for names in parts]), classes)


def _boxes(image: dict[str, Any], metadata: Metadata) -> list[tuple[dict[str, Any], bool]]:
    """The boxes of an image, and whether each is unsure: a crowd, or "difficult" in VOC."""
    boxes = image.get("annotations", [])
    unsure = [bool(box.get("iscrowd", 0)) for box in boxes]
    if metadata.get("dirname"):  # Detectron2 does not keep what VOC says
        file = Path(metadata.dirname, "Annotations", f"{image['image_id']}.xml")
        objects = ElementTree.parse(file).iterfind("object")
        unsure = [element.findtext("difficult") == "1" for element in objects]
    return list(zip(boxes, unsure))


def _read_crops(images: list[Any], metadata: Metadata, name: str) -> Labelled:
    items: list[dict[str, Any]] = []
    labels: list[int] = []
    dropped: Counter = Counter()
    for image in images:
        for found, unsure in _boxes(image, metadata):
            box = BoxMode.convert(list(found["bbox"]), found["bbox_mode"], BoxMode.XYXY_ABS)
            if unsure or min(box[2] - box[0], box[3] - box[1]) < _MIN_BOX:
                dropped["unsure" if unsure else "small"] += 1
                continue
            items.append({"file_name": image["file_name"], "kind": "crops", "box": box})
            labels.append(found["category_id"])
    logger.info(
        f"{name}: {len(items)} boxes of {len(images)} images; left out: {dropped['unsure']} of "
        f"crowds or difficult, {dropped['small']} with a side below {_MIN_BOX} pixels"
    )
    return Labelled(items, np.array(labels), list(metadata.thing_classes))


def _read_contained(images: list[Any], metadata: Metadata) -> Labelled:
    classes = list(metadata.thing_classes)
    labels = np.zeros((len(images), len(classes)), np.int64)
    for row, image in zip(labels, images):
        for box, unsure in sorted(_boxes(image, metadata), key=lambda pair: not pair[1]):
            row[box["category_id"]] = -1 if unsure else 1  # those that are sure come last
    items = [{"file_name": image["file_name"], "kind": "images"} for image in images]
    return Labelled(items, labels, classes)


def _with_classes(labelled: Labelled, classes: list[str], name: str, other: str) -> Labelled:
    """The same with its classes numbered as another half has them."""
    if unknown := sorted(set(labelled.classes) - set(classes)):
        raise ValueError(f"{name} has classes that {other} has not: {', '.join(unknown[:5])}.")
    if labelled.classes == classes:
        return labelled
    numbers = np.array([classes.index(name) for name in labelled.classes])
    if labelled.labels.ndim == 1:
        return replace(labelled, labels=numbers[labelled.labels], classes=classes)
    labels = np.zeros((len(labelled.items), len(classes)), np.int64)
    labels[:, numbers] = labelled.labels
    return replace(labelled, labels=labels, classes=classes)


def _split_by_image(labelled: Labelled, seed: int) -> tuple[Labelled, Labelled]:
    """Hold out a quarter of the images, so that the crops of an image stay together."""
    files = sorted({item["file_name"] for item in labelled.items})
    tested = set(seeded_subset(files, round(_TEST_SHARE * len(files)), seed))
    is_test = np.array([item["file_name"] in tested for item in labelled.items])
    return labelled.take(np.flatnonzero(~is_test)), labelled.take(np.flatnonzero(is_test))

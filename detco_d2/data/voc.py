"""Read folders in PASCAL VOC's layout, as labelling tools write them.

Pixels count from 1 there, and the last is inside: (xmin, ymin, xmax, ymax) is, here and in
Detectron2, from (xmin - 1, ymin - 1) to (xmax, ymax). "Difficult" means `iscrowd`: not trained on,
and no mistake to find.
"""

import os
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from .folders import is_hidden, list_images
from .labels import Dicts, Labels, complete, naming, to_numbers
from .sizes import with_progress


def read_lines(file: Path) -> list[str]:
    """The lines of a text file that hold something, whatever system wrote it."""
    lines = map(str.strip, file.read_text(encoding="utf-8-sig", errors="replace").splitlines())
    return [line for line in lines if line]


def find_split(root: str, split: str) -> Path:
    """The list of a split, `ImageSets/Main/split.txt`, or else the folder of its name.

    Raises:
        FileNotFoundError: neither is there; names the lists that are.
    """
    listing, folder = Path(root, "ImageSets", "Main", f"{split}.txt"), Path(root, split)
    if listing.is_file():
        return listing
    if folder.is_dir():
        return folder
    there = sorted(file.stem for file in listing.parent.glob("[!.]*.txt"))
    raise FileNotFoundError(
        f"{root!r} is not in VOC's layout, or without that split: there is neither "
        f"{str(listing)!r} nor a folder {str(folder)!r} of images and XML files; lists: {there}."
    )


def read_voc(root: str, split: str) -> Labels:
    """Read one split; the classes are those of all XML files, of whatever split.

    Raises:
        ValueError, OSError: a file is missing or holds no labels; see :func:`find_split`.
    """
    root = os.path.realpath(root)
    found = find_split(root, split)
    below = (root, "Annotations", "JPEGImages") if found.is_file() else (root, split, split)
    top, pictures = Path(*below[:2]), Path(root, below[2])
    trees: dict[Path, ElementTree.Element] = {}
    files = sorted((top if found.is_file() else Path(root)).rglob("*.[xX][mM][lL]"))
    for file in with_progress(files, "Annotations"):
        if not is_hidden(file):
            with naming(file, "text"):
                trees[file] = ElementTree.parse(file).getroot()
    names = {name.text for tree in trees.values() for name in tree.iterfind("object/name")}
    classes = sorted(name for name in names if name)
    labels = {str(f.relative_to(top).with_suffix("")): f for f in trees if f.is_relative_to(top)}
    paths = [Path(image["file_name"]) for image in list_images(str(pictures))]
    images = {str(path.relative_to(pictures).with_suffix("")): path for path in paths}
    stems = [*labels, *images]
    if found.is_file():  # a line is a stem, or begins with one, or is a file's name
        ways = [(line, line.split()[0], Path(line).stem) for line in read_lines(found)]
        stems = [next((stem for stem in way if stem in labels), way[0]) for way in ways]
    if not (stems and labels):
        raise FileNotFoundError(f"{str(found)!r} names no image, or has no XML file of VOC's.")
    dicts: Dicts = []
    counts: Counter[str] = Counter()
    for stem in dict.fromkeys(stems):
        if stem not in labels and found.is_dir():
            dicts.append({"file_name": str(images[stem]), "annotations": []})
            counts["images without an XML file, as without objects"] += 1
            continue
        if stem not in labels or stem not in images:
            missing = top / f"{stem}.xml" if stem not in labels else pictures / f"{stem}.*"
            raise FileNotFoundError(f"{str(found)!r} has {stem!r}, and there is no {missing}.")
        tree = trees[labels[stem]]
        with naming(labels[stem], "size"):
            height, width = (
                int(float(tree.findtext(f"size/{side}") or 0)) for side in ("height", "width")
            )
        boxes = [_read_object(labels[stem], item, classes) for item in tree.iterfind("object")]
        record = {"file_name": str(images[stem]), "height": height, "width": width}
        dicts.append({**record, "annotations": boxes})
    return dicts, {"thing_classes": classes} | complete(dicts, f"{root}:{split}", counts)


def _read_object(file: Path, item: ElementTree.Element, classes: list[str]) -> dict[str, Any]:
    name = item.findtext("name")
    corners = [item.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    with naming(file, {"name": name, "bndbox": corners}):
        x0, y0, x1, y1 = to_numbers(corners, 4)
        return {
            "iscrowd": int((item.findtext("difficult") or "").strip().lower() in ("1", "true")),
            "category_id": classes.index(name or ""),
            "bbox": [x0 - 1, y0 - 1, x1, y1],
            "bbox_mode": BoxMode.XYXY_ABS,
        }

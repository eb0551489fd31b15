"""Read COCO's JSON as labelling tools write it: fields may be missing that follow from others.

`ignore` means `iscrowd`: not trained on, and no mistake to find. Ids of annotations do not matter.
"""

import itertools
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import pycocotools.mask as mask_util
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from .labels import Dicts, Labels, box_around, complete, naming, to_numbers


def read_coco(file: str, root: str = "") -> Labels:
    """Read a file of boxes, masks and keypoints, as Detectron2's own reader does.

    Args:
        root: folder of its images; by default where most are: beside it, in `images/`, in a folder
            of its name, or in such a folder beside the file's.

    Raises:
        ValueError, OSError: no such file, another format, or an entry that nothing completes.
    """
    try:
        with open(PathManager.get_local_path(file), encoding="utf-8-sig") as stream:
            content = json.load(stream)
    except ValueError as error:
        raise ValueError(f"{file!r} is no JSON: {error}") from error
    entries = content.items() if isinstance(content, dict) else ()
    lists = {key: value for key, value in entries if isinstance(value, list)}
    if not {"images", "categories"} <= lists.keys():
        raise ValueError(
            f"{file!r} is no COCO file: it needs the lists images, annotations and categories, "
            f"and has {list(lists)}."
        )
    with naming(file, lists["categories"]):
        categories = sorted(lists["categories"], key=lambda category: category["id"])
        numbers = {category["id"]: i for i, category in enumerate(categories)}
        classes = [str(category["name"]) for category in categories]
    images: dict[Any, dict[str, Any]] = {}
    for found in lists["images"]:
        with naming(file, found):
            if found["id"] in images:
                raise ValueError(f"{images[found['id']]['file_name']!r} has the same id")
            sides = {side: int(found.get(side) or 0) for side in ("height", "width")}
            images[found["id"]] = {
                "file_name": str(found["file_name"]),
                **sides,
                "image_id": found["id"],
                **({"annotations": []} if "annotations" in lists else {}),
            }
    counts: Counter = Counter()
    for found in lists.get("annotations", []):
        with naming(file, found):
            if found["image_id"] in images:
                label = _read_label(found, numbers, counts)
                images[found["image_id"]]["annotations"].append(label)
            else:
                counts["boxes of images that are not in the file left out"] += 1
    with naming(file, "ids of images"):
        dicts = [images[key] for key in sorted(images)]
    _find_images(dicts, file, root)
    metadata = {"thing_classes": classes, "thing_dataset_id_to_contiguous_id": numbers}
    points: Any = next((c["keypoints"] for c in categories if c.get("keypoints")), None)
    if points:
        twins = [(point, point.replace("left", "right")) for point in points if "left" in point]
        metadata["keypoint_names"] = points
        metadata["keypoint_flip_map"] = [pair for pair in twins if pair[1] in points]
    return dicts, metadata | complete(dicts, file, counts)


def _find_images(images: Dicts, file: str, root: str) -> None:
    """Complete the paths of images in the one way that is right for most of the first hundred."""
    beside, stem = Path(file).absolute().parent, Path(file).stem
    others = [beside.parent / name for name in ("images", stem, stem.rpartition("_")[2])]
    roots: list[Any] = [root] if root else [beside, beside / "images", beside / stem, *others]
    forms: list[Callable[[str], str]] = [str, lambda name: name.replace("\\", "/")]
    forms.append(lambda name: PureWindowsPath(name).name)  # of a path on another machine

    def place(way: tuple[Any, Callable[[str], str]], image: dict[str, Any]) -> str:
        return os.path.join(way[0], way[1](image["file_name"]))

    best = max(
        itertools.product(roots, forms),
        key=lambda way: sum(os.path.isfile(place(way, image)) for image in images[:100]),
    )
    for image in images:
        image["file_name"] = place(best, image)


def _read_label(found: dict[str, Any], numbers: dict[Any, int], counts: Counter) -> dict[str, Any]:
    label: dict[str, Any] = {
        "iscrowd": int(bool(found.get("iscrowd") or found.get("ignore"))),
        "category_id": numbers[found["category_id"]],
        "bbox_mode": BoxMode.XYWH_ABS,
    }
    mask: Any = found.get("segmentation")
    if isinstance(mask, dict):
        if isinstance(mask["counts"], list):
            mask = mask_util.frPyObjects(mask, *mask["size"])
            mask["counts"] = mask["counts"].decode()
    elif mask:
        polygons = mask if isinstance(mask[0], list) else [mask]
        usable = (points for points in polygons if len(points) % 2 == 0 and len(points) >= 6)
        mask = [to_numbers(points, len(points)) for points in usable]
        if not mask:
            counts["masks without a polygon of three points left out"] += 1
    if mask:
        label["segmentation"] = mask
    if points := found.get("keypoints"):  # of whole pixels, whose centres Detectron2 takes
        label["keypoints"] = [v + 0.5 * (i % 3 != 2) for i, v in enumerate(points)]
    if found.get("bbox"):
        label["bbox"] = to_numbers(found["bbox"], 4)
    elif mask:
        is_rle = isinstance(mask, dict)
        label["bbox"] = mask_util.toBbox(mask).tolist() if is_rle else box_around(mask)
        counts["boxes made from masks"] += 1
    else:
        raise ValueError("there is neither a bbox nor a segmentation")
    if found.get("area") is not None:
        label["area"] = found["area"]
    return label

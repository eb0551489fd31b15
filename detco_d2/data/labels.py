"""What is common to labels of all formats: their boxes, and COCO's content for the evaluator.

- Pixels are counted from the image's left and upper edge, and decimals are kept.
- A box may stick out of its image by a pixel. What sticks out further is cut at the edge, and one
  of which less than half lies inside is refused. One without width or height is left out.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.structures import BoxMode

from .sizes import read_sizes

Dicts = list[dict[str, Any]]
# Detectron2's dicts, and what the metadata of their data set says: `thing_classes`, and of COCO's
# format `thing_dataset_id_to_contiguous_id`.
Labels = tuple[Dicts, dict[str, Any]]


@contextmanager
def naming(file: str | Path, entry: Any) -> Iterator[None]:
    """Turn what goes wrong while an entry of a file is read into a sentence that shows both."""
    try:
        yield
    except Exception as error:  # as many kinds as there are wrong entries
        reason = f"there is no {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{str(file)!r} has {entry!r:.300}, which cannot be used: {reason}"
        ) from error


def to_numbers(values: Iterable[Any], count: int) -> list[float]:
    """Floats, since Detectron2 resizes whole numbers to whole numbers."""
    numbers = [float(value) for value in values]
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"expected {count} numbers")
    return numbers


def box_around(polygons: list[list[float]]) -> list[float]:
    """Left, top, width and height of the box around polygons."""
    xs, ys = ([v for points in polygons for v in points[start::2]] for start in (0, 1))
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def to_xywh(label: dict[str, Any]) -> list[float]:
    """Left, top, width and height of an annotation's box."""
    if label["bbox_mode"] == BoxMode.XYXY_ABS:  # in Python's precision, which BoxMode does not keep
        x0, y0, x1, y1 = map(float, label["bbox"])
        return [x0, y0, x1 - x0, y1 - y0]
    return BoxMode.convert(list(map(float, label["bbox"])), label["bbox_mode"], BoxMode.XYWH_ABS)


def complete(images: Dicts, source: str, counts: Counter | None = None) -> dict[str, str]:
    """Add ids and sizes that are missing and apply the rules for boxes, in place.

    Returns:
        metadata: `changes` says in one line what was changed, here and before, as `counts` has it.

    Raises:
        ValueError: a box that is not inside of its image, or boxes that are shares of it.
    """
    counts = Counter() if counts is None else counts
    unsized = [image for image in images if not (image.get("width") and image.get("height"))]
    for image, size in zip(unsized, read_sizes([image["file_name"] for image in unsized])):
        if isinstance(size, tuple):  # otherwise training will refuse it
            image["width"], image["height"] = size
            counts["sizes of images taken from their files"] += 1
    furthest = 0.0
    for number, image in enumerate(images, 1):
        image.setdefault("image_id", number)
        if "annotations" not in image:
            continue
        kept = []
        for label in image["annotations"]:
            x, y, w, h = to_xywh(label)
            furthest = max(furthest, x + w, y + h)
            if w <= 0 or h <= 0:
                counts["boxes without width or height left out"] += 1
                continue
            width, height = image.get("width", 0), image.get("height", 0)
            mask: Any = label.get("segmentation")
            sides = list(mask.get("size", ())) if isinstance(mask, dict) else [height, width]
            if width and sides != [height, width]:
                raise ValueError(
                    f"{source!r}: {image['file_name']!r} is {height} high and {width} wide, and a "
                    f"mask of it has the size {sides}."
                )
            if width and max(-x, -y, x + w - width, y + h - height) > 1:
                x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
                if max(x1 - x0, 0) * max(y1 - y0, 0) < w * h / 2:
                    raise ValueError(
                        f"{source!r}: less than half of the box [x {x:g}, y {y:g}, width {w:g}, "
                        f"height {h:g}] lies in {image['file_name']!r}, of {width} x {height} "
                        "pixels. Correct the box, or the size that the labels give."
                    )
                label.update(bbox=[x0, y0, x1, y1], bbox_mode=BoxMode.XYXY_ABS)
                if "segmentation" not in label:
                    label.pop("area", None)
                counts["boxes cut at the edge of their image"] += 1
            kept.append(label)
        image["annotations"] = kept
    if 0 < furthest <= 1:
        raise ValueError(f"{source!r} has no box beyond 1: these are shares, where pixels belong.")
    return {"changes": ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))}


def coco_content(name: str) -> dict[str, Any]:
    """What a COCO file of a data set holds: annotations with ids from 1, areas and `iscrowd`.

    Boxes and areas are as they were read, which Detectron2 rounds. An area that was not given is
    that of the mask, or else of the box.
    """
    content = convert_to_coco_dict(name)
    found = (label for image in DatasetCatalog.get(name) for label in image.get("annotations", []))
    for written, label in zip(content.get("annotations", []), found):
        written["bbox"] = to_xywh(label)
        if "area" in label or "segmentation" not in label:
            written["area"] = label.get("area", written["bbox"][2] * written["bbox"][3])
    return content

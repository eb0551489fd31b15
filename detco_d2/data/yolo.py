"""Read what a YOLO `data.yaml` names.

A line of a label file is a class with a box (centre and size) or with a polygon, in shares of the
image. They become pixels, rounded to hundredths, so that whole pixels come back.
"""

import itertools
import os
from pathlib import Path
from typing import Any

import yaml
from detectron2.structures import BoxMode

from .folders import list_images
from .labels import Labels, box_around, complete, naming, to_numbers
from .sizes import read_sizes, with_progress
from .voc import read_lines


def read_yolo(file: str, split: str) -> Labels:
    """Read a split: a folder of images, a list of them, or several of these.

    Labels are in `labels` where images are in `images`, or else beside them. An image without a
    label file has no objects.

    Raises:
        ValueError, OSError: no such split, a line that is no label.
    """
    try:
        with open(file, encoding="utf-8-sig") as stream:
            content = yaml.safe_load(stream)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file!r} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not content.get(split):
        there = list(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{file!r} has no {split!r}; it has {there}.")
    with naming(file, {key: content.get(key) for key in ("names", "nc")}):
        names = content.get("names") or range(int(content["nc"]))
        classes = [str(names[number]) for number in range(len(names))]
        if int(content.get("nc") or len(classes)) != len(classes):
            raise ValueError(f"nc is {content['nc']}, for {len(classes)} names")
    beside, path = Path(file).absolute().parent, content.get("path") or ""
    with naming(file, {split: content[split]}):
        files = _find_images(beside, path, content[split])
    images = []
    for image, size in zip(with_progress(files, "Label files"), read_sizes(files)):
        # an image that cannot be read is refused before training, and replaced in pretraining
        width, height = size if isinstance(size, tuple) else (0, 0)
        labels = _label_file(image)
        boxes = [
            _read_line(labels, line, classes, (width, height), "kpt_shape" in content)
            for line in (read_lines(labels) if width and labels.is_file() else [])
        ]
        record = {"file_name": image, "height": height, "width": width}
        images.append({**record, "annotations": boxes})
    return images, {"thing_classes": classes} | complete(images, f"{file}:{split}")


def _find_images(beside: Path, path: str, places: Any) -> list[str]:
    files: list[str] = []
    roots = [beside / os.path.expanduser(path), beside]
    for place in places if isinstance(places, list) else [places]:
        # exporters write `../train/images` for what is beside the file
        tried = [root / p for root in roots for p in (place, place.removeprefix("../"))]
        found = next((path for path in tried if path.exists()), tried[0])
        if found.suffix != ".txt":
            files += [image["file_name"] for image in list_images(str(found))]
            continue
        for line in read_lines(found):
            options = [root / line for root in (found.parent, *roots)]
            files.append(str(next((path for path in options if path.exists()), options[0])))
    return list(dict.fromkeys(files))


def _label_file(image: str) -> Path:
    head, folder, tail = image.rpartition("/images/")
    return Path(f"{head}/labels/{tail}" if folder else image).with_suffix(".txt")


def _read_line(
    file: Path, line: str, classes: list[str], size: tuple[int, int], has_keypoints: bool
) -> dict[str, Any]:
    with naming(file, line):
        words = line.split()[: 5 if has_keypoints else None]
        number, *values = to_numbers(words, len(words))
        if number not in range(len(classes)):
            raise ValueError(f"the class must be one of 0 to {len(classes) - 1}")
        label = {"iscrowd": 0, "category_id": int(number), "bbox_mode": BoxMode.XYWH_ABS}
        pixels = [v * side for v, side in zip(values, itertools.cycle(size))]
        if len(values) == 4:
            x, y, w, h = pixels
            return {**label, "bbox": [round(v, 2) for v in (x - w / 2, y - h / 2, w, h)]}
        if len(values) < 6 or len(values) % 2:
            raise ValueError("expected a class and 4 numbers, or a class and 3 points or more")
        polygon = [[round(v, 2) for v in pixels]]
        return {**label, "bbox": box_around(polygon), "segmentation": polygon}

"""A few images with integer boxes, as labelling tools export them: COCO's, VOC's, YOLO's format."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BitMasks, Boxes, Instances
from PIL import Image

from detco_d2.data.labels import to_xywh
from detco_d2.engine.transfer import build_evaluator

from .conftest import load_config
from .layouts import write_text

SIZE = WIDTH, HEIGHT = 96, 80
CLASSES = ("cat", "dog", "emu")
Change = Callable[[dict[str, Any]], Any]


def draw_boxes(seed: int = 0, images: int = 6) -> list[list[tuple[int, ...]]]:
    """Of each image the (class, x0, y0, x1, y1) of three boxes."""
    rng = np.random.default_rng(seed)
    low = rng.integers(0, (50, 40), (images, 3, 2))
    high = low + rng.integers(20, 40, (images, 3, 2))
    return [[(c, *map(int, (*a, *b))) for c, a, b in zip(range(3), *x)] for x in zip(low, high)]


def write_image(file: Path, seed: int = 0, **options: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(file, **options)


def write_coco(root: Path, change: Change = lambda content: None, boxes: Any = None) -> str:
    """`root/train.json` and `root/train/`, once `change` has edited the content."""
    images, labels = [], []
    for i, found in enumerate(boxes or draw_boxes()):
        write_image(root / "train" / f"{i}.png", i)
        images.append({"id": i + 1, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT})
        for number, x0, y0, x1, y1 in found:
            label = {"id": len(labels) + 1, "image_id": i + 1, "category_id": 3 * number + 1}
            label |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
            polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
            labels.append({**label, "iscrowd": 0, "segmentation": [polygon]})
    kinds = [{"id": 3 * i + 1, "name": name} for i, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": labels, "categories": kinds}
    change(content)
    return write_text(root / "train.json", json.dumps(content))


def voc_xml(boxes: Any, tags: str = "", size: tuple[int, int] = SIZE) -> str:
    objects = "".join(
        f"<object><name>{CLASSES[c]}</name>{tags}<bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for c, x0, y0, x1, y1 in boxes
    )
    shape = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation>{shape}{objects}</annotation>"


def write_voc(root: Path, stems: Any = range(6), ending: str = ".png", line: str = "{}\n") -> str:
    for i, (stem, boxes) in enumerate(zip(stems, draw_boxes())):
        write_image(root / "JPEGImages" / f"{stem}{ending}", i)
        write_text(root / "Annotations" / f"{stem}.xml", voc_xml(boxes))
    text = "".join(line.format(stem) for stem in stems)
    return write_text(root / "ImageSets/Main/train.txt", text) and f"{root}:train"


def yolo_lines(boxes: Any) -> str:
    """Six decimals, as most tools write."""
    return "".join(
        f"{c} {(x0 + x1) / 2 / WIDTH:.6f} {(y0 + y1) / 2 / HEIGHT:.6f} "
        f"{(x1 - x0) / WIDTH:.6f} {(y1 - y0) / HEIGHT:.6f}\n"
        for c, x0, y0, x1, y1 in boxes
    )


def write_yolo(root: Path, text: str = "train: images\nnames: [cat, dog, emu]\n") -> str:
    for i, boxes in enumerate(draw_boxes()):
        write_image(root / "images" / f"{i}.png", i)
        write_text(root / "labels" / f"{i}.txt", yolo_lines(boxes))
    return f"{write_text(root / 'data.yaml', text)}:train"


def score(name: str, output: Path, shift: float = 0, masks: bool = False) -> dict[str, Any]:
    """The evaluator's scores of the labels themselves, each moved by up to `shift` pixels."""
    images = DatasetCatalog.get(name)
    evaluator = build_evaluator(load_config("detco.yaml", "OUTPUT_DIR", str(output)), name)
    evaluator.reset()
    rng = np.random.default_rng(0)
    for image in images:
        labels = image["annotations"]
        seen = Instances((image["height"], image["width"]))
        boxes = [(x, y, x + w, y + h) for x, y, w, h in map(to_xywh, labels)]
        moved = np.array(boxes).reshape(-1, 4) + shift * rng.uniform(-1, 1, (len(boxes), 4))
        seen.pred_boxes = Boxes(torch.tensor(moved))
        seen.pred_classes = torch.tensor([label["category_id"] for label in labels])
        seen.scores = torch.tensor(rng.uniform(0.5, 1, len(boxes)))
        if masks:
            polygons = [label["segmentation"] for label in labels]
            seen.pred_masks = BitMasks.from_polygon_masks(polygons, *seen.image_size).tensor
        evaluator.process([image], [{"instances": seen}])
    return evaluator.evaluate()

#!/usr/bin/env python
"""Run a fine-tuned detector on images: boxes as COCO's results, and as pictures.

python tools/predict.py output/finetune /my/photos
python tools/predict.py output/finetune/model_final.pth cat.jpg /data/mine/test.json --threshold 0.7

The first argument is a folder of train_net.py (its newest checkpoint counts), or a checkpoint in
it. Images are files, folders, and whatever DATASETS.TEST may name. Writes predictions/ into the
run's folder: results.json, a list of COCO results; images.json, the images and categories that
they mean, in COCO's format; pictures/. Images that cannot be read are listed in skipped.txt. A GPU
is used where there is one.
"""

import argparse
import itertools
import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils.logger import setup_logger
from detectron2.utils.visualizer import Visualizer
from PIL import Image
from tqdm import tqdm

from detco_d2.data.check import check_datasets
from detco_d2.data.datasets import register_by_name
from detco_d2.data.decode import EXTENSIONS, UnreadableImage
from detco_d2.data.images import read_image
from detco_d2.engine.launch import ends_with_one_line, tool_parser
from detco_d2.files import at_home, replacing
from detco_d2.reports.detections import Detector

logger = logging.getLogger("detco_d2.predict")


def find_images(names: list[str]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Dicts with `file_name` and a unique `image_id`; and the ids of the data's categories by name,
    where a single data set is named that has such ids.
    """
    images: list[dict[str, Any]] = []
    for name in names:
        if os.path.isfile(name) and name.lower().endswith(EXTENSIONS):
            images.append({"file_name": name})
            continue
        register_by_name([name])
        check_datasets([name], "The command line")
        images += [dict(image) for image in DatasetCatalog.get(name)]
    if len(names) > 1 or any("image_id" not in image for image in images):
        for i, image in enumerate(images):
            image["image_id"] = i + 1
    data = MetadataCatalog.get(names[0]).as_dict() if len(names) == 1 else {}
    numbers = data.get("thing_dataset_id_to_contiguous_id", {})
    return images, {data["thing_classes"][number]: key for key, number in numbers.items()}


def predict(args: argparse.Namespace) -> None:
    detector = Detector(args.run)
    images, ids = find_images(args.images)
    output = args.output or Path(detector.folder, "predictions")
    (output / "pictures").mkdir(parents=True, exist_ok=True)
    metadata = Metadata(thing_classes=detector.classes)
    results: list[dict[str, Any]] = []
    read: list[dict[str, Any]] = []
    skipped: list[str] = []
    for image in tqdm(images, unit="image"):
        try:
            pixels = np.asarray(read_image(image))
        except UnreadableImage as error:
            skipped.append(json.dumps({"file_name": image["file_name"], "reason": error.reason}))
            continue
        found = detector(pixels)
        found = found[found.scores >= args.threshold]
        results += instances_to_coco_json(found, image["image_id"])
        if len(read) < args.pictures:
            drawn = Visualizer(pixels, metadata).draw_instance_predictions(found)
            name = re.sub(r"[^\w.-]", "_", f"{image['image_id']}_{Path(image['file_name']).stem}")
            name = name.encode()[:200].decode(errors="ignore")  # as long as a system takes
            Image.fromarray(drawn.get_image()).save(output / "pictures" / f"{name}.jpg")
        height, width = pixels.shape[:2]
        read.append({"id": image["image_id"], "file_name": image["file_name"]})
        read[-1].update(height=height, width=width)
    names = list(detector.classes or ids)  # which are not said by a detector of another program
    names += map(str, range(len(names), max([0, *(r["category_id"] + 1 for r in results)])))
    numbers = (key for key in ids.values() if isinstance(key, int))  # others may be words
    free = itertools.count(1 + max(numbers, default=0))  # for what the data has not
    categories = [{"id": ids[name] if name in ids else next(free), "name": name} for name in names]
    for result in results:
        result["category_id"] = categories[result["category_id"]]["id"]
    for name, content in (
        ("results.json", json.dumps(results)),
        ("images.json", json.dumps({"images": read, "categories": categories})),
        ("skipped.txt", "".join(f"{line}\n" for line in skipped)),
    ):
        with replacing(output / name) as part:
            part.write_text(content)
    device = torch.device(detector.cfg.MODEL.DEVICE).type
    logger.info("%d boxes in %d images (%s): %s", len(results), len(read), device, output)
    if skipped:
        logger.warning("%d images cannot be read: %s", len(skipped), output / "skipped.txt")


@ends_with_one_line("predict")
def main() -> None:
    parser = tool_parser(__doc__)
    add = parser.add_argument
    add("run", help="folder of train_net.py, or a checkpoint in it")
    add("images", nargs="+", help="files, folders or data sets")
    add("--threshold", type=float, default=0.5, help="least score of a box")
    add("--pictures", type=int, default=100, help="draw at most so many images")
    add("--output", type=Path, help="folder; default: predictions/ in the run's")
    args = parser.parse_args(at_home(sys.argv[1:]))
    setup_logger(name="detco_d2", abbrev_name="detco")
    predict(args)


if __name__ == "__main__":
    main()

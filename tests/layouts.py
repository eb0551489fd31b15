"""Rendered scenes in the layouts of COCO, PASCAL VOC and Cityscapes.

Detectron2's built-in data sets (coco_2017_train, voc_2007_test, ...) read them like the downloads.

Classes take turns over the objects of a split, whatever an object looks like: a detector can learn
from these files where objects are, but not which class they have. Images hold at least one object:
a split of as many images as classes has every class, one of 2.5 * classes / MAX_OBJECTS usually.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
from detectron2.data.datasets import builtin_meta
from detectron2.data.datasets.pascal_voc import CLASS_NAMES as VOC_CLASSES

from detco_d2.data.synthetic import draw_scenes, write_coco_annotations

MAX_OBJECTS = 16  # of an image
Size = tuple[int, int]  # height and width in pixels
Objects = list[dict[str, Any]]  # annotations as of render_scene


def _draw(files: list[Path], key: str, seed: int, size: Size, labels: list[Any]) -> list[Objects]:
    """Scenes in whose annotations the labels take turns as `category_id`."""
    turn = itertools.cycle(labels)
    scenes = draw_scenes(files, key, seed, size, MAX_OBJECTS)
    return [[{**found, "category_id": next(turn)} for found in objects] for objects in scenes]


def _as_person(found: dict[str, Any], size: Size) -> dict[str, Any]:
    """The object as a person, whose keypoints lie in the mask from its top to its bottom."""
    mask = mask_util.decode(mask_util.frPyObjects(found["segmentation"], *size))[..., 0]
    pixels, count = np.argwhere(mask), len(builtin_meta.COCO_PERSON_KEYPOINT_NAMES)
    chosen = pixels[np.linspace(0, len(pixels) - 1, count).astype(int), ::-1]
    keypoints = np.insert(chosen, 2, 2, axis=1).reshape(-1).tolist()  # x, y, and 2: visible
    return {**found, "category_id": 1, "keypoints": keypoints, "num_keypoints": count}


def write_text(file: Path, text: str) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return str(file)


def write_coco(root: str, num_images: int, seed: int, size: Size) -> None:
    """Write `root/coco`, with 80 classes of objects, all of which are people for the keypoints.

    Args:
        root: created if missing; the folder to name in DETECTRON2_DATASETS.
        num_images: in each of the splits, train2017 and val2017.
        seed: the files are a function of it and of the split.
        size: height and width in pixels; in smaller images few people are of COCO's medium size.
    """
    things = [category for category in builtin_meta.COCO_CATEGORIES if category["isthing"]]
    number = {name: i + 1 for i, name in enumerate(builtin_meta.COCO_PERSON_KEYPOINT_NAMES)}
    skeleton = [[number[a], number[b]] for a, b, _ in builtin_meta.KEYPOINT_CONNECTION_RULES]
    person = {**things[0], "keypoints": list(number), "skeleton": skeleton}
    ids, names = [c["id"] for c in things], [f"{i + 1:012d}.jpg" for i in range(num_images)]
    for split in ("train2017", "val2017"):
        files = [Path(root, "coco", split, name) for name in names]
        scenes = _draw(files, f"coco/{split}", seed, size, ids)
        people = [[_as_person(found, size) for found in objects] for objects in scenes]
        folder, end = Path(root, "coco", "annotations"), f"{split}.json"
        write_coco_annotations(folder / f"instances_{end}", names, size, scenes, things)
        write_coco_annotations(folder / f"person_keypoints_{end}", names, size, people, [person])


def voc_annotation(name: str, size: Size, objects: Objects) -> str:
    """VOC's XML, whose boxes count pixels from 1 and include their last."""
    boxes = "".join(
        f"<object><name>{label}</name><pose>Unspecified</pose><truncated>0</truncated>"
        f"<difficult>0</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>\n"
        for label, (x, y, w, h) in ((found["category_id"], found["bbox"]) for found in objects)
    )
    shape = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}.jpg</filename>{shape}\n{boxes}</annotation>\n"


def write_voc(root: str, num_images: int, seed: int, size: Size) -> None:
    """Write `root/VOC2007` (trainval, test) and `root/VOC2012` (trainval), with 20 classes.

    The arguments are those of :func:`write_coco`; Detectron2 cannot read a split of one image.
    """
    splits = (("VOC2007", "trainval", "0"), ("VOC2007", "test", "1"), ("VOC2012", "trainval", "2"))
    for folder, split, prefix in splits:  # of the names, since the splits of a year share folders
        voc, names = Path(root, folder), [f"{prefix}{i + 1:05d}" for i in range(num_images)]
        files = [voc / "JPEGImages" / f"{name}.jpg" for name in names]
        scenes = _draw(files, f"{folder}/{split}", seed, size, list(VOC_CLASSES))
        write_text(voc / "ImageSets" / "Main" / f"{split}.txt", "\n".join([*names, ""]))
        for name, objects in zip(names, scenes):
            write_text(voc / "Annotations" / f"{name}.xml", voc_annotation(name, size, objects))


def _cityscapes(size: Size, objects: Objects, stuff: list[str]) -> dict[str, Any]:
    """Cityscapes' polygons in painting order: bands of stuff, the own car below, the objects."""
    height, width = size
    edges = np.linspace(0, width, len(stuff) + 1).astype(int).tolist()
    boxes = [(label, x0, 0, x1 - 1) for label, x0, x1 in zip(stuff, edges, edges[1:])]
    polygons = [
        {"label": label, "polygon": [[x0, y0], [x1, y0], [x1, height - 1], [x0, height - 1]]}
        for label, x0, y0, x1 in [*boxes, ("ego vehicle", 0, height - height // 12, width - 1)]
    ]
    for found in objects:  # COCO's x counts from a pixel's left edge, Cityscapes' from its centre
        corners = np.rint(np.reshape(found["segmentation"][0], (-1, 2)) - 0.5).astype(int)
        polygons.append({"label": found["category_id"], "polygon": corners.tolist()})
    return {"imgHeight": height, "imgWidth": width, "objects": polygons}


def write_cityscapes(root: str, num_images: int, seed: int, size: Size) -> None:
    """Write `root/cityscapes` with 8 classes of objects before vertical bands of 11 of stuff.

    The arguments are those of :func:`write_coco`. As in the download, the labels by training id are
    missing (see :func:`make_train_id_files`). Corners are whole pixels, as Cityscapes' are, so that
    an edge may lie a pixel beside what was painted. Its evaluation leaves out objects of less than
    100 pixels, which images of 120 x 120 or more do not have.
    """
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.helpers.labels import labels  # not needed for the other layouts
    from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
    from cityscapesscripts.preparation.json2labelImg import createLabelImage

    trained = [label for label in labels if not label.ignoreInEval]
    things, stuff = ([x.name for x in trained if x.hasInstances == y] for y in (True, False))
    for split, cities in (("train", ("aachen", "bochum")), ("val", ("frankfurt", "lindau"))):
        stems = [f"{c}/{c}_{i:06d}_000019" for i, c in zip(range(num_images), cities * num_images)]
        images, truth = (Path(root, "cityscapes", x, split) for x in ("leftImg8bit", "gtFine"))
        files = [images / f"{stem}_leftImg8bit.png" for stem in stems]
        scenes = _draw(files, f"cityscapes/{split}", seed, size, things)
        for stem, objects in zip(stems, scenes):
            base, annotation = str(truth / f"{stem}_gtFine"), Annotation()
            text = json.dumps(_cityscapes(size, objects, stuff))
            write_text(Path(f"{base}_polygons.json"), text)
            annotation.fromJsonText(text)
            instances = np.asarray(createInstanceImage(annotation, "ids")).astype(np.uint16)
            cv2.imwrite(f"{base}_instanceIds.png", instances)  # Pillow 13 cannot write its mode
            cv2.imwrite(f"{base}_labelIds.png", np.asarray(createLabelImage(annotation, "ids")))

"""Scenes of textured objects with exact boxes and masks, drawn from a seed, in COCO's format."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances

CLASSES = ("disc", "square", "triangle", "star")  # each with a texture of its own


def _outline(category: int) -> np.ndarray:
    """The corners of a class's shape of radius 1 around the origin, of shape (n, 2)."""
    corners = (48, 4, 3, 10)[category]
    angles = np.arange(corners) * 2 * np.pi / corners
    is_star = CLASSES[category] == "star"
    radii = np.where(np.arange(corners) % 2, 0.45, 1.0) if is_star else np.ones(corners)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _texture(rng: np.random.Generator, height: int, width: int, kind: int) -> np.ndarray:
    """Two random colours mixed by stripes, checks, dots or smooth noise; (H, W, 3), 0..255."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 20)
    u = (x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period + rng.uniform(0, 6)
    v = (y * np.cos(angle) - x * np.sin(angle)) * 2 * np.pi / period + rng.uniform(0, 6)
    if kind == 3:
        noise = rng.standard_normal((height, width)).astype(np.float32)
        field = cv2.GaussianBlur(noise, (0, 0), period / 3) * period
    else:
        field = (np.sin(u), np.sin(u) * np.sin(v), np.cos(u) + np.cos(v) - 1)[kind]
    mix = 1 / (1 + np.exp(-4 * field))[..., None]
    first, second = rng.uniform(20, 235, (2, 3))
    return first * mix + second * (1 - mix)


def render_scene(
    rng: np.random.Generator, height: int, width: int, max_objects: int = 10
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Draw one scene of objects that do not overlap.

    Returns:
        an RGB image of shape (H, W, 3), uint8, and COCO annotations without ids: `category_id`
        (1-based), `bbox` (x, y, w, h of the mask's pixels), `segmentation` (the polygon that was
        drawn; it decodes to exactly the painted pixels), `area`, `iscrowd`.
    """
    image = _texture(rng, height, width, int(rng.integers(len(CLASSES)))) * 0.5 + 64
    free = np.ones((height, width), bool)
    annotations: list[dict[str, Any]] = []
    wanted = int(rng.integers(1, max_objects + 1))
    for _ in range(20 * wanted):
        if len(annotations) == wanted:
            break
        category = int(rng.integers(len(CLASSES)))
        radius, turn = min(height, width) * rng.uniform(0.08, 0.18), rng.uniform(0, 2 * np.pi)
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        centre = rng.uniform(radius + 1, [width - radius - 1, height - radius - 1])
        polygon = (_outline(category) * radius) @ rotation.T + centre
        flat = [round(float(value), 2) for value in polygon.reshape(-1)]
        mask = mask_util.decode(mask_util.frPyObjects([flat], height, width))[..., 0].astype(bool)
        if not free[mask].all():
            continue
        free &= ~mask
        image[mask] = _texture(rng, height, width, category)[mask]
        annotations.append(
            {
                "category_id": category + 1,
                "bbox": list(cv2.boundingRect(mask.astype(np.uint8))),
                "segmentation": [flat],
                "area": int(mask.sum()),
                "iscrowd": 0,
            }
        )
    image += rng.normal(0, 6, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), annotations


def draw_scenes(
    files: Sequence[Path], split: str, seed: int, size: tuple[int, int], max_objects: int = 10
) -> list[list[dict[str, Any]]]:
    """Draw a scene into each .jpg or .png file, and return the annotations of each scene."""
    scenes = []
    for i, file in enumerate(files):
        rng = np.random.default_rng([seed, i, *split.encode()])
        image, objects = render_scene(rng, *size, max_objects)
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), image[:, :, ::-1])
        scenes.append(objects)
    return scenes


def write_coco_annotations(
    file: Path,
    names: Sequence[str],
    size: tuple[int, int],
    scenes: Sequence[Sequence[dict[str, Any]]],
    categories: Sequence[dict[str, Any]],
) -> None:
    """Write an annotation file in COCO's format, with images and annotations numbered from 1."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, (name, objects) in enumerate(zip(names, scenes)):
        images.append({"id": i + 1, "file_name": name, "height": size[0], "width": size[1]})
        for found in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": i + 1, **found})
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": list(categories)}
    file.write_text(json.dumps({"info": {}, "licenses": [], **content}))


def write_scenes(
    root: str, split: str, num_images: int, seed: int, size: tuple[int, int] = (240, 320)
) -> None:
    """Write `root/split/*.jpg` and `root/annotations/instances_split.json`."""
    names = [f"{i:06d}.jpg" for i in range(num_images)]
    scenes = draw_scenes([Path(root, split, name) for name in names], split, seed, size)
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    file = Path(root, "annotations", f"instances_{split}.json")
    write_coco_annotations(file, names, size, scenes, categories)


def register_scenes(root: str, split: str) -> str:
    """Register what :func:`write_scenes` wrote; returns the data set's name."""
    name = f"scenes_{split}@{root}"
    if name not in DatasetCatalog.list():
        annotations = str(Path(root, "annotations", f"instances_{split}.json"))
        register_coco_instances(name, {}, annotations, str(Path(root, split)))
    return name

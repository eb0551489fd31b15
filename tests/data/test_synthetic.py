"""Rendered scenes: exact, and the same from the same seed."""

import json
import os

import numpy as np
import pycocotools.mask as mask_util

from detco_d2.data.synthetic import CLASSES, render_scene, write_scenes


def test_boxes_and_masks_are_those_of_the_painted_pixels_which_look_other_than_the_rest():
    differences = []
    for seed in range(10):
        image, objects = render_scene(np.random.default_rng(seed), 96, 128)
        assert image.shape == (96, 128, 3) and image.dtype == np.uint8
        assert objects
        taken = np.zeros((96, 128), int)
        for found in objects:
            rle = mask_util.frPyObjects(found["segmentation"], 96, 128)
            mask = mask_util.decode(rle)[..., 0].astype(bool)
            ys, xs = np.nonzero(mask)
            x, y, w, h = found["bbox"]
            assert (x, y, x + w - 1, y + h - 1) == (xs.min(), ys.min(), xs.max(), ys.max())
            assert found["area"] == mask.sum() > 20
            taken += mask
            differences.append(np.abs(image[mask].mean(0) - image[~mask].mean(0)).max())
        assert taken.max() == 1  # no object hides another
    assert np.median(differences) > 20


def test_files_follow_from_seed_and_split(tmp_path):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_scenes(str(tmp_path / folder), "train", 3, seed, size=(64, 64))
    a, b, c = ((tmp_path / f"{f}/annotations/instances_train.json").read_text() for f in "abc")
    assert a == b != c
    parsed = json.loads(a)
    assert [c["name"] for c in parsed["categories"]] == list(CLASSES)
    assert len({a["id"] for a in parsed["annotations"]}) == len(parsed["annotations"])
    names = [image["file_name"] for image in parsed["images"]]
    assert sorted(os.listdir(tmp_path / "a" / "train")) == names

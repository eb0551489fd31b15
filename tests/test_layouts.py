"""Detectron2's own loaders read the layouts, and find in them what was painted."""

import hashlib
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from cityscapesscripts.helpers.labels import id2label, labels
from cityscapesscripts.preparation.json2labelImg import json2labelImg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from detco_d2.data.cityscapes import make_train_id_files
from detco_d2.data.synthetic import draw_scenes

from .layouts import write_cityscapes, write_coco, write_voc

TRAINED = [label for label in labels if not label.ignoreInEval]
DATA_SETS = [
    *[(f"coco_2017_{split}", 16) for split in ("train", "val")],
    *[(f"keypoints_coco_2017_{split}", 16) for split in ("train", "val")],
    *[(f"voc_{split}", 12) for split in ("2007_trainval", "2007_test", "2012_trainval")],
    *[(f"cityscapes_fine_instance_seg_{split}", 12) for split in ("train", "val")],
]


def masks_of(annotations, record):
    polygons = [a["segmentation"] for a in annotations]
    size = record["height"], record["width"]
    return [mask_util.decode(mask_util.frPyObjects(p, *size)).any(axis=2) for p in polygons]


@pytest.mark.parametrize("name, count", DATA_SETS)
def test_every_class_is_there_and_every_image(standard_data, name, count):
    records = DatasetCatalog.get(name)
    assert len(records) == count
    for record in records:
        assert record["file_name"].startswith(standard_data)
        assert cv2.imread(record["file_name"]).shape == (record["height"], record["width"], 3)
        assert record["annotations"]
    found = {a["category_id"] for record in records for a in record["annotations"]}
    assert found == set(range(len(MetadataCatalog.get(name).thing_classes)))


def test_coco_has_the_true_categories(standard_data):
    folder = Path(standard_data, "coco", "annotations")
    content = json.loads((folder / "instances_val2017.json").read_text())
    ids = [c["id"] for c in content["categories"]]
    assert len(ids) == 80 and ids[0] == 1 and ids[-1] == 90 and 12 not in ids
    person = json.loads((folder / "person_keypoints_val2017.json").read_text())["categories"]
    assert [c["name"] for c in person] == ["person"] and len(person[0]["keypoints"]) == 17
    assert {n for bone in person[0]["skeleton"] for n in bone} == set(range(1, 18))


def test_coco_boxes_enclose_the_masks_and_keypoints_lie_in_them(standard_data):
    medium = 0
    for record in DatasetCatalog.get("keypoints_coco_2017_val"):
        annotations = record["annotations"]
        for mask, found in zip(masks_of(annotations, record), annotations):
            ys, xs = np.nonzero(mask)
            assert found["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            keypoints = np.reshape(found["keypoints"], (17, 3))
            inside = np.floor(keypoints[:, :2]).astype(int)
            assert mask[inside[:, 1], inside[:, 0]].all() and (keypoints[:, 2] == 2).all()
            assert len(np.unique(inside, axis=0)) == 17
            medium += mask.sum() > 32**2
    assert medium >= 20  # what COCO's keypoint evaluation has a class of areas for


def test_voc_boxes_are_those_of_the_same_scenes(standard_data, tmp_path):
    """VOC has no masks, so the scenes are drawn again; Detectron2 undoes VOC's count from 1."""
    records = DatasetCatalog.get("voc_2007_test")
    again = [tmp_path / f"{i}.jpg" for i in range(len(records))]
    scenes = draw_scenes(again, "VOC2007/test", 0, (120, 160))
    for record, objects, file in zip(records, scenes, again):
        assert Path(record["file_name"]).read_bytes() == file.read_bytes()
        boxes = np.array([found["bbox"] for found in objects])
        boxes[:, 2:] += boxes[:, :2]
        assert np.array_equal([a["bbox"] for a in record["annotations"]], boxes)


def test_cityscapes_pngs_and_polygons_agree_with_what_was_painted(standard_data, tmp_path):
    records = DatasetCatalog.get("cityscapes_fine_instance_seg_val")
    records.sort(key=lambda record: record["image_id"].split("_")[1])  # not by city
    again = [tmp_path / f"{i}.png" for i in range(len(records))]
    scenes = draw_scenes(again, "cityscapes/val", 0, (120, 240))
    seen = set()
    for record, objects in zip(records, scenes):
        base = record["file_name"].replace("leftImg8bit", "gtFine").removesuffix(".png")
        instances = np.asarray(Image.open(f"{base}_instanceIds.png"))
        class_ids = np.asarray(Image.open(f"{base}_labelIds.png"))
        seen |= {id2label[i].name for i in np.unique(class_ids)}
        assert np.array_equal(np.where(instances >= 1000, instances // 1000, instances), class_ids)
        ids = np.unique(instances[instances >= 1000])
        annotations = record["annotations"]
        assert len(ids) == len(annotations) == len(objects)
        from_png = [instances == i for i in ids]
        assert min(mask.sum() for mask in from_png) >= 100
        for masks in (masks_of(objects, record), masks_of(annotations, record)):
            # Each has exactly one counterpart, which differs along the edge alone.
            overlaps = np.array([[(a & b).sum() / (a | b).sum() for a in from_png] for b in masks])
            assert (overlaps.max(axis=1) > 0.75).all()
            assert sorted(overlaps.argmax(axis=1)) == list(range(len(ids)))
    assert seen == {label.name for label in TRAINED} | {"ego vehicle"}


@pytest.mark.parametrize("split", ["train", "val"])
def test_training_ids_are_those_of_cityscapesscripts(standard_data, split, tmp_path):
    seen = set()
    for record in DatasetCatalog.get(f"cityscapes_fine_sem_seg_{split}"):
        file = record["sem_seg_file_name"]
        polygons = file.replace("_labelTrainIds.png", "_polygons.json")
        json2labelImg(polygons, str(tmp_path / "expected.png"), "trainIds")
        made, expected = Image.open(file), Image.open(tmp_path / "expected.png")
        assert made.mode == expected.mode == "L"
        assert np.array_equal(np.asarray(made), np.asarray(expected))
        seen |= set(np.unique(np.asarray(made)))
    assert seen == {*range(19), 255}


def test_training_ids_are_made_once_and_every_id_has_one(tmp_path):
    city = tmp_path / "aachen"
    city.mkdir()
    ids = np.arange(34, dtype=np.uint8)[None]
    Image.fromarray(ids).save(city / "aachen_000000_000019_gtFine_labelIds.png")
    assert make_train_id_files(str(tmp_path)) == 1
    target = city / "aachen_000000_000019_gtFine_labelTrainIds.png"
    made = np.asarray(Image.open(target))
    assert made[0].tolist() == [id2label[i].trainId for i in range(34)]
    written = target.stat().st_mtime_ns
    assert make_train_id_files(str(tmp_path)) == 0 and target.stat().st_mtime_ns == written
    assert len(os.listdir(city)) == 2  # nothing half-written is left


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    city = tmp_path / "aachen"
    city.mkdir()
    Image.new("L", (4, 4)).save(city / "aachen_000000_000019_gtFine_labelIds.png")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(RuntimeError, match="aachen'.*Permission denied.*csCreateTrainIdLabelImgs"):
        make_train_id_files(str(tmp_path))
    assert len(os.listdir(city)) == 1
    with pytest.raises(FileNotFoundError, match="gtFine package"):
        make_train_id_files(str(city))


def test_files_follow_from_seed_and_split(tmp_path):
    def digest(folder, seed, *writers):
        for write in writers:
            write(str(tmp_path / folder), 2, seed, (64, 96), 3)
        files = sorted(p for p in (tmp_path / folder).rglob("*") if p.is_file())
        return {
            str(p.relative_to(tmp_path / folder)): hashlib.md5(p.read_bytes()).hexdigest()
            for p in files
        }

    first = digest("a", 0, write_coco, write_voc, write_cityscapes)
    assert digest("b", 0, write_cityscapes, write_voc, write_coco) == first
    other = digest("c", 1, write_coco, write_voc, write_cityscapes)
    images = [name for name in first if name.endswith(("jpg", "leftImg8bit.png"))]
    assert len({first[name] for name in images}) == len(images) == 14  # no two splits share one
    assert all(first[name] != other[name] for name in images)

"""What DATASETS.TRAIN may name."""

import json
import os

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from detco_d2.data.datasets import (
    list_images,
    load_images,
    register_coco_subset,
    register_voc_folder,
    seeded_subset,
)
from detco_d2.data.synthetic import register_scenes


def save_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)


def test_a_folder_is_read_recursively_without_registration(tmp_path):
    for name in ("b.jpg", "deep/er/a.PNG", "deep/c.jpeg"):
        save_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    names = [os.path.relpath(d["file_name"], tmp_path) for d in load_images((str(tmp_path),))]
    assert names == ["b.jpg", "deep/c.jpeg", "deep/er/a.PNG"]


def test_several_data_sets_are_joined_and_annotations_dropped(tmp_path, scenes):
    save_image(tmp_path / "a.jpg")
    images = load_images((register_scenes(scenes, "train"), str(tmp_path)))
    assert len(images) == 13
    assert all(set(image) == {"file_name"} for image in images)


def test_no_image_is_dropped_for_lacking_boxes(tmp_path, scenes):
    with open(os.path.join(scenes, "annotations", "instances_train.json")) as file:
        content = json.load(file)
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == 1]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
    os.symlink(os.path.join(scenes, "train"), tmp_path / "train")
    assert len(load_images([register_scenes(str(tmp_path), "train")])) == 12


def test_imagenet_is_found_under_the_data_folder(tmp_path, monkeypatch):
    save_image(tmp_path / "imagenet" / "train" / "n01440764" / "x.JPEG")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert len(load_images(("imagenet_train",))) == 1


def test_a_missing_folder_names_the_nearest_parent_and_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=rf"nearest that exists is '{tmp_path}'") as error:
        load_images(("imagenet_val",))
    assert "DETECTRON2_DATASETS" in str(error.value)


def test_a_folder_without_images_says_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"\.jpg, \.jpeg, \.png"):
        list_images(str(tmp_path))


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="imagenet_train"):
        load_images(("imagenet_trian",))
    with pytest.raises(ValueError, match="DATASETS.TRAIN is empty"):
        load_images(())


def test_subsets_follow_from_the_seed_alone():
    items = list(range(100))
    assert seeded_subset(items, 10, 0) == seeded_subset(items, 10, 0)
    assert seeded_subset(items, 10, 0) != seeded_subset(items, 10, 1)
    assert seeded_subset(items, 500, 0) == items


def test_a_coco_subset_keeps_its_images_annotations(tmp_path, scenes):
    name = register_scenes(scenes, "train")
    DatasetCatalog.get(name)
    subset = register_coco_subset(name, 5, 0, str(tmp_path))
    whole = {d["file_name"]: d["annotations"] for d in DatasetCatalog.get(name)}
    kept = DatasetCatalog.get(subset)
    assert len(kept) == 5
    assert all(len(d["annotations"]) == len(whole[d["file_name"]]) for d in kept)


def test_a_voc_folder_brings_its_own_classes(tmp_path):
    for i, label in enumerate(("cat", "ant", "cat", "cat")):
        save_image(tmp_path / "JPEGImages" / f"{i}.jpg")
        file = tmp_path / "Annotations" / f"{i}.xml"
        file.parent.mkdir(exist_ok=True)
        box = "<xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>6</ymax>"
        file.write_text(
            "<annotation><size><width>8</width><height>8</height></size><object>"
            f"<name>{label}</name><difficult>0</difficult><bndbox>{box}</bndbox></object></annotation>"
        )
    listing = tmp_path / "ImageSets" / "Main" / "train.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("0\n1\n2\n3\n")
    half = register_voc_folder(str(tmp_path), "train", fraction=0.5)
    assert MetadataCatalog.get(half).thing_classes == ["ant", "cat"]
    assert MetadataCatalog.get(half).evaluator_type == "pascal_voc"
    assert len(DatasetCatalog.get(half)) == 2
    with pytest.raises(FileNotFoundError, match="VOC's layout"):
        register_voc_folder(str(tmp_path), "val")

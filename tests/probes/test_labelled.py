"""Labelled images: class folders, boxes as crops, images with the classes in them, halves."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from detco_d2.data.images import read_image
from detco_d2.data.synthetic import register_scenes
from detco_d2.probes.labelled import LabelledImages, _square, load_halves

from ..layouts import write_voc
from ..pictures import save_image


def folder_of(root, counts):
    for name, count in counts.items():
        for i in range(count):
            save_image(root / name / f"{i}.png")
    return root


@pytest.fixture
def boxes(tmp_path):
    """A registered data set of two images, one half red and half blue; removed afterwards."""
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:, :100], pixels[:, 100:] = (200, 0, 0), (0, 0, 200)
    for name in "ab":
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")

    def box(category, x0, y0, x1, y1, **more):
        found = {"category_id": category, "bbox": [x0, y0, x1 - x0, y1 - y0], **more}
        return {**found, "bbox_mode": BoxMode.XYWH_ABS}

    red, blue = box(0, 10, 20, 60, 70), box(1, 120, 20, 190, 90)
    crowd, thin = box(2, 0, 0, 80, 80, iscrowd=1), box(0, 5, 5, 5, 80)
    images = [
        {"file_name": str(tmp_path / "a.png"), "image_id": 0, "annotations": [red, crowd, thin]},
        {"file_name": str(tmp_path / "b.png"), "image_id": 1, "annotations": [blue]},
    ]
    name = f"boxes_of_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: images)
    MetadataCatalog.get(name).set(thing_classes=["red", "blue", "people"])
    yield name
    DatasetCatalog.pop(name) if hasattr(DatasetCatalog, "pop") else None


def test_class_folders_are_numbered_by_name_and_a_quarter_is_held_out(tmp_path):
    folder_of(tmp_path, {"cat": 10, "ant": 6})
    train, test = load_halves(str(tmp_path))
    assert train.classes == ["ant", "cat"]
    assert (len(train.items), len(test.items)) == (12, 4)
    for half in (train, test):
        folders = [Path(item["file_name"]).parent.name for item in half.items]
        assert [train.classes[label] for label in half.labels] == folders
    files = {item["file_name"] for half in (train, test) for item in half.items}
    assert len(files) == 16


def test_the_held_out_quarter_and_the_items_kept_follow_the_seed(tmp_path):
    folder_of(tmp_path, {"a": 40, "b": 40})
    for options in ({}, {"max_images": 15}):
        halves = [load_halves(str(tmp_path), seed=seed, **options) for seed in (0, 0, 1)]
        assert halves[0][1].items == halves[1][1].items != halves[2][1].items
    assert [len(half.items) for half in halves[0]] == [15, 15]


@pytest.mark.parametrize(
    "first, second",
    [
        *[("train", "val"), ("train", "test"), ("train", "other"), ("Train", "VALID")],
        *[("training", "validation"), ("TRAIN", "dev")],
    ],
)
def test_the_test_half_is_found_or_named(tmp_path, first, second):
    folder_of(tmp_path / first, {"a": 3, "b": 2})
    folder_of(tmp_path / second, {"b": 4})
    names = (tmp_path / first, tmp_path / second) if second == "other" else (tmp_path,)
    train, test = load_halves(*map(str, names))
    assert train.labels.tolist() == [0, 0, 0, 1, 1]
    assert test.labels.tolist() == [1] * 4  # numbered as in the training half


def test_a_half_is_no_class_but_a_class_may_be_called_train(tmp_path):
    folder_of(tmp_path / "half" / "train", {"a": 6, "b": 6})
    assert load_halves(str(tmp_path / "half"))[0].classes == ["a", "b"]
    folder_of(tmp_path / "half" / "more", {"c": 1})
    with pytest.raises(ValueError, match="has folders in train, which is the name of a half"):
        load_halves(str(tmp_path / "half"))
    folder_of(tmp_path / "vehicles", {"bus": 4, "train": 4})
    assert load_halves(str(tmp_path / "vehicles"))[0].classes == ["bus", "train"]


def test_a_class_that_training_has_not_is_refused(tmp_path):
    folder_of(tmp_path / "train", {"a": 3, "b": 2})
    folder_of(tmp_path / "val", {"a": 1, "zebra": 1})
    with pytest.raises(ValueError, match="has classes that .*train.* has not: zebra"):
        load_halves(str(tmp_path))


def test_boxes_become_crops_without_crowds_and_lines(boxes, caplog):
    with caplog.at_level(logging.INFO, "detco_d2"):
        train, _ = load_halves(boxes, boxes)
    assert [(item["box"], label) for item, label in zip(train.items, train.labels)] == [
        ([10, 20, 60, 70], 0),
        ([120, 20, 190, 90], 1),
    ]
    assert "left out: 1 of crowds or difficult, 1 with a side below 16 pixels" in caplog.text


def test_a_crop_is_a_square_of_the_box_with_context(boxes):
    train, _ = load_halves(boxes, boxes)
    images = LabelledImages(train, 32)
    for number, colour in ((0, (200, 0, 0)), (1, (0, 0, 200))):
        index, pixels = images[number]
        assert index == number and pixels.dtype == torch.uint8 and pixels.shape == (3, 32, 32)
        assert torch.equal(pixels, torch.tensor(colour).view(3, 1, 1).expand(3, 32, 32))


def test_a_crop_at_the_border_is_moved_into_the_image():
    assert _square([10, 20, 60, 70], (200, 100)) == (5, 15, 65, 75)  # 50 pixels and a tenth twice
    assert _square([0, 0, 50, 50], (200, 100)) == (0, 0, 60, 60)
    assert _square([150, 0, 200, 100], (200, 100)) == (80, 0, 200, 100)  # 120 do not fit in 100


def test_an_image_is_decoded_once_for_all_of_its_boxes(scenes, monkeypatch):
    train, _ = load_halves(register_scenes(scenes, "train"))
    images, paths = LabelledImages(train, 32), []
    read = "detco_d2.probes.labelled.read_image"
    monkeypatch.setattr(read, lambda d: paths.append(d["file_name"]) or read_image(d))
    together = [images[i][1] for i in range(len(images))]
    assert paths == sorted({item["file_name"] for item in train.items})
    alone = [LabelledImages(train, 32)[i][1] for i in range(len(images))]
    assert all(torch.equal(a, b) for a, b in zip(together, alone))


def test_images_say_which_classes_they_contain(boxes):
    train, _ = load_halves(boxes, boxes, kind="images")
    assert train.labels.tolist() == [[1, 0, -1], [0, 1, 0]]  # people: a crowd, which is unsure
    assert LabelledImages(train, 32)[0][1].shape == (3, 32, 32)


def test_boxes_of_one_image_stay_in_one_half(scenes):
    train, test = load_halves(register_scenes(scenes, "train"))
    files = [{item["file_name"] for item in half.items} for half in (train, test)]
    assert [len(names) for names in files] == [9, 3]
    assert not files[0] & files[1]
    assert len(train.items) > 9  # several an image


def test_vocs_layout_brings_its_halves_and_difficult_boxes_are_left_out(tmp_path):
    write_voc(str(tmp_path), 12, seed=0, size=(120, 160))
    root, source = tmp_path / "voc", tmp_path / "VOC2007"
    (root / "Annotations").mkdir(parents=True)
    for name in ("ImageSets", "JPEGImages"):
        (root / name).symlink_to(source / name)
    plain = load_halves(str(source))
    for i, file in enumerate(sorted((source / "Annotations").glob("*.xml"))):
        text = file.read_text()
        marked = text.replace("<difficult>0", "<difficult>1") if i == 0 else text
        (root / "Annotations" / file.name).write_text(marked)
    marked = load_halves(str(root))
    assert len(plain[0].items) > len(marked[0].items) > 0
    assert len(plain[1].items) == len(marked[1].items)
    contained = load_halves(str(root), kind="images")[0]
    assert len(contained.items) == 12
    assert set(contained.labels[0]) == {0, -1} and set(contained.labels[1]) == {0, 1}


def test_a_folder_image_is_cut_to_its_centre(tmp_path):
    pixels = np.zeros((64, 192, 3), np.uint8)
    pixels[:, 64:128] = 255
    for file in folder_of(tmp_path, {"a": 2, "b": 2}).rglob("*.png"):
        Image.fromarray(pixels).save(file)
    train, _ = load_halves(str(tmp_path))
    assert int(LabelledImages(train, 32)[0][1].min()) > 250


def test_an_unreadable_image_is_none(tmp_path):
    folder_of(tmp_path, {"a": 3, "b": 3})
    train, _ = load_halves(str(tmp_path))
    Path(train.items[1]["file_name"]).write_bytes(b"no image")
    Path(train.items[2]["file_name"]).unlink()
    assert [LabelledImages(train, 32)[i][1] is None for i in range(3)] == [False, True, True]


@pytest.mark.parametrize(
    "counts, message",
    [
        ({"a": 8}, "has 1 classes in 6 training items, and 2 test items; a probe needs two"),
        ({"a": 1, "b": 1}, "a probe needs two classes, and something to be tested on"),
        ({".": 2}, "2 of 2 images outside of any class folder"),
    ],
)
def test_data_without_a_question_is_refused(tmp_path, counts, message):
    with pytest.raises(ValueError, match=message):
        load_halves(str(folder_of(tmp_path, counts)))


def test_too_small_boxes_and_unlabelled_images_are_refused(boxes, tmp_path, monkeypatch):
    monkeypatch.setattr("detco_d2.probes.labelled._MIN_BOX", 500)
    with pytest.raises(ValueError, match="no box of 500 pixels or more in 2 images"):
        load_halves(boxes)
    name = f"unlabelled_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: [{"file_name": str(tmp_path / "a.png")}])
    with pytest.raises(ValueError, match="has no labels: neither class folders nor boxes"):
        load_halves(name)

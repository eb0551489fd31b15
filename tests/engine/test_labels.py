"""What fine-tuning takes from its labelled data, and what it refuses before a model is built."""

import json
import os
import shutil

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from detco_d2.data import sizes
from detco_d2.engine.labels import follow_data
from detco_d2.engine.transfer import TransferTrainer, build_evaluator

from ..conftest import load_config
from ..data.test_labels import as_rle, boxes_of, of_images, of_labels, read
from ..exports import CLASSES, draw_boxes, score, write_coco, write_image, write_text, write_voc

FASTER, RETINA = (f"quick/{name}_R_18_FPN.yaml" for name in ("faster_rcnn", "retinanet"))
ROI, ONE = "MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.RETINANET.NUM_CLASSES"
TURNED = Image.Exif()
TURNED[0x0112] = 6
MASKS = ("MODEL.MASK_ON", True)


def config(tmp_path, train, test, *settings, file=FASTER):
    data = ("DATASETS.TRAIN", train, "DATASETS.TEST", test, "OUTPUT_DIR", str(tmp_path / "out"))
    return load_config(file, *data, *settings)


@pytest.fixture
def coco(tmp_path):
    """Writes a COCO file; returns its name as that of one data set."""
    return lambda *args, folder="coco", **more: (write_coco(tmp_path / folder, *args, **more),)


@pytest.mark.parametrize("file", [FASTER, RETINA])
def test_the_number_of_classes_follows_from_the_data(tmp_path, coco, file):
    pairs = follow_data(config(tmp_path, coco(), coco(), file=file))
    assert dict(zip(pairs[::2], pairs[1::2])) == {ROI: 3, ONE: 3}
    assert follow_data(config(tmp_path, coco(), coco(), *pairs, file=file)) == []


@pytest.mark.parametrize("file, key", [(FASTER, ROI), (RETINA, ONE)])
@pytest.mark.parametrize("count", [2, 4])
def test_another_number_that_was_given_is_refused_with_both(tmp_path, coco, file, key, count):
    cfg = config(tmp_path, coco(), (), key, count, file=file)
    with pytest.raises(ValueError, match=f"{key} is {count}, and the data have 3 classes"):
        follow_data(cfg)
    with pytest.raises(ValueError, match="set it to 3"):
        follow_data(cfg, given=[key])
    assert key in follow_data(cfg, given=[])  # it is that of a config file


def test_classes_in_another_order_are_matched_by_their_names(tmp_path, coco):
    def turn(content):
        for kind, label in zip(content["categories"], reversed(CLASSES)):
            kind["name"] = label

    test = coco(turn, folder="test")
    write_voc(tmp_path / "voc")
    voc = f"{tmp_path}/voc:train"
    follow_data(config(tmp_path, coco(), (*test, voc)))
    labels = [[label[0] for label in image] for image in boxes_of(read(test[0]))]
    assert labels[0] == [2, 1, 0] and MetadataCatalog.get(test[0]).thing_classes == list(CLASSES)
    assert score(test[0], tmp_path)["bbox"]["AP"] == 100
    trained = config(tmp_path, test, coco())  # the other way round, in the same process
    follow_data(trained)
    assert boxes_of(read(voc))[0][0][0] == 0
    write_text(tmp_path / "run/classes.json", json.dumps([*reversed(CLASSES), "fox"]))
    pairs = follow_data(config(tmp_path, (), (voc,)), detector=str(tmp_path / "run"))
    assert boxes_of(read(voc))[0][0][0] == 2 and pairs[:2] == [ROI, 4]


def test_a_class_that_training_has_not_is_refused(tmp_path, coco):
    def rename(content):
        content["categories"][0]["name"] = "gnu"

    with pytest.raises(ValueError, match="boxes of 'gnu'.*cat, dog, emu"):
        follow_data(config(tmp_path, coco(), coco(rename, folder="test")))


def test_classes_without_a_test_box_are_said(tmp_path, coco, caplog):
    caplog.set_level("INFO", "detco_d2")
    follow_data(config(tmp_path, coco(), coco(boxes=[draw_boxes()[0][:2]], folder="test")))
    assert "no box of emu: left out of the mean of AP" in caplog.text


def test_masks_in_rle_are_trained_as_bitmaps(tmp_path, coco):
    rle = coco(of_labels(as_rle), folder="rle")
    assert follow_data(config(tmp_path, rle, coco(), *MASKS))[:2] == [
        "INPUT.MASK_FORMAT",
        "bitmask",
    ]
    assert "INPUT.MASK_FORMAT" not in follow_data(config(tmp_path, coco(), coco(), *MASKS))


def turn_sizes(image):
    image["width"], image["height"] = image["height"], image["width"]


def away(root):
    os.remove(root / "3.png")


def cut(root):
    os.truncate(root / "3.png", 500)


def exif(root):
    write_image(root / "3.png", exif=TURNED)


REFUSED = {
    "no masks": (of_labels(lambda i, x: x.pop("segmentation")), None, "no segmentation, which"),
    "a short polygon": (of_labels(lambda i, x: x.update(segmentation=[[1, 2]])), None, "no segm"),
    "sides exchanged": (of_images(turn_sizes), None, "0.png' has 96 x 80 pixels.*80 x 96.*EXIF"),
    "an image away": (len, away, "3.png' cannot be read: .*No such file"),
    "an image cut": (len, cut, "3.png' cannot be read: damaged"),
    "a turned image": (len, exif, "3.png' has 80 x 96 pixels upright"),
    "crowds alone": (of_labels(lambda i, x: x.update(iscrowd=1)), None, "without a box that"),
    "no boxes": (lambda content: content.update(annotations=[]), None, "without a box that"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("key", ["DATASETS.TRAIN", "DATASETS.TEST"])
def test_bad_labels_are_refused_before_a_model_is_built(tmp_path, coco, monkeypatch, kind, key):
    change, after, message = REFUSED[kind]
    good, bad = coco(), coco(change, folder="bad")
    if after:
        after(tmp_path / "bad" / "train")
    monkeypatch.setattr(TransferTrainer, "build_model", None)
    names = f"mine_{tmp_path.name}", str(tmp_path / "bad" / "train")  # as Python registers it
    register_coco_instances(names[0], {}, bad[0], names[1])
    train, test = (good, names[:1]) if key == "DATASETS.TEST" else (names[:1], good)
    with pytest.raises(ValueError, match=f"{key} names '{names[0]}' .of '{bad[0]}'.*{message}"):
        TransferTrainer(config(tmp_path, train, test, *MASKS))


def test_images_of_one_id_are_refused_wherever_they_are_from(tmp_path, coco):
    images = [{**image, "image_id": 5} for image in read(*coco())]
    name = f"ids of {tmp_path}"
    DatasetCatalog.register(name, lambda: images)
    with pytest.raises(ValueError, match="0.png' and .*1.png' have one id 5"):
        follow_data(config(tmp_path, (name,), ()))


def test_boxes_of_data_registered_in_python_are_checked_and_completed_too(tmp_path, coco):
    images = read(*coco())
    name = f"boxes of {tmp_path}"
    DatasetCatalog.register(name, lambda: images)
    MetadataCatalog.get(name).thing_classes = list(CLASSES)
    for image in images:
        image.pop("width")
    follow_data(config(tmp_path, (name,), (name,)))
    assert build_evaluator(config(tmp_path, (), (name,)), name)._coco_api.imgs[1]["width"] == 96
    images[2]["annotations"][0]["bbox"] = [90, 70, 90, 70]
    with pytest.raises(ValueError, match=f"{name}.: less than half of the box"):
        follow_data(config(tmp_path, (name,), ()))


def test_a_folder_of_images_neither_trains_nor_tests_a_detector(tmp_path, coco):
    folder = (os.path.dirname(coco()[0]),)
    for train, test in ((folder, coco()), (coco(), folder)):
        key = "DATASETS.TRAIN" if train == folder else "DATASETS.TEST"
        with pytest.raises(ValueError, match=f"{key} names '{folder[0]}'"):
            follow_data(config(tmp_path, train, test))


def test_a_test_whose_labels_others_keep_is_let_through(tmp_path, coco, caplog):
    test = coco(lambda content: content.pop("annotations"), folder="test")
    follow_data(config(tmp_path, coco(), test))
    assert "has no labels: its boxes are written, and no AP" in caplog.text
    assert build_evaluator(config(tmp_path, (), test), test[0])._do_evaluation is False


def test_label_maps_of_a_segmentation_are_as_large_as_their_images(standard_data, tmp_path):
    names = ("cityscapes_fine_sem_seg_val",)
    cfg = config(tmp_path, names, names, file="cityscapes/semantic_segmentation_R_50_FCN.yaml")
    assert follow_data(cfg) == []
    file = DatasetCatalog.get(names[0])[0]["sem_seg_file_name"]
    shutil.copy(file, tmp_path / "kept.png")
    write_image(tmp_path / "small.png")
    shutil.copy(tmp_path / "small.png", file)
    try:
        with pytest.raises(ValueError, match="96 x 80 pixels upright, and in the labels 240 x 120"):
            follow_data(cfg)
    finally:
        shutil.copy(tmp_path / "kept.png", file)


def test_headers_are_read_once_for_all_starts_in_a_folder(tmp_path, coco, monkeypatch):
    cfg = config(tmp_path, coco(), coco())
    monkeypatch.setattr(sizes, "_known", {})
    follow_data(cfg)
    sizes._known.clear()  # another process
    opened = []
    measure = sizes.upright_size
    monkeypatch.setattr(sizes, "upright_size", lambda f: opened.append(f.name) or measure(f))
    follow_data(cfg)
    assert opened == []
    image = tmp_path / "coco/train/4.png"
    write_image(image, seed=9)
    os.utime(image, (1, 1))
    follow_data(cfg)
    assert opened == [str(image)]

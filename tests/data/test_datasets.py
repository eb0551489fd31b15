"""What DATASETS.TRAIN may name."""

import json
import os
import subprocess
import sys

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from detco_d2.data.datasets import load_images, prepare_datasets, register_by_name, seeded_subset
from detco_d2.data.synthetic import register_scenes

from ..conftest import ROOT
from ..layouts import write_text
from ..pictures import save_image


def test_a_folder_is_read_recursively_without_registration(tmp_path):
    for name in ("b.jpg", "deep/er/a.PNG", "deep/c.jpeg"):
        save_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    names = [
        os.path.relpath(d["file_name"], tmp_path)
        for d in load_images((str(tmp_path), f"{tmp_path}/deep"))
    ]
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
    write_text(tmp_path / "annotations" / "instances_train.json", json.dumps(content))
    os.symlink(os.path.join(scenes, "train"), tmp_path / "train")
    assert len(load_images([register_scenes(str(tmp_path), "train")])) == 12


def test_imagenet_is_found_under_the_data_folder(tmp_path):
    save_image(tmp_path / "imagenet" / "train" / "n01440764" / "x.JPEG")
    code = "from detco_d2.data.datasets import load_images as load; "
    code += "print(len(load(['imagenet_train']))); load(['imagenet_val'])"
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "1\n" and f"MISSING {tmp_path}/imagenet/val" in done.stderr


def test_an_unknown_name_suggests_the_nearest():
    for name in ("imagenet_trian", "imagenet_trian%10"):
        with pytest.raises(ValueError, match="names 'imagenet_trian', .*imagenet_train"):
            load_images((name,))
    with pytest.raises(ValueError, match="DATASETS.TRAIN is empty"):
        load_images(())


def test_subsets_follow_from_the_seed_alone():
    items = list(range(100))
    assert seeded_subset(items, 10, 0) == seeded_subset(items, 10, 0)
    assert seeded_subset(items, 10, 0) != seeded_subset(items, 10, 1)
    assert seeded_subset(items, 500, 0) == items


@pytest.mark.parametrize(
    "share, before",
    [
        ("{root}:trainval%50", "voc_trainval_0.5_seed0@{root}"),
        ("{root}:trainval%25,seed=3", "voc_trainval_0.25_seed3@{root}"),
        ("voc_2007_trainval%50,seed=1", "voc_2007_trainval_50percent_seed1"),
        ("{root}/JPEGImages%50", ""),
    ],
)
def test_a_share_of_anything_follows_from_its_seed(standard_data, share, before):
    root = os.path.join(standard_data, "VOC2007")
    names = [name.replace("{root}", root) for name in (share, before) if name]
    register_by_name(names)
    images = [DatasetCatalog.get(name) for name in names]
    assert images[0] == images[-1]
    whole = DatasetCatalog.get(MetadataCatalog.get(names[0]).share_of)
    assert len(images[0]) == len(whole) * (0.25 if "25" in share else 0.5)
    assert all(image in whole for image in images[0])
    classes = MetadataCatalog.get(names[0]).get("thing_classes", [])
    assert len(classes) == (20 if before else 0)
    for name in (f"{root}:trainval%0", "voc_2007_trainval%101"):
        with pytest.raises(ValueError, match="above 0 and at most 100 percent"):
            register_by_name([name])


def test_a_voc_folder_and_scenes_are_known_by_their_names(tmp_path, layouts):
    root = os.path.join(layouts, "VOC2007")
    half, other = (f"voc_trainval_0.5_seed{seed}@{root}" for seed in (0, 1))
    scenes = f"scenes_few_3@{tmp_path}"
    register_by_name([half, other, scenes, "no_such_data_set"])
    drawn = [[d["image_id"] for d in DatasetCatalog.get(name)] for name in (half, other)]
    assert len(drawn[0]) == len(drawn[1]) == 6 and drawn[0] != drawn[1]
    assert len(MetadataCatalog.get(half).thing_classes) == 20
    assert len(DatasetCatalog.get(scenes)) == 3
    before = os.stat(tmp_path / "annotations" / "instances_few_3.json").st_mtime_ns
    DatasetCatalog.remove(scenes)
    register_by_name([scenes])  # what is there is not rendered again
    assert os.stat(tmp_path / "annotations" / "instances_few_3.json").st_mtime_ns == before
    assert "no_such_data_set" not in DatasetCatalog.list()


@pytest.mark.parametrize("percent", [1, 2, 5, 10])
def test_low_data_subsets_are_registered_and_follow_from_the_seed(standard_data, percent):
    names = [f"coco_2017_train_{percent}percent_seed{seed}" for seed in range(10)]
    assert set(names) <= set(DatasetCatalog.list())
    whole = [d["image_id"] for d in DatasetCatalog.get("coco_2017_train")]
    drawn = [[d["image_id"] for d in DatasetCatalog.get(name)] for name in names]
    assert all(len(ids) == max(1, round(percent / 100 * 16)) for ids in drawn)
    assert drawn[0] == seeded_subset(whole, len(drawn[0]), 0)
    assert len({tuple(ids) for ids in drawn}) > 3
    assert len(MetadataCatalog.get(names[0]).thing_classes) == 80


BUILT_IN = [
    ("coco_2017_train", ["coco/annotations/instances_train2017.json", "coco/train2017"]),
    ("coco_2017_train_5percent_seed3", ["coco/annotations/instances_train2017.json"]),
    ("keypoints_coco_2017_val", ["coco/annotations/person_keypoints_val2017.json"]),
    ("voc_2007_test", ["VOC2007/ImageSets/Main/test.txt", "VOC2007/JPEGImages"]),
    ("cityscapes_fine_instance_seg_train", ["cityscapes/leftImg8bit/train"]),
    ("cityscapes_fine_sem_seg_val", ["cityscapes/gtFine/val"]),
]


@pytest.mark.parametrize("name, paths", BUILT_IN)
def test_what_is_missing_is_named_with_the_tree(standard_data, monkeypatch, name, paths):
    monkeypatch.setenv("DETECTRON2_DATASETS", standard_data)
    prepare_datasets([name], [name])  # all there
    for path in (os.path.join(standard_data, path) for path in paths):
        os.rename(path, path + ".away")
        try:
            with pytest.raises(FileNotFoundError) as error:
                prepare_datasets([], [name])
        finally:
            os.rename(path + ".away", path)
        message = str(error.value)
        assert f"DATASETS.TEST names {name!r}" in message
        assert f"MISSING {path}" in message and "found   " in message
        assert f"DETECTRON2_DATASETS is {standard_data!r}" in message


def test_without_the_variable_the_message_says_which_folder_was_taken(monkeypatch, tmp_path):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    MetadataCatalog.get("detco_nowhere").set(json_file=str(tmp_path / "a.json"), image_root="b")
    DatasetCatalog.register("detco_nowhere", list)
    with pytest.raises(FileNotFoundError, match="not set, so ./datasets of the working directory"):
        prepare_datasets(["detco_nowhere"], [])


def test_cityscapes_without_its_packages_is_refused_before_a_start(standard_data, monkeypatch):
    monkeypatch.setattr("detco_d2.data.check.find_spec", lambda name: name != "shapely" or None)
    with pytest.raises(ValueError, match="pip install shapely"):
        prepare_datasets(["cityscapes_fine_instance_seg_train"], [])


def test_label_train_ids_are_made_before_training(standard_data):
    folder = os.path.join(standard_data, "cityscapes", "gtFine", "val", "lindau")
    made = sorted(name for name in os.listdir(folder) if name.endswith("labelTrainIds.png"))
    os.remove(os.path.join(folder, made[0]))
    prepare_datasets(["cityscapes_fine_sem_seg_val"], [])
    assert os.path.isfile(os.path.join(folder, made[0]))

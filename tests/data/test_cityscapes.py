"""Training ids for Cityscapes' segmentation: those that its own scripts make."""

import os

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import id2label
from cityscapesscripts.preparation.json2labelImg import json2labelImg
from detectron2.data import DatasetCatalog
from PIL import Image

from detco_d2.data.cityscapes import make_train_id_files


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


@pytest.fixture
def city(tmp_path):
    """A folder of one image, whose pixels have every id."""
    city = tmp_path / "aachen"
    city.mkdir()
    ids = np.arange(34, dtype=np.uint8)[None]
    Image.fromarray(ids).save(city / "aachen_000000_000019_gtFine_labelIds.png")
    return city


def test_training_ids_are_made_once_and_every_id_has_one(city, tmp_path):
    assert make_train_id_files(str(tmp_path)) == 1
    target = city / "aachen_000000_000019_gtFine_labelTrainIds.png"
    made = np.asarray(Image.open(target))
    assert made[0].tolist() == [id2label[i].trainId for i in range(34)]
    written = target.stat().st_mtime_ns
    assert make_train_id_files(str(tmp_path)) == 0 and target.stat().st_mtime_ns == written
    assert len(os.listdir(city)) == 2  # nothing half-written is left


def test_a_folder_that_cannot_be_written_is_named(city, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(RuntimeError, match="aachen'.*Permission denied.*csCreateTrainIdLabelImgs"):
        make_train_id_files(str(tmp_path))
    assert len(os.listdir(city)) == 1
    with pytest.raises(FileNotFoundError, match="gtFine package"):
        make_train_id_files(str(city))

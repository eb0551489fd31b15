"""tools/predict.py: from a run's folder to boxes on images."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from .conftest import load_tool
from .test_visualize_tool import detector  # noqa: F401


@pytest.fixture(scope="module")
def run(detector, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("moved") / "run"  # all that is needed is in the folder
    shutil.copytree(detector, folder)
    (folder / "classes.json").write_text('["disc", "square", "triangle", "star"]')
    return folder


def predict(monkeypatch, *words):
    tool = load_tool("predict")
    monkeypatch.setattr(sys, "argv", ["tools/predict.py", *map(str, words)])
    tool.main()


def read(folder):
    results, images = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("results", "images")
    )
    return results, images


def test_boxes_of_files_and_folders_are_those_of_coco_and_broken_images_are_listed(
    run, scenes, tmp_path, monkeypatch
):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "broken.jpg").write_bytes(b"no image")
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(photos / "a.png")
    first = DatasetCatalog.get(f"scenes_test@{scenes}")[0]["file_name"]
    predict(monkeypatch, run, photos, first, "--threshold", "0", "--pictures", "1")
    results, images = read(run / "predictions")
    assert [image["id"] for image in images["images"]] == [1, 3]  # the second is broken
    assert (images["images"][0]["height"], images["images"][0]["width"]) == (40, 60)
    assert [c["name"] for c in images["categories"]] == ["disc", "square", "triangle", "star"]
    found = [result for result in results if result["image_id"] == 3]
    assert found and {r["category_id"] for r in found} <= {1, 2, 3, 4}
    assert all(len(r["bbox"]) == 4 and 0 <= r["score"] <= 1 for r in found)
    assert len(list((run / "predictions/pictures").iterdir())) == 1
    assert "broken.jpg" in (run / "predictions/skipped.txt").read_text()


def test_a_data_set_keeps_its_own_ids(run, scenes, tmp_path, monkeypatch):
    name = f"scenes_test@{scenes}"
    predict(monkeypatch, run / "model_final.pth", name, "--threshold", "0", "--output", tmp_path)
    results, images = read(tmp_path)
    assert {i["id"] for i in images["images"]} == {d["image_id"] for d in DatasetCatalog.get(name)}
    assert {r["category_id"] for r in results} <= {1, 2, 3, 4}
    content = json.loads(Path(scenes, "annotations/instances_test.json").read_text())
    content["categories"] = [{"id": 9, "name": "star"}, {"id": 5, "name": "disc"}]
    content["images"] = [{**x, "id": f"tour/{x['id']}"} for x in content["images"][:2]]
    (tmp_path / "own.json").write_text(json.dumps({**content, "annotations": []}))
    own = f"{tmp_path}/own.json@{scenes}/test"  # with other numbers, and names that hold a slash
    predict(monkeypatch, run, own, "--threshold", "0", "--output", tmp_path)
    results, images = read(tmp_path)
    names = {c["id"]: c["name"] for c in images["categories"]}
    assert names == {5: "disc", 10: "square", 11: "triangle", 9: "star"}
    assert {r["image_id"] for r in results} <= {"tour/1", "tour/2"}
    assert len(list(tmp_path.glob("pictures/tour_[12]_*.jpg"))) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [(["/no/run", "x.jpg"], "/no"), (["RUN", "/no/images"], "/no/images")],
)
def test_mistakes_are_explained(run, monkeypatch, words, message):
    with pytest.raises(SystemExit, match=message):
        predict(monkeypatch, *[str(run) if word == "RUN" else word for word in words])

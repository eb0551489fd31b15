"""tools/probe.py from rendered images to its table and its file."""

import functools
import json
import re

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from .conftest import call, load_tool
from .layouts import write_voc
from .pictures import write_colours


@pytest.fixture
def probe():
    """The tool in this process, to be called with words."""
    tool = load_tool("probe")
    tool.setup_logger = lambda **_: None  # it keeps records from those who listen later
    return functools.partial(call, tool)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """(a folder whose classes are colours, one whose classes are drawn by lot, weights)."""
    root = tmp_path_factory.mktemp("colours")
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), root / "r18.pth")
    lot = write_colours(root / "lot", 40, np.random.default_rng(0))
    return write_colours(root / "true", 8), lot, root / "r18.pth"


def test_what_every_stage_can_see_is_found_by_every_probe(probe, colours, tmp_path, capsys):
    true, _, weights = colours
    settings = ["--size", 32, "--workers", 0, "--output-dir", tmp_path]
    probe("--weights", weights, "--random", "--data", true, *settings)
    printed = re.sub(" +", " ", capsys.readouterr().out)
    assert printed.count("100.0 | 100.0 | 100.0 | 100.0 |") == 6  # 3 numbers of 2 backbones
    assert f"| svm | mAP | {weights} | 100.0 (100.0 to 100.0) | 100.0 (" in printed
    assert "| knn | top-1 | random ResNet-18, seed 0 | 100.0" in printed
    probe("--weights", weights, "--data", true, *settings, "--probes", "knn")  # keeps the others
    names = sorted(file.name for file in (tmp_path / "probes").iterdir())
    assert [name.rpartition("_")[2] for name in names] == ["r18.json"] * 2 + ["random.json"]
    record = json.loads((tmp_path / "probes" / names[1]).read_text())
    assert record["weights"] == str(weights) and record["data"] == str(true)
    assert (record["num_train"], record["num_test"]) == (18, 6)
    assert record["command"].startswith("python ") and record["seconds"] > 0
    assert {"torch", "scikit-learn"} <= record["versions"].keys()
    assert len(record["results"]) == 16
    assert all(result["value"] == pytest.approx(100) for result in record["results"])
    found = {(r["probe"], r["stage"], r["metric"]) for r in record["results"]}
    assert all((r["interval"] is None) == (r["metric"] != "mAP") for r in record["results"])
    assert {("knn", "res2", "top-1"), ("linear", "res5", "top-1"), ("svm", "res4", "mAP")} <= found


def test_classes_that_are_drawn_by_lot_are_guessed(probe, colours, tmp_path):
    _, lot, weights = colours
    settings = ["--size", 32, "--workers", 0, "--output-dir", tmp_path, "--stages", "res2", "res5"]
    probe("--weights", weights, "--data", lot, *settings)
    record = json.loads(next((tmp_path / "probes").iterdir()).read_text())
    assert record["num_test"] == 30
    for result in record["results"]:  # four standard deviations of a third of 30
        assert abs(result["value"] - 100 / 3) < 35, result
    assert abs(record["chance"]["top-1"] - 100 / 3) < 35


def test_boxes_and_the_classes_of_images_of_a_detection_data_set(probe, tmp_path, capsys):
    settings = ["--size", 32, "--workers", 0, "--stages", "res3", "--output-dir", tmp_path]
    write_voc(str(tmp_path), 12, seed=0, size=(120, 160))
    data = ["--data", tmp_path / "VOC2007"]
    probe("--random", "--depth", 18, *data, *settings, "--probes", "linear")
    printed = re.sub(" +", " ", capsys.readouterr().out)
    assert re.search(r"crops: \d\d training and \d\d test items", printed)
    assert "| linear | top-5 | random ResNet-18, seed 0 |" in printed
    settings += ["--labels", "images", "--svm-pool", "average"]
    probe("--random", "--depth", 18, *data, *settings)
    printed = re.sub(" +", " ", capsys.readouterr().out)
    assert "images: 12 training and 12 test items" in printed
    assert "| svm | mAP | chance |" in printed and "knn" not in printed


@pytest.mark.parametrize(
    "words, message",
    [
        (["--data", "x"], "nothing to probe: give --weights FILE, or --random"),
        (["--random", "--data", "nowhere"], "--data names 'nowhere', which is neither"),
        (["--weights", "none.pth", "--data", "DATA"], "none.pth"),
        (["--random", "--data", "x", "--labels", "images", "--probes", "knn"], "--probes svm is"),
    ],
)
def test_mistakes_are_said_in_one_sentence(probe, colours, capsys, words, message):
    with pytest.raises(SystemExit) as end:
        probe(*[word.replace("DATA", str(colours[0])) for word in words])
    assert end.value.code and message in f"{end.value.code} {capsys.readouterr().err}"

"""The main job from end to end, on rendered scenes, with steps enough to see that it runs."""

import json
import os
import sys

import pytest

from detco_d2.data.synthetic import write_scenes

from . import warm
from .conftest import ROOT


@pytest.mark.parametrize("images", ["rendered", pytest.param("a folder", marks=pytest.mark.slow)])
def test_the_main_job_ends_with_its_report(tmp_path, scenes, images):
    command = [sys.executable, "-W", "ignore", os.path.join(ROOT, "tools", "demo.py")]
    command += ["--output", str(tmp_path), "--pretrain-iters", "2", "--finetune-iters", "2"]
    command += ["--images", os.path.join(scenes, "train")] if images == "a folder" else []
    environment = {k: v for k, v in os.environ.items() if k != "DETECTRON2_DATASETS"}
    if images == "rendered":  # a few stand in for those that it would render
        for split, count in (("unlabelled_600", 8), ("train_100", 6), ("test_100", 4)):
            write_scenes(str(tmp_path / "data"), split, count, seed=0, size=(96, 128))
    curves = tmp_path / "pretrain" / "metrics.json"
    curves.parent.mkdir()
    curves.write_text('{"iteration": 900, "total_loss": 1.0}\n')  # of a longer demo before
    settings = ["SOLVER.IMS_PER_BATCH", "4", "DATALOADER.NUM_WORKERS", "0"]
    done = warm.run([*command, *settings], cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert [run["init"] for run in report["runs"]] == ["random", "DetCo"]
    assert "| DetCo |" in done.stdout
    page = (tmp_path / "report.html").read_text()
    shown = ("iteration 0000000", "pca", "neighbours", "match", "detections of DetCo")
    assert [name for name in shown if f"{name}</figcaption>" not in page] == []
    assert page.count("<td>DetCo</td>") == 1
    assert (tmp_path / "backbone.pth").is_file() and '"iteration": 900' not in curves.read_text()
    if images == "a folder":
        assert os.path.join(scenes, "train") in report["description"]

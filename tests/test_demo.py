"""The main job from end to end, with steps enough to see that it runs."""

import json
import os
import shlex
import sys

import pytest

from detco_d2.data.synthetic import write_scenes

from . import warm
from .conftest import ROOT, load_tool
from .layouts import write_text


def demo(folder, *words):
    tool = os.path.join(ROOT, "tools", "demo.py")
    return warm.run([sys.executable, "-W", "ignore", tool, "--output", "out", *words], cwd=folder)


@pytest.mark.parametrize("images", ["a folder", pytest.param("rendered", marks=pytest.mark.slow)])
def test_the_main_job_ends_with_its_table_and_page(tmp_path, images):
    words = ["--pretrain-iters", "2", "--finetune-iters", "2", "--seeds", "1"]
    splits = [("train_100", 6), ("test_100", 4), ("unlabelled_600", 40)]
    for split, count in splits:  # a few stand in for those that it would render
        write_scenes(str(tmp_path / "out/scenes"), split, count, seed=0, size=(96, 128))
    if images == "a folder":
        (tmp_path / "out/scenes/unlabelled_600").rename(tmp_path / "my photos")
        words += ["--images", "my photos"]
    earlier = tmp_path / "out/pretrain/metrics.json", tmp_path / "out/cells/old/cell.json"
    for file in earlier:  # of a longer demo before
        write_text(file, '{"iteration": 900, "total_loss": 1.0}\n')
    done = demo(tmp_path, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert '"iteration": 900' not in earlier[0].read_text() and not earlier[1].exists()
    said = [line for line in done.stdout.splitlines() if line.startswith(sys.executable)]
    scripts = [os.path.relpath(shlex.split(line)[1], ROOT) for line in said]
    tools = ("benchmark", "visualize", "visualize", "predict", "report")
    assert scripts == ["pretrain_net.py", *(f"tools/{name}.py" for name in tools)]
    assert ("MODEL.DETCO.QUEUE_LENGTH 20" in said[0]) == (images == "a folder")
    end = done.stdout[done.stdout.index("[6/6]") :]
    assert "| random " in end and "| DetCo " in end and end.endswith("out/report.html\n")
    assert "| DetCo - random " in end and "## PASCAL VOC 2007 on one GPU" in end
    page = (tmp_path / "out/report.html").read_text()
    shown = ("iteration 0000000", "pca", "neighbours", "detections")
    assert [name for name in shown if f"{name}</figcaption>" not in page] == []
    assert page.index("<h2>Results") < page.index("<h2>Summary")


def test_the_verdict_is_that_of_the_interval(tmp_path):
    tool = load_tool("demo")
    for interval, said in (([0.4, 3.6], "is better, by 2.0 AP"), ([-0.1, 4.1], "does not show")):
        found = {"bbox/AP": {"mean": 2.0, "interval": interval, "n": 3}}
        content = json.dumps({"differences": {"scenes": {"DetCo - random": found}}})
        (tmp_path / "results.json").write_text(content)
        assert said in tool.verdict(tmp_path)


def test_what_fails_ends_the_demo_and_is_named(tmp_path):
    done = demo(tmp_path, "--images", "absent")
    assert done.returncode == 2 and "demo.py: error: " in done.stderr and "absent" in done.stderr
    (tmp_path / "a.png").write_bytes(b"no image")
    done = demo(tmp_path, "--images", ".")
    assert done.returncode == 1 and "step 1, pretrain_net.py, ended with exit code 1" in done.stderr

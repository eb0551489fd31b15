"""The page about a run: well-formed, self-contained, and deaf to what files try to say."""

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detco_d2.reports import page as page_module
from detco_d2.reports.page import page
from detco_d2.reports.run_folder import Run

from ..layouts import write_text

STAGES = ("res2", "res3", "res4", "res5")
VOID = {"meta", "img", "br"}
CONFIG = {
    "MODEL.META_ARCHITECTURE": "DetCo",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.DETCO.QUEUE_LENGTH": 255,
    "SOLVER.IMS_PER_BATCH": 32,
    "SOLVER.MAX_ITER": 400,
    "DATASETS.TRAIN": ["photos"],
}


class Page(HTMLParser):
    """Parses strictly: every tag is closed in order. Notes what a browser might fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    def values(self, attribute: str) -> list[str]:
        return [value for _, name, value in self.attributes if name == attribute]

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def check_self_contained(text: str) -> Page:
    parsed = Page(text)
    assert not {"script", "iframe", "object", "link", "base", "form"} & set(parsed.tags)
    for tag, name, value in parsed.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("style", "srcset", "action", "background"), (tag, name)
        if name in ("src", "href"):
            assert re.match(r"data:image/(jpeg|svg\+xml);base64,[\w+/=]+$|#[\w-]+$", value)
    assert "url(" not in text and "@import" not in text
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert ("meta", "content", policy) in parsed.attributes
    assert len([*filter(None, parsed.values("alt"))]) == parsed.tags.count("img")
    return parsed


@pytest.fixture(autouse=True)
def quick_charts(monkeypatch):
    """Most tests need no more of a chart than that it is there; drawing it takes a while."""
    monkeypatch.setattr(page_module, "line_chart", lambda lines, guides: b"<svg/>")


def detco_curves(families=("gg", "gl", "ll"), iterations=(19, 39, 59)):
    curves = {"lr": [(i, 0.1) for i in iterations], "time": [(i, 2.0) for i in iterations]}
    curves["total_loss"] = [(i, 30.0 - i / 10) for i in iterations]
    for family in families:
        for stage in STAGES:
            curves[f"info_nce/{family}_{stage}"] = [(i, 5 - i / 100) for i in iterations]
            curves[f"top1/{family}_{stage}"] = [(i, i / 100) for i in iterations]
            curves[f"loss_{family}_{stage}"] = [(i, 1.0) for i in iterations]
    for view in {"gg": ("global",), "gl": (), "ll": ("local",)}[families[-1]] + ("global",):
        for stage in STAGES:
            curves[f"spread/{view}_{stage}"] = [(i, 0.9) for i in iterations]
    return curves


def write_everything(folder: Path) -> Run:
    """A run with all that there can be."""
    curves = detco_curves()
    for stage in STAGES:
        curves[f"knn/{stage}"] = [(59, 40.0)]
        curves[f"alignment/gg_{stage}"] = curves[f"top5/gg_{stage}"] = [(59, 0.5)]
        curves[f"uniformity/global_{stage}"] = [(59, -2.0)]
    for name in ("views/iteration_0000000.png", "pictures/pca.png"):
        (folder / name).parent.mkdir()
        Image.fromarray(np.full((40, 60, 3), 99, np.uint8)).save(folder / name)
    start = {"command": "python pretrain_net.py --resume", "time": "2026-01-02T03:04:05+00:00"}
    start |= {"versions": {"torch": "2.14.1"}, "processes": 2, "device": "cpu"}
    (folder / "run.json").write_text(json.dumps([start]))
    result = {"probe": "knn", "stage": "res5", "metric": "top-1", "value": 41.25}
    for name, value in (("detco", 41.25), ("random", 20.0)):
        probe = {"weights": name, "data": "crops of coco", "num_train": 70, "num_test": 30}
        probe |= {"results": [{**result, "value": value}], "command": f"probe --{name}"}
        probe["chance"] = {"top-1": 12.5}
        write_text(folder / "probes" / f"{name}.json", json.dumps(probe))
    rows = [("a", 0, 9.0), ("a", 1, 11.0), ("b", 0, 14.5), ("b", 1, 16.5)]
    for name in ("benchmark", "more"):
        runs = [
            {"task": f"{name}/x", "init": init, "seed": seed, "metrics": {"bbox/AP": value}}
            for init, seed, value in rows
        ]
        content = {"runs": runs, "command": f"run {name}"}
        write_text(folder / name / "results.json", json.dumps(content))
    shutil.copy(folder / "pictures/pca.png", folder / "benchmark/detections.png")
    transfer = [folder / "benchmark", folder / "more"]
    (folder / "model_final.pth").touch()
    return Run(folder, curves, ("SOLVER: whole", CONFIG), [("disk", 2)], transfer)


def test_everything_that_is_there_is_shown(tmp_path, monkeypatch):
    monkeypatch.undo()  # with true charts
    parsed = check_self_contained(page(write_everything(tmp_path)))
    for text in (
        "60 of 400 iterations: finished",
        "about 2 min of training",
        "Warnings in the log: 2 2 x disk",
        "crops of coco, 70 + 30 images, % knn res5 (top-1)",
        "chance 12.5 detco 41.2 random 20.0",
        "probe --detco probe --random",
        "Results benchmark/x, difference pairs bbox/AP b - a 2 +5.5 (+5.5 to +5.5) benchmark/x, %",
        "benchmark/x, % runs bbox/AP a 2 10.0 ± 1.4 b 2 15.5 ± 1.4",
        "run benchmark run more",
        "The whole config SOLVER: whole",
        '"torch": "2.14.1"',
        '"command": "python pretrain_net.py --resume"',
    ):
        assert text in " ".join(parsed.text.split()), text
    assert "Not there" not in parsed.text
    assert parsed.texts.index("Results") < parsed.texts.index("Summary")  # it opens with the answer
    alts = parsed.values("alt")
    charts = [alt for alt in alts if "over iterations" in alt]
    assert len(charts) == 3 + 3 + 1 + 2 + 1 + 1 + 1 + 2
    assert "global-global over iterations: res2 from 4.81 to 4.41" in charts[0]
    assert charts[0].endswith("chance, log(K+1) 5.55")
    assert [alt for alt in alts if alt not in charts] == [
        "results of transfer: detections",
        "the views that enter the network: iteration 0000000",
        "what features look like: pca",
    ]


def test_of_what_is_not_there_the_command_that_makes_it_is_named(tmp_path):
    folder = tmp_path / "my run"
    folder.mkdir()
    parsed = check_self_contained(page(Run(folder, detco_curves(), ("", CONFIG))))
    assert "60 of 400 iterations: not finished" in parsed.text
    assert "Results" not in parsed.texts
    assert parsed.text.count("Not there; made by") == 4
    for command in ("pretrain_net.py", "visualize.py all", "tools/probe.py", "tools/benchmark.py"):
        assert command in parsed.text
    assert f"'{folder}/model_final.pth'" in parsed.text  # as a shell wants it


def test_a_run_of_moco_v2_has_its_one_family(tmp_path):
    curves = detco_curves(families=("gg",))
    parsed = check_self_contained(page(Run(tmp_path, curves, ("", CONFIG))))
    titles = [t for t in parsed.texts if t in ("global-global", "global-local", "local-local")]
    assert titles == ["global-global"] * 2  # losses and top-1


def test_a_run_of_fine_tuning_has_its_losses_and_results(tmp_path):
    curves = {name: [(19, 1.0), (39, 0.5)] for name in ("total_loss", "loss_cls", "loss_box_reg")}
    curves |= {"bbox/AP": [(39, 12.5)], "bbox/AP50": [(39, 30.0)], "lr": [(19, 0.1), (39, 0.1)]}
    config = {**CONFIG, "MODEL.META_ARCHITECTURE": "GeneralizedRCNN"}
    parsed = check_self_contained(page(Run(tmp_path, curves, ("", config))))
    (alt,) = [alt for alt in parsed.values("alt") if alt.startswith("other losses")]
    assert "loss_box_reg from 1 to 0.5" in alt
    assert "GeneralizedRCNN" in parsed.text and "There is no warning in the log" in parsed.text
    assert any("AP from 12.5 to 12.5, AP50 from 30 to 30" in alt for alt in parsed.values("alt"))


def test_no_file_can_bring_in_markup(tmp_path):
    run = write_everything(tmp_path)
    plain = check_self_contained(page(run))
    evil = "\"><script>alert(1)</script><img src=x onerror=alert(1)>'&\ud800\x00"
    probe = {"weights": evil, "data": evil, "num_train": evil, "command": evil}
    probe["results"] = [{"probe": evil, "stage": evil, "metric": evil, "value": 1.0}]
    probe |= {"num_test": evil, "chance": {evil: 1.0}}
    result = {"task": evil, "init": evil, "seed": evil, "metrics": {evil: 1.0}}
    start = {"command": evil, "time": evil, "processes": evil, "device": evil}
    start["versions"] = {evil: evil}
    (tmp_path / "probes" / "detco.json").write_text(json.dumps(probe))
    (tmp_path / "run.json").write_text(json.dumps([start]))
    content = json.dumps({"runs": [result], "command": evil})
    (tmp_path / "benchmark" / "results.json").write_text(content)
    name = "<script>alert(1)<" + "'\" onerror=x.png"
    (tmp_path / "pictures" / "pca.png").rename(tmp_path / "pictures" / name)
    (tmp_path / "pictures" / "<svg onload=x>.png").write_text("<svg onload='alert(1)'></svg>")
    run.config = (evil, dict.fromkeys(CONFIG, evil))
    run.warnings = [(evil, 1)]
    run.curves[f"knn/{evil}"] = run.curves[f"top1/gg_{evil}"] = [(0, 1.0)]
    run.curves["loss_<b>"] = [(0, math.nan)]
    parsed = check_self_contained(page(run))
    assert "alert(1)" in parsed.text
    assert {*parsed.tags} == {*plain.tags} and "cannot be shown" in parsed.text


@pytest.mark.parametrize("content", ["{", "[]", '{"runs": [{"task": "t", "init": 3}]}'])
def test_results_in_another_form_are_named(tmp_path, content):
    run = write_everything(tmp_path)
    (tmp_path / "benchmark" / "results.json").write_text(content)
    (tmp_path / "run.json").write_text(content)
    (tmp_path / "probes" / "detco.json").write_text(content)
    parsed = check_self_contained(page(run))
    assert f"{tmp_path}/benchmark: no results.json of tools/benchmark.py" in parsed.text
    assert "run more" in parsed.text

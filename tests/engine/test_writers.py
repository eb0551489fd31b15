"""Weights & Biases as an extra: what is sent, when it is refused, how a resume goes on."""

import importlib.machinery
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from detectron2.utils.events import EventStorage

from detco_d2.config_checks import check_detco_config
from detco_d2.engine.preflight import check_run

from ..conftest import tiny_config
from ..faults.harness import Run, command
from .test_pretrain import make_trainer


@pytest.fixture
def wandb(monkeypatch):
    """In place of the package: notes what it is called with."""
    stub = ModuleType("wandb")
    stub.__spec__ = importlib.machinery.ModuleSpec("wandb", None, origin="a stub")
    stub.runs = []

    def init(**settings):
        calls = []
        stub.runs.append((settings, calls))
        return SimpleNamespace(
            log=lambda row: calls.append(row),
            finish=lambda: calls.append("finish"),
            define_metric=lambda name, step_metric: calls.append((name, step_metric)),
        )

    stub.init, stub.Image = init, lambda pixels: pixels
    monkeypatch.setitem(sys.modules, "wandb", stub)
    monkeypatch.delitem(sys.modules, "detco_d2.engine.writers", raising=False)
    yield stub
    sys.modules.pop("detco_d2.engine.writers", None)


def test_scalars_are_sent_once_smoothed_as_elsewhere_and_pictures_as_images(wandb, tmp_path):
    from detco_d2.engine.writers import WandbWriter

    writer = WandbWriter(tiny_config("WANDB.PROJECT", "views", "OUTPUT_DIR", str(tmp_path)))
    picture = np.zeros((3, 4, 5), np.uint8)
    with EventStorage() as storage:
        for storage.iter in range(3):
            storage.put_scalar("loss", [1.0, 9.0, 2.0][storage.iter])
            storage.put_scalar("queue/filled", storage.iter / 10, smoothing_hint=False)
        storage.put_scalar("lr", 0.1, smoothing_hint=False)
        storage.put_image("views", picture)
        writer.write()
        storage.clear_images()  # as TensorBoard's writer does after it
        writer.write()
        storage.iter = 3
        storage.put_scalar("lr", 0.2, smoothing_hint=False)
        writer.write()
    writer.close()
    ((settings, calls),) = wandb.runs
    assert settings["project"] == "views" and settings["dir"] == str(tmp_path)
    assert settings["config"]["MODEL"]["DETCO"]["QUEUE_LENGTH"] == 10
    first = calls[1]
    assert first.pop("views").shape == (4, 5, 3)
    assert calls == [
        ("*", "iteration"),
        {"loss": 2.0, "queue/filled": 0.2, "lr": 0.1, "iteration": 2},
        {"lr": 0.2, "iteration": 3},
        "finish",
    ]


def test_a_resume_goes_on_in_the_same_run_and_a_fresh_start_in_another(wandb, scenes, tmp_path):
    project = ["WANDB.PROJECT", "p", "MODEL.DETCO.FAMILIES", ["gg"]]
    make_trainer(scenes, tmp_path, 1, *project)  # ends before it has saved
    make_trainer(scenes, tmp_path, 1, *project).train()
    second = make_trainer(scenes, tmp_path, 2, *project)
    second.resume_or_load(resume=True)
    second.train()
    ids = [settings["id"] for settings, _ in wandb.runs]
    assert ids[0] != ids[1] and ids[1] == ids[2]
    assert all(settings["resume"] == "allow" for settings, _ in wandb.runs)
    (_, first_calls), (_, second_calls) = wandb.runs[1:]
    assert [row["iteration"] for row in first_calls[1:-1]] == [0]
    assert second_calls[1]["iteration"] == 1 and "top5/gg_res5" in second_calls[1]
    assert "views" in first_calls[1] and first_calls[-1] == second_calls[-1] == "finish"


def test_a_missing_package_is_refused_before_training(monkeypatch, scenes, tmp_path):
    for missing in (None, importlib.machinery.ModuleSpec("wandb", None, is_package=True)):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, missing=missing: missing)
        with pytest.raises(ImportError, match="'p'.*pip install wandb"):
            check_run(tiny_config("WANDB.PROJECT", "p"), processes=1)


def test_what_wandb_refuses_is_said_with_the_ways_out(wandb, scenes, tmp_path):
    def refuse(**_):
        raise ValueError("no API key")

    wandb.init = refuse
    with pytest.raises(RuntimeError, match="no API key.*WANDB_MODE=offline"):
        make_trainer(scenes, tmp_path, 1, "WANDB.PROJECT", "p")


def test_without_a_project_there_is_no_such_writer(scenes, tmp_path):
    writers = make_trainer(scenes, tmp_path, 1).build_writers()
    names = [type(writer).__name__ for writer in writers]
    for writer in writers:
        writer.close()
    assert names == ["JSONWriter", "TensorboardXWriter"]
    with pytest.raises(ValueError, match="WANDB.PROJECT is 3"):
        cfg = tiny_config()
        cfg.WANDB.PROJECT = 3
        check_detco_config(cfg)


def test_the_real_package_takes_an_offline_run_of_the_command_line(scenes, tmp_path):
    pytest.importorskip("wandb")
    settings = ["SOLVER.MAX_ITER", 2, "WANDB.PROJECT", "p"]
    words = command(f"{scenes}/train", tmp_path, *settings)
    code, text = Run(words, WANDB_MODE="offline").wait()
    assert code == 0, text[-3000:]
    name = (tmp_path / "wandb_run_id").read_text()
    (file,) = (tmp_path / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb")
    content = file.read_bytes()
    assert b"top5/ll_res5" in content and b"views" in content

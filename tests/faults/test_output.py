"""An output folder that already holds a run, and runs too large for their data."""

import json
import os
import shlex
from datetime import datetime

import pytest
import torch

from detco_d2.engine.output_dir import check_output_dir
from detco_d2.engine.preflight import check_run
from detco_d2.engine.record import note_start

from ..conftest import tiny_config
from .harness import command, finish


def a_run(folder, *settings):
    """What a run leaves behind: a checkpoint that says what config it is of."""
    cfg = tiny_config("OUTPUT_DIR", str(folder), *settings)
    folder.mkdir(exist_ok=True)
    data = {"model": {"x": torch.zeros(1)}, "trainer": {"config": cfg.dump()}}
    torch.save(data, folder / "model_0000001.pth")
    return folder


def ask(folder, *settings, resume=False, overwrite=False):
    return check_output_dir(tiny_config("OUTPUT_DIR", str(folder), *settings), resume, overwrite)


def test_an_empty_folder_is_a_fresh_start_but_not_a_resume(tmp_path):
    assert ask(tmp_path / "new" / "folder") is False
    with pytest.raises(FileNotFoundError, match="--resume: there is no checkpoint in"):
        ask(tmp_path, resume=True)


def test_the_same_config_goes_on_by_itself(tmp_path):
    assert ask(a_run(tmp_path)) is True
    assert ask(tmp_path, "DATALOADER.NUM_WORKERS", 3, "SOLVER.CHECKPOINT_PERIOD", 7) is True
    assert ask(tmp_path, "MODEL.RESNETS.NORM", "naiveSyncBN") is True  # another machine's choice


def test_another_config_is_refused_with_what_differs_and_the_ways_out(tmp_path):
    a_run(tmp_path)
    with pytest.raises(ValueError) as refused:
        ask(tmp_path, "SOLVER.BASE_LR", 0.1, "MODEL.DETCO.TEMPERATURE", 0.07)
    differing = ["MODEL.DETCO.TEMPERATURE: 0.2 there, 0.07", "SOLVER.BASE_LR: 0.03 there, 0.1 now"]
    for part in (str(tmp_path), *differing, "--resume", "--overwrite", "OUTPUT_DIR"):
        assert part in str(refused.value)


def test_a_resume_says_what_has_changed_and_goes_on(tmp_path, caplog):
    a_run(tmp_path)
    assert ask(tmp_path, "SOLVER.MAX_ITER", 99, resume=True) is True
    assert "goes on with another config" in caplog.text and "SOLVER.MAX_ITER" in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        ["MODEL.DETCO.QUEUE_LENGTH", 20],
        ["MODEL.RESNETS.DEPTH", 34],
        ["MODEL.DETCO.STAGES", ["res5"], "MODEL.DETCO.STAGE_WEIGHTS", [1.0]],
    ],
)
def test_a_resume_into_another_model_is_refused(tmp_path, settings):
    a_run(tmp_path)
    with pytest.raises(ValueError, match=f"run of another model(.|\n)*Set .*{settings[0]}"):
        ask(tmp_path, *settings, resume=True)


def test_overwriting_removes_the_old_run_but_never_after_a_restart(tmp_path, monkeypatch):
    a_run(tmp_path)
    kept = ["notes.txt", "probes", "views"]
    for name in ("notes.txt", "probes/mine.json", "views/mine.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("the user's")
    records = ["metrics.json", "run.json", "log.txt", "log.txt.rank1", "wandb_run_id"]
    for name in (*records, "events.out.tfevents.1.host.2.3", "views/iteration_0000000.png"):
        (tmp_path / name).write_text("the old run's")
    with pytest.raises(ValueError, match="pass one of them"):
        ask(tmp_path, resume=True, overwrite=True)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert ask(tmp_path, overwrite=True) is True and (tmp_path / "metrics.json").exists()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert ask(tmp_path, overwrite=True) is False
    assert sorted(os.listdir(tmp_path)) == kept and os.listdir(tmp_path / "views") == ["mine.png"]


def test_checkpoints_without_a_config_or_all_damaged_are_not_passed_over(tmp_path):
    file = tmp_path / "model_0000001.pth"
    torch.save({"model": {"x": torch.zeros(1)}}, file)  # as Detectron2 itself would leave it
    with pytest.raises(ValueError, match="model_0000001.pth, which does not say of what config"):
        ask(tmp_path)
    assert ask(tmp_path, resume=True) is True
    file.write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="All checkpoints in .* are damaged"):
        ask(tmp_path)


def images(folder, count):
    for i in range(count):
        (folder / f"{i}.jpg").touch()
    return ["DATASETS.TRAIN", (str(folder),)]


@pytest.mark.parametrize(
    "settings, processes, message",
    [
        (["SOLVER.IMS_PER_BATCH", 8], 3, "3 processes .* multiple of 3"),
        (["SOLVER.IMS_PER_BATCH", 8, "SOLVER.ACCUMULATION_STEPS", 3], 2, "multiple of 6"),
        (["SOLVER.IMS_PER_BATCH", 16], 1, "DATASETS.TRAIN has 12 images"),
        (["DATALOADER.NUM_WORKERS", 8], 2, "more than the 12 images .* at most 6"),
        (["DATASETS.TRAIN", ()], 1, "DATASETS.TRAIN is empty"),
        (["DATASETS.TRAIN", ("a.tar", "/b")], 1, "on shards alone or on data sets"),
    ],
)
def test_too_many_processes_workers_or_images_are_said(tmp_path, settings, processes, message):
    with pytest.raises(ValueError, match=message):
        check_run(tiny_config(*images(tmp_path, 12), *settings), processes)


def test_the_images_of_a_damaged_tar_shard_are_missed_before_any_process_starts(tmp_path):
    (tmp_path / "a.tar").touch()
    cfg = tiny_config("DATASETS.TRAIN", (f"{tmp_path}/*.tar",), "OUTPUT_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="'.*a.tar' cannot be indexed"):
        check_run(cfg, 2)


@pytest.mark.parametrize(
    "settings, message",
    [
        (["MODEL.DETCOO.STAGES", "x"], "MODEL.DETCO"),
        (["SOLVER.IMS_PER_BATCH", 400], "DATASETS.TRAIN has"),
        (["--resume"], "there is no checkpoint"),
    ],
)
def test_the_command_line_ends_with_one_line_and_no_traceback(scenes, tmp_path, settings, message):
    code, text = finish(command(f"{scenes}/train", tmp_path, *settings))
    assert code == 1 and "Traceback" not in text
    assert text[text.index("pretrain_net: ") :].count("\n") <= 3 and message in text


def test_each_start_is_noted_with_its_command_and_versions(scenes, tmp_path, caplog):
    words = command(f"{scenes}/train", tmp_path / "a folder", "SOLVER.MAX_ITER", 1)
    for _ in range(2):
        finish(words, want=0)
    starts = json.loads((tmp_path / "a folder" / "run.json").read_text())
    assert len(starts) == 2
    for start in starts:
        assert shlex.split(start["command"]) == ["python", *words[3:]]
        named = {"Python", "torch", "torchvision", "detectron2", "detco_d2", "numpy"}
        assert named <= set(start["versions"])
        assert start["versions"]["torch"] == torch.__version__
        assert (start["processes"], start["device"]) == (1, "cpu")
        assert datetime.fromisoformat(start["time"]).tzinfo is not None


@pytest.mark.parametrize("content", ["[{", "3", ""])
def test_a_damaged_list_of_starts_is_begun_anew_with_a_warning(tmp_path, caplog, content):
    (tmp_path / "run.json").write_text(content)
    note_start(tiny_config("OUTPUT_DIR", str(tmp_path)))
    assert "run.json cannot be read and is begun anew" in caplog.text
    assert len(json.loads((tmp_path / "run.json").read_text())) == 1

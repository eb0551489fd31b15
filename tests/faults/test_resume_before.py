"""A run that an earlier version began goes on with today's code and the same config."""

import shutil
from pathlib import Path

import pytest
from detectron2.utils.env import seed_all_rng

from detco_d2.data.synthetic import write_scenes
from detco_d2.engine.output_dir import check_output_dir
from detco_d2.engine.pretrain import PretrainTrainer

from ..conftest import ROOT, load_config
from .harness import saved_state

BEFORE = Path(ROOT, "tests/fixtures/run_before")
DONE, IN_ALL, BATCH = 3, 5, 4  # iterations, iterations, images


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    """The config of the run before, whose checkpoint and images are in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_scenes("scenes", "train", 8, seed=0, size=(64, 96))
    shutil.copytree(BEFORE, "output")
    return load_config(str(BEFORE / "config.yaml"), "OUTPUT_DIR", "output")


@pytest.mark.parametrize("fill", [False, True])
def test_a_run_of_an_earlier_version_goes_on_without_a_flag(cfg, tmp_path, fill):
    cfg.MODEL.DETCO.QUEUE_FILL = fill  # which that version did not know
    before = saved_state(BEFORE, "model_0000002.pth")
    if "FLOAT32_PRECISION" in cfg:
        pytest.skip("the run was begun with Detectron2 0.5, whose keys and parameters differ")
    assert check_output_dir(cfg, resume=False, overwrite=False) is True
    seed_all_rng(cfg.SEED)
    trainer = PretrainTrainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == DONE
    trainer.train()
    after = saved_state(tmp_path / "output")
    assert after.keys() >= {name for name in before if not name.startswith("/trainer/hooks")}
    assert before["/model/queue.num_enqueued"] == DONE * BATCH
    assert after["/model/queue.num_enqueued"] == IN_ALL * BATCH
    assert after["/trainer/iteration"] == IN_ALL - 1
    learnt = [n for n in before if n.startswith("/model/query_encoder") and n.endswith("weight")]
    assert len(learnt) > 50
    assert all((before[name] != after[name]).any() for name in learnt)
    assert all(after[name].isfinite().all() for name in after)


def test_a_run_of_an_earlier_version_is_not_another_one(cfg):
    cfg.SOLVER.BASE_LR *= 2
    with pytest.raises(ValueError) as raised:
        check_output_dir(cfg, resume=False, overwrite=False)
    differs = [line for line in str(raised.value).splitlines() if line.startswith("  ")]
    differs = [line for line in differs if "None there" not in line and "None now" not in line]
    assert [line.split(":")[0].strip() for line in differs] == ["SOLVER.BASE_LR"]

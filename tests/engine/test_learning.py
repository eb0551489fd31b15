"""A short run learns: every term leaves chance, and no head collapses."""

import math

import pytest

from detco_d2.data.synthetic import register_scenes, write_scenes
from detco_d2.engine.pretrain import PretrainTrainer
from detco_d2.evaluation.report import summarise_pretraining

from ..conftest import load_config


@pytest.mark.slow
def test_all_twelve_terms_leave_chance_on_rendered_scenes(tmp_path):
    write_scenes(str(tmp_path), "train", 300, seed=0)
    cfg = load_config(
        "demo/detco_R_18.yaml",
        *["DATASETS.TRAIN", (register_scenes(str(tmp_path), "train"),)],
        *["MODEL.DETCO.QUEUE_LENGTH", 128, "OUTPUT_DIR", str(tmp_path)],
    )
    trainer = PretrainTrainer(cfg)
    trainer.train()
    histories = {
        name: [value for value, _ in history.values()]
        for name, history in trainer.storage.histories().items()
        if "/" in name
    }
    summary = summarise_pretraining(histories, 128)
    assert summary["chance_loss"] == math.log(129)
    losses = {term: row["loss"] for term, row in summary["terms"].items()}
    assert len(losses) == 12
    assert max(losses.values()) < math.log(129) - 0.1, losses
    assert min(summary["spread"].values()) > 0.3, summary["spread"]

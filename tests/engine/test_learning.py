"""A short run learns: every term leaves chance, and no head collapses."""

import math
import statistics

import pytest

from detco_d2.data.synthetic import register_scenes, write_scenes
from detco_d2.engine.pretrain import PretrainTrainer

from ..conftest import load_config


@pytest.mark.slow
def test_all_twelve_terms_leave_chance_on_rendered_scenes(tmp_path):
    write_scenes(str(tmp_path), "train", 300, seed=0)
    settings = ["DATASETS.TRAIN", (register_scenes(str(tmp_path), "train"),)]
    settings += ["MODEL.DETCO.QUEUE_LENGTH", 128, "OUTPUT_DIR", str(tmp_path)]
    trainer = PretrainTrainer(load_config("demo/detco_R_18.yaml", *settings))
    trainer.train()
    last = {
        name: statistics.mean(value for value, _ in history.values()[-50:])
        for name, history in trainer.storage.histories().items()
    }
    losses = {name: value for name, value in last.items() if name.startswith("info_nce/")}
    spreads = {name: value for name, value in last.items() if name.startswith("spread/")}
    assert len(losses) == 12 and len(spreads) == 8
    assert max(losses.values()) < math.log(129) - 0.1, losses
    assert min(spreads.values()) > 0.3, spreads

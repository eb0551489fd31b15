"""The report says what was measured."""

import json
import math

import numpy as np
import pytest

from detco_d2.evaluation.report import summarise_pretraining, summarise_transfer, write_report

RUNS = [
    {"init": "random", "seed": 0, "AP": 10.0, "AP50": 30.0, "AP75": 5.0},
    {"init": "DetCo", "seed": 0, "AP": 14.0, "AP50": 40.0, "AP75": 6.0},
    {"init": "random", "seed": 1, "AP": 12.0, "AP50": 34.0, "AP75": 7.0},
]
HISTORIES = {
    "info_nce/gg_res5": [6.0] * 30 + [4.0] * 50,
    "top1/gg_res5": [0.0] * 30 + [0.5] * 50,
    "spread/global_res5": [1.0] * 30 + [0.7] * 50,
}


def test_terms_are_means_of_the_last_50_iterations_beside_chance():
    summary = summarise_pretraining(HISTORIES, queue_length=255)
    assert summary["terms"] == {"gg_res5": {"loss": 4.0, "top1": 0.5}}
    assert summary["spread"] == {"global_res5": pytest.approx(0.7)}
    assert summary["chance_loss"] == pytest.approx(math.log(256))
    assert summary["chance_top1"] == 1 / 256


def test_transfer_is_mean_and_sample_deviation_over_seeds():
    table = summarise_transfer(RUNS)
    assert table["random"]["AP"] == pytest.approx({"mean": 11.0, "std": math.sqrt(2), "n": 2})
    assert table["DetCo"]["AP50"] == {"mean": 40.0, "std": None, "n": 1}


def test_the_three_files_are_written_and_say_the_same(tmp_path):
    report = {
        "description": "a test",
        "command": "python tools/demo.py",
        "transfer": summarise_transfer(RUNS),
        "runs": RUNS,
        "pretraining": summarise_pretraining(HISTORIES, 255),
        "seconds": {"pretraining": 12.0},
        "versions": {"torch": "2"},
    }
    picture = np.zeros((20, 30, 3), np.uint8)
    text = write_report(str(tmp_path), report, HISTORIES, picture, [picture])
    assert "| random | 11.0 ± 1.4 | 32.0 ± 2.8 | 6.0 ± 1.4 | 2 |" in text
    assert "| DetCo | 14.0 | 40.0 | 6.0 | 1 |" in text
    assert "| gg_res5 | 4.000 | 50.0 |" in text
    assert (tmp_path / "report.md").read_text() == text
    assert json.loads((tmp_path / "report.json").read_text())["runs"] == RUNS
    assert (tmp_path / "report.png").read_bytes()[:4] == b"\x89PNG"

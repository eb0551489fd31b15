"""The report says what was measured."""

import json
import math

import pytest

from detco_d2.reports.transfer_summary import summarise_transfer, write_report

RUNS = [
    {"init": "random", "seed": 0, "AP": 10.0, "AP50": 30.0, "AP75": 5.0},
    {"init": "DetCo", "seed": 0, "AP": 14.0, "AP50": 40.0, "AP75": 6.0},
    {"init": "random", "seed": 1, "AP": 12.0, "AP50": 34.0, "AP75": 7.0},
]


def test_transfer_is_mean_and_sample_deviation_over_seeds():
    table = summarise_transfer(RUNS)
    assert table["random"]["AP"] == pytest.approx({"mean": 11.0, "std": math.sqrt(2), "n": 2})
    assert table["DetCo"]["AP50"] == {"mean": 40.0, "std": None, "n": 1}


def test_the_text_and_the_file_say_the_same(tmp_path):
    report = {
        "description": "a test",
        "command": "python tools/demo.py",
        "transfer": summarise_transfer(RUNS),
        "runs": RUNS,
        "seconds": {"pretraining": 12.0},
    }
    text = write_report(str(tmp_path), report)
    assert "| random | 11.0 ± 1.4 | 32.0 ± 2.8 | 6.0 ± 1.4 | 2 |" in text
    assert "| DetCo | 14.0 | 40.0 | 6.0 | 1 |" in text
    assert "pretraining 12 s" in text
    assert json.loads((tmp_path / "report.json").read_text()) == report

"""tools/check_gpu.py: its checks, small, and what a failure does."""

import json
import math
import sys

import pytest

from detco_d2.modeling.detco import DetCo

from . import warm
from .conftest import ROOT, load_tool


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(f"{ROOT}/tools")
    return load_tool("check_gpu")


@pytest.mark.slow
def test_all_checks_pass_on_the_cpu(tmp_path):
    words = [sys.executable, "tools/check_gpu.py", "--device", "cpu"]
    done = warm.run([*words, "--output", str(tmp_path / "found.json")], timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((tmp_path / "found.json").read_text())["checks"]
    found = {row["check"]: float(row["found"]) for row in rows}
    same = [name for name in found if name.startswith(("float32,", "10 + "))]
    assert len(same) == 8 and all(found[name] == 0 for name in same)
    assert [v for k, v in found.items() if "exit code" in k] == [0, 143, 0, 143, 0]


def test_a_state_that_is_not_put_back_fails_its_check(tool, monkeypatch, scenes, tmp_path):
    checks = tool.Checks("cpu", tmp_path)
    checks.photos = f"{scenes}/train"
    tool.views(checks)
    tool.undoing(checks)
    monkeypatch.setattr(DetCo, "undo_step", lambda self: None)
    tool.undoing(checks)
    assert [row["result"] for row in checks.rows] == ["pass", "pass", "FAIL"]


def test_a_check_that_fails_or_breaks_ends_with_1_and_a_missed_aim_does_not(
    tool, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["check_gpu.py", "--device", "cpu"])
    outcomes = {}
    for found in (1.0, 3.0, math.nan):
        note = lambda checks: checks.note("a number", found, 0, 2)  # noqa: B023, E731
        monkeypatch.setattr(tool, "check_all", note)
        with pytest.raises(SystemExit) as end:
            tool.main()
        (row,) = json.loads((tmp_path / "check_gpu.json").read_text())["checks"]
        outcomes[str(found)] = end.value.code, row["result"]
    assert outcomes == {"1.0": (0, "pass"), "3.0": (1, "FAIL"), "nan": (1, "FAIL")}

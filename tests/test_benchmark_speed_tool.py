"""tools/benchmark_speed.py: its tables, from one process and from two."""

import json
import sys

import pytest

from . import warm
from .conftest import TINY

SETTINGS = [str(value) for value in TINY]


def run(*arguments, launcher=()):
    words = [sys.executable, "-W", "ignore", *launcher, "tools/benchmark_speed.py"]
    words += ["--config-file", "configs/detco.yaml", "--batch", "2", "--repeats", "1"]
    done = warm.run([*words, *arguments])
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def rows(output, title):
    """Name -> (milliseconds, images/s, ratio) of the table below a title."""
    lines = output[output.index(title) :].split("\n\n")[0].splitlines()[2:]
    table = {}
    for line in lines:
        if not line.startswith("peak memory"):
            median, _, rate, ratio = map(float, line[34:].split())
            table[line[:34].strip()] = (median, rate, ratio)
    return table


def test_one_run_gives_the_step_its_parts_the_data_and_a_trace(scenes, tmp_path):
    output = run(
        *["--plain", "--switches", "--against", "configs/moco_v2.yaml"],
        *["--images", f"{scenes}/train", "--num-images", "4", "--trace", f"{tmp_path}/trace.json"],
        *SETTINGS,
    )
    step = rows(output, "Step, float32, batch 2")
    for name in ("step", "plain step in float32", "without fused loss", "step of moco_v2.yaml"):
        median, rate, ratio = step[name]
        assert rate == pytest.approx(2000 / median, rel=0.02)
        assert ratio == pytest.approx(median / step["bare encoders"][0], rel=0.02)
    parts = rows(output, "Parts, each alone")
    assert {"query forward + backward", "key forward", "queue", "momentum encoder"} <= parts.keys()
    assert parts["augment on the device"][0] > 0
    assert parts["losses forward + backward"][0] < parts["query forward + backward"][0]
    assert parts["the same, watched closely"][0] > 0
    views = rows(output, "Data on one core")
    assert set(views) == {
        "decoding alone",
        *(f"views, {k}" for k in ("pil", "exact", "fast", "device")),
    }
    assert "peak memory after one step" in output
    names = {
        event.get("name")
        for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    }
    assert "aten::convolution" in names


def test_two_processes_also_show_what_they_exchange():
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    output = run(*SETTINGS, launcher=launcher)
    parts = rows(output, "Parts, each alone")
    assert parts["gather of keys"][0] > 0 and parts["shuffle of key images"][0] > 0
    assert output.count("Parts, each alone") == 1  # the first process alone speaks

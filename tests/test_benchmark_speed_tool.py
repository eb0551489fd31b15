"""tools/benchmark_speed.py: its tables."""

import re
import sys

import pytest

from . import warm
from .conftest import TINY


def run(*arguments):
    words = [sys.executable, "-W", "ignore", "tools/benchmark_speed.py"]
    words += ["--config-file", "configs/detco.yaml", "--batch", "2", "--repeats", "1"]
    done = warm.run([*words, *arguments, *map(str, TINY)])
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def rows(output, title):
    """Name -> (milliseconds, images/s, ratio) of the table below a title."""
    table = {}
    for line in output[output.index(title) :].splitlines()[3:]:
        name, *numbers = re.split(r"\s{2,}", line.strip())
        if len(numbers) != 4:
            break
        median, _, rate, ratio = map(float, numbers)
        table[name] = (median, rate, ratio)
    return table


def test_one_run_gives_the_step_and_the_bare_encoders():
    output = run("--plain")
    step = rows(output, "Step, float32, batch 2")
    assert set(step) == {"bare encoders", "query", "step", "plain step in float32"}
    for name in ("step", "plain step in float32"):
        median, rate, ratio = step[name]
        assert rate == pytest.approx(2000 / median, rel=0.02)
        assert ratio == pytest.approx(median / step["bare encoders"][0], rel=0.02)
    assert "peak memory after one step" in output


@pytest.mark.slow
def test_compiled_encoders_are_timed_beside_the_others():
    step = rows(run("--compile", "default"), "Step, float32, batch 2")
    assert set(step) == {"bare encoders", "query", "step", "step, compiled: default"}


def test_another_run_gives_the_views_of_each_kind(scenes):
    views = rows(run("--images", f"{scenes}/train", "--num-images", "4"), "Data on one core")
    assert set(views) == {"decoding alone", "views, pil", "views, fast", "views, device"}

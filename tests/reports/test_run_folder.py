"""The output folder of a run is read, whatever state it is in."""

import json
import math
import re

import pytest

from detco_d2.config_files import flatten
from detco_d2.reports.run_folder import (
    Run,
    health,
    latest,
    read_config,
    read_json,
    read_scalars,
    read_warnings,
)


def test_of_an_iteration_that_was_written_twice_the_later_line_stands(tmp_path):
    lines = [{"iteration": i, "lr": 0.1} for i in (19, 39, 59)]
    lines += [{"iteration": i, "lr": 0.2} for i in (39, 59, 79)]  # resumed from 20
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    curve = read_scalars(tmp_path / "metrics.json")["lr"]
    assert curve == [(19, 0.1), (39, 0.2), (59, 0.2), (79, 0.2)]


def test_half_lines_foreign_lines_and_foreign_values_are_left_out(tmp_path):
    lines = [
        *('{"iteration": 0, "lr": 1.0, "name": "x", "flag": true}', "[1, 2]", "", "7"),
        *('{"lr": 9.0}', '{"iteration": "1", "lr": 9.0}', '{"iteration": 1, "lr": NaN}'),
        '{"iteration": 2, "lr',
    ]
    (tmp_path / "metrics.json").write_bytes("\n".join(lines).encode() + b"\xff")
    curves = read_scalars(tmp_path / "metrics.json")
    assert list(curves) == ["lr"] and curves["lr"][0] == (0, 1.0)
    assert len(curves["lr"]) == 2 and math.isnan(curves["lr"][1][1])


def test_a_folder_of_runs_is_no_run_and_the_error_names_them(tmp_path):
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "metrics.json").touch()
    with pytest.raises(FileNotFoundError, match="there are runs in .*pretrain"):
        read_scalars(tmp_path / "metrics.json")


def test_warnings_are_counted_the_latest_last(tmp_path):
    (tmp_path / "log.txt").write_text(
        "[11/24 22:18:05] detco_d2.a WARNING: disk\n[11/24 22:18:06] detco_d2.a INFO: fine\n"
        "[11/24 22:18:07] detco_d2.b ERROR: no checkpoint\n"
        "  WARNING: within a text\n[11/24 22:18:08] detco_d2.a WARNING: disk\n"
    )
    assert read_warnings(tmp_path / "log.txt") == [("no checkpoint", 1), ("disk", 2)]
    assert read_warnings(tmp_path / "none.txt") == []


def test_config_keys_are_flat_and_yaml_makes_no_objects(tmp_path):
    (tmp_path / "config.yaml").write_text("A:\n  B: 1\n  C: [x]\n")
    assert read_config(tmp_path / "config.yaml")[1] == {"A.B": 1, "A.C": ["x"]}
    assert dict(flatten({"A": {"C": ("x",)}})) == {"A.C": ["x"]}
    for text in ("a: !!python/object/apply:os.getcwd []", "a: [", "- just a list"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ValueError, match="config.yaml"):
            read_config(tmp_path / "config.yaml")
    with pytest.raises(FileNotFoundError, match="not the output folder"):
        read_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("content", [None, "", "{", "[" * 100_000])
def test_json_that_cannot_be_read_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    assert read_json(tmp_path / "a.json") is None


def test_the_latest_value_is_a_median_and_nan_where_one_is():
    assert latest([(i, y) for i, y in enumerate([9.0, 9.0, 1.0, 3.0, 2.0, 100.0, 2.0])]) == 2.0
    assert math.isnan(latest([(0, 1.0), (1, math.nan)]))


def run(tmp_path, **last) -> Run:
    values = {"info_nce/gg_res5": 3.0, "top1/gg_res5": 0.5, "spread/global_res5": 0.9, **last}
    curves = {name.replace("__", "/"): [(19, value)] for name, value in values.items()}
    return Run(tmp_path, curves, ("", {"MODEL.DETCO.QUEUE_LENGTH": 255}))


def test_a_healthy_run_has_nothing_against_it(tmp_path):
    good, bad = health(run(tmp_path))
    assert bad == [] and "global-global at res5: 50.0 %, chance is 0.39 %" in good[0]


@pytest.mark.parametrize(
    "scalars, sign",
    [
        ({"info_nce/gg_res5": math.nan}, "no finite numbers, in info_nce/gg_res5"),
        ({"info_nce/gg_res5": math.log(256)}, "at chance, log.K.1., or above: gg_res5"),
        ({"top1/gg_res5": 1 / 256}, "Top-1 of global-global at res5: 0.4 %"),
        ({"spread/global_res5": 0.02}, "0.02, global_res5: collapsed"),
        ({"data_time_share": 0.5}, "50 % of the time"),
        ({"data/bad_images": 3.0}, "3 images could not be read"),
    ],
)
def test_each_thing_that_is_wrong_is_said(tmp_path, scalars, sign):
    _, bad = health(run(tmp_path, **scalars))
    assert len(bad) == 1 and re.search(sign, bad[0])

"""The output folder of a run is read, whatever state it is in."""

import json
import math

import pytest

from detco_d2.config_files import flatten
from detco_d2.reports.run_folder import read_config, read_json, read_scalars, read_warnings


def test_of_an_iteration_that_was_written_twice_the_later_line_stands(tmp_path):
    lines = [{"iteration": i, "lr": 0.1} for i in (19, 39, 59)]
    lines += [{"iteration": i, "lr": 0.2} for i in (39, 59, 79)]  # resumed from 20
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    curve = read_scalars(tmp_path / "metrics.json")["lr"]
    assert curve == [(19, 0.1), (39, 0.2), (59, 0.2), (79, 0.2)]


def test_half_lines_foreign_lines_and_foreign_values_are_left_out(tmp_path):
    lines = ['{"iteration": 0, "lr": 1.0, "name": "x", "flag": true}', "[1, 2]", "", "7"]
    lines += ['{"lr": 9.0}', '{"iteration": "1", "lr": 9.0}', '{"iteration": 1, "lr": NaN}']
    lines.append('{"iteration": 2, "lr')
    (tmp_path / "metrics.json").write_bytes("\n".join(lines).encode() + b"\xff")
    curves = read_scalars(tmp_path / "metrics.json")
    assert list(curves) == ["lr"] and curves["lr"][0] == (0, 1.0)
    assert len(curves["lr"]) == 2 and math.isnan(curves["lr"][1][1])


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

"""Writing a file whole or not at all."""

import io
import json
import math

import pytest

from detco_d2.files import StrictLines, at_home, replacing


def test_a_file_is_replaced_whole_and_an_error_leaves_the_old_one_alone(tmp_path):
    file = tmp_path / "results.json"
    file.write_text("old")
    with pytest.raises(OSError, match="disk full"), replacing(file) as part:
        part.write_text("half")
        raise OSError("disk full")
    with replacing(str(file)) as part:
        part.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_home_is_written_out_where_a_path_begins_and_nowhere_else(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for text, expected in {
        "~/a": "/home/me/a",
        "~": "/home/me",
        "voc_test_1_seed0@~/voc": "voc_test_1_seed0@/home/me/voc",
        "x=~/a.pth": "x=/home/me/a.pth",
        """("~/a", '~/b',)""": """("/home/me/a", '/home/me/b',)""",
        "/a~/b": "/a~/b",
        "/data/~/b": "/data/~/b",
        "~nobody_of_that_name/a": "~nobody_of_that_name/a",
    }.items():
        assert at_home(text) == expected
    assert at_home(("~/a", 3)) == ("/home/me/a", 3)


def test_what_is_no_number_is_null_in_a_line_of_json():
    file = io.StringIO()
    StrictLines(file).write(json.dumps({"AP": math.nan, "loss": math.inf, "lr": 0.5}) + "\n")
    assert file.getvalue() == '{"AP": null, "loss": null, "lr": 0.5}\n'

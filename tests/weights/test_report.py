"""The load report: what was wanted, found, missing, of another shape, and left over."""

import torch

from detco_d2.weights.report import load_report

WANTED = {
    "stem.conv1.weight": torch.zeros(2),
    "res2.0.conv1.weight": torch.zeros(2, 2),
    "res2.0.conv2.weight": torch.zeros(2, 2),
    "res5.0.conv1.weight": torch.zeros(3),
}


def rows(table):
    return {line.split()[0]: line.split()[1:] for line in table.splitlines()[1:5]}


def test_each_kind_of_difference_is_counted_and_named():
    found = {
        "stem.conv1.weight": torch.zeros(3),
        "res2.0.conv1.weight": torch.zeros(2, 2),
        "res5.0.conv1.weight": torch.zeros(3),
        "res5.0.se.weight": torch.zeros(1),
    }
    table = load_report(found, WANTED, {"fc.*": 2})
    assert rows(table)["stem"] == ["1", "0", "0", "1", "0.0", "%"]
    assert rows(table)["res2"] == ["2", "1", "1", "0", "50.0", "%"]
    assert rows(table)["all"] == ["4", "2", "1", "1", "50.0", "%"]
    assert table.splitlines()[5:] == [
        "  other shape: stem.conv1.weight (3,), expected (2,)",
        "  missing: res2.0.conv2.weight (2, 2)",
        "  no place for: res5.0.se.weight (1,)",
        "not of the backbone, left: fc.* (2)",
    ]
    whole = load_report(WANTED, WANTED, {}).splitlines()
    assert len(whole) == 5 and whole[4].split() == ["all", "4", "4", "0", "0", "100.0", "%"]

"""What the benchmark counts, compares and writes."""

import doctest
import json
import math
import re

import pytest

from detco_d2.reports import benchmark
from detco_d2.reports.benchmark import Cell, Task, claim, plan, read_result
from detco_d2.reports.tables import differences, summarise, task_tables, write_report

TASKS = [
    Task("coco/mask_rcnn_R_50_FPN_12k", "a.yaml"),
    Task("coco/mask_rcnn_R_50_FPN_1x", "b.yaml"),
    Task("cityscapes/semantic_segmentation_R_50_FCN", "c.yaml"),
]


def write_cell(output, task, init, seed, results):
    folder = Cell(task, init, seed).folder(output)
    claim(folder, {"weights": init})
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results))


def boxes(*values):
    return {"bbox": dict(zip(("AP", "AP50", "AP75", "APs"), (*values, float("nan"))))}


@pytest.fixture
def half_run(tmp_path):
    """12k is done for both inits, 1x for DetCo's seed 0 alone, the FCN has begun."""
    for init, seed, values in (
        ("random", 0, (10.0, 20.0, 5.0)),
        ("random", 1, (12.0, 20.2, 5.0)),
        ("DetCo", 0, (11.0, 30.0, 6.0)),
        ("DetCo", 1, (13.0, 30.2, 6.0)),
    ):
        write_cell(tmp_path, TASKS[0], init, seed, boxes(*values))
    write_cell(tmp_path, TASKS[1], "DetCo", 0, boxes(39.5, 60.3, 43.1))
    write_cell(tmp_path, TASKS[2], "random", 0, None)
    return tmp_path, [read_result(c, tmp_path) for c in plan(TASKS, ("random", "DetCo"), 2, "0/1")]


def test_the_examples_in_docstrings_hold():
    assert doctest.testmod(benchmark).failed == 0


def test_shards_run_every_cell_once():
    whole = plan(TASKS, ("random", "DetCo"), 3, "0/1")
    assert len(whole) == len(set(whole)) == 18
    parts = [cell for i in range(4) for cell in plan(TASKS, ("random", "DetCo"), 3, f"{i}/4")]
    assert sorted(map(repr, parts)) == sorted(map(repr, whole))
    assert {cell.seed for cell in whole[:6]} == {0}  # the first table needs one seed alone


def test_nothing_predicted_counts_as_zero_and_stays_in_the_mean(tmp_path):
    write_cell(tmp_path, TASKS[0], "random", 0, boxes(*3 * [math.nan]))
    write_cell(tmp_path, TASKS[0], "random", 1, boxes(4.0, 8.0, 2.0))
    results = [read_result(Cell(TASKS[0], "random", seed), tmp_path) for seed in (0, 1)]
    row = summarise(results)[TASKS[0].name]["random"]
    assert row["bbox/AP"] == {"mean": 2.0, "std": pytest.approx(math.sqrt(8)), "n": 2}
    assert set(row) == {"bbox/AP", "bbox/AP50", "bbox/AP75"}


def runs_of(**rows):
    """Results of one task: for each row its value by seed, None where a run is not done."""
    return [
        {"task": "t", "init": init, "seed": seed, "metrics": {} if v is None else {"bbox/AP": v}}
        for init, values in rows.items()
        for seed, v in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("values", "cell"),
    [
        ((11.0, 22.0, 33.0), "+2.0 (-0.5 to +4.5)"),  # 4.303 * 1 / sqrt(3) to each side
        ((12.0, 22.1, 32.2), "**+2.1 (+1.9 to +2.3)**"),  # as unequal as the rows are
        ((7.9, 17.8, 28.0), "**-2.1 (-2.3 to -1.9)**"),
        ((12.0, None, 32.4), "+2.2 (-0.3 to +4.7)"),  # 12.706 * 0.2
        ((12.0,), "+2.0"),
        ((None, None, None, 9.0), "-"),  # no seed in common
    ],
)
def test_runs_of_a_seed_are_pairs_and_a_difference_is_bold_if_its_interval_excludes_0(values, cell):
    results = runs_of(random=(10.0, 20.0, 30.0), DetCo=values)
    (_, *row), *_ = task_tables(results)[0]["rows"]
    pairs = sum(value is not None for value in values[:3])
    assert row == ([str(pairs), cell] if pairs else [str(pairs)])


def test_every_row_is_compared_with_every_other():
    rows = differences({name: {"AP": {0: value}} for name, value in (("a", 1), ("b", 2), ("c", 4))})
    means = {name: row["AP"]["mean"] for name, row in rows.items()}
    assert means == {"b - a": 1, "c - a": 3, "c - b": 2}
    assert [each["header"][0] for each in task_tables(runs_of(alone=(1.0, 2.0)))] == ["t, %"]


def test_tables_and_files_say_what_came_out_and_what_is_missing(half_run):
    output, results = half_run
    text = write_report(output, results, "benchmark")
    assert (output / "results.md").read_text() == text
    content = json.loads((output / "results.json").read_text())
    assert content["summary"][TASKS[0].name]["DetCo"]["bbox/AP"]["mean"] == 12.0
    assert content["runs"] == results
    assert not list(output.glob(".*"))  # nothing half-written stays
    text = re.sub(" +", " ", text)  # without the blanks that make columns equally wide
    for line in (
        "| coco/mask_rcnn_R_50_FPN_12k, % | runs | bbox/AP | bbox/AP50 | bbox/AP75 |",
        "| random | 2 | 11.0 ± 1.4 | 20.1 ± 0.1 | 5.0 ± 0.0 |",
        "| DetCo | 2 | 12.0 ± 1.4 | 30.1 ± 0.1 | 6.0 ± 0.0 |",
        "| coco/mask_rcnn_R_50_FPN_12k, difference | pairs | bbox/AP | bbox/AP50 | bbox/AP75 |",
        "| DetCo - random | 2 | **+1.0 (+1.0 to +1.0)** | **+10.0 (+10.0 to +10.0)** | **+1.0 (",
        "| random | 0 | - | - | - |",
        "| DetCo | 1 | 39.5 | 60.3 | 43.1 |",
        "- cityscapes/semantic_segmentation_R_50_FCN, random, seed 0: not finished",
        "- coco/mask_rcnn_R_50_FPN_1x, random, seed 0: not started",
        "5 of 12 runs are done",
    ):
        assert line in text, line


def test_a_report_of_nothing_is_a_report(tmp_path):
    results = [read_result(cell, tmp_path) for cell in plan(TASKS, ("random",), 1, "0/1")]
    assert "0 of 3 runs are done" in write_report(tmp_path, results, "benchmark")

"""What the benchmark counts, compares and writes."""

import doctest
import json
import math
import re

import pytest

from detco_d2.reports import benchmark
from detco_d2.reports.benchmark import (
    Cell,
    Task,
    claim,
    difference,
    mean_and_std,
    plan,
    read_result,
    summarise,
)
from detco_d2.reports.tables import markdown, read_published, write_report

TASKS = [
    Task("coco/mask_rcnn_R_50_FPN_12k", "a.yaml"),
    Task("coco/mask_rcnn_R_50_FPN_1x", "b.yaml"),
    Task("cityscapes/semantic_segmentation_R_50_FCN", "c.yaml"),
]
OPTIONS = dict(seeds=2, baseline="random", published=False, command="benchmark")


def write_cell(output, task, init, seed, results, lines=()):
    folder = Cell(task, init, seed).folder(output)
    claim(folder, {"weights": init})
    (folder / "metrics.json").write_text("\n".join(lines))
    if results is not None:
        (folder / "results.json").write_text(json.dumps(results))


CURVE = ('{"iteration": 9, "bbox/AP": 1.0}',)


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
        write_cell(tmp_path, TASKS[0], init, seed, boxes(*values), CURVE)
    write_cell(tmp_path, TASKS[1], "DetCo", 0, boxes(39.5, 60.3, 43.1))
    write_cell(tmp_path, TASKS[2], "random", 0, None)
    return tmp_path, [read_result(c, tmp_path) for c in plan(TASKS, ("random", "DetCo"), 2, "0/1")]


def test_tasks_of_one_group_share_a_table_and_schedules_are_its_columns():
    assert TASKS[1].group_and_column == ("coco/mask_rcnn_R_50_FPN", "1x")
    assert TASKS[2].group_and_column == (TASKS[2].name, "")
    low = Task("coco_low_data/retinanet_R_50_FPN_10percent_12k", "")
    assert low.group_and_column == ("coco_low_data/retinanet_R_50_FPN", "10percent")


def test_the_examples_in_docstrings_hold():
    assert doctest.testmod(benchmark).failed == 0


def test_shards_run_every_cell_once():
    whole = plan(TASKS, ("random", "DetCo"), 3, "0/1")
    assert len(whole) == len(set(whole)) == 18
    parts = [cell for i in range(4) for cell in plan(TASKS, ("random", "DetCo"), 3, f"{i}/4")]
    assert sorted(map(repr, parts)) == sorted(map(repr, whole))
    assert {cell.seed for cell in whole[:6]} == {0}  # the first table needs one seed alone


def test_nothing_predicted_counts_as_zero_and_stays_in_the_mean(tmp_path):
    nan = float("nan")
    write_cell(tmp_path, TASKS[0], "random", 0, boxes(nan, nan, nan))
    write_cell(tmp_path, TASKS[0], "random", 1, boxes(4.0, 8.0, 2.0))
    results = [read_result(Cell(TASKS[0], "random", seed), tmp_path) for seed in (0, 1)]
    row = summarise(results)[TASKS[0].name]["random"]
    assert row["bbox/AP"] == {"mean": 2.0, "std": pytest.approx(math.sqrt(8)), "n": 2}
    assert set(row) == {"bbox/AP", "bbox/AP50", "bbox/AP75"}


@pytest.mark.parametrize(
    ("values", "is_difference"), [((10.0, 10.5), True), ((9.0, 12.0), False), ((10.2,), None)]
)
def test_only_beyond_two_standard_deviations_is_a_difference(values, is_difference):
    delta, verdict = difference(mean_and_std(values), mean_and_std((8.0, 8.5)))
    assert delta == pytest.approx(sum(values) / len(values) - 8.25)
    assert verdict is is_difference


def tables(results, **options) -> str:
    """The Markdown without the blanks that make its columns equally wide."""
    return re.sub(" +", " ", markdown(TASKS, results, **{**OPTIONS, **options}))


def test_the_tables_have_the_papers_shape_and_say_what_is_missing(half_run):
    text = tables(half_run[1])
    header = "12k box AP / AP50 / AP75 | 1x box AP / AP50 / AP75"
    assert f"| coco/mask_rcnn_R_50_FPN | {header} |" in text
    assert "| random | 11.0 ± 1.4 / 20.1 ± 0.1 / 5.0 ± 0.0 | - |" in text
    assert "| 39.5 / 60.3 / 43.1 (n = 1) |" in text
    assert "| DetCo | +1.0 / **+10.0** / **+1.0** | - |" in text
    assert "- cityscapes/semantic_segmentation_R_50_FCN, random, seed 0: not finished" in text
    assert "- coco/mask_rcnn_R_50_FPN_1x, random, seed 0: not started" in text
    assert "5 of 12 runs are done" in text
    assert "(paper)" not in text


def test_the_papers_figures_are_marked_as_the_papers(half_run):
    text = tables(half_run[1], published=True)
    assert "| *DetCo (paper)* | *27.9 / 46.9 / 29.3* | *39.5 / 60.3 / 43.1* |" in text
    assert "are figures of the paper, not of these runs" in text


def test_published_figures_are_there_for_every_protocol():
    figures = read_published()
    assert len(figures) == 21
    assert figures["voc/faster_rcnn_R_50_C4_24k"]["DetCo"] == {"bbox": [57.8, 82.6, 64.2]}
    assert figures["cityscapes/semantic_segmentation_R_50_FCN"]["DetCo"] == {"sem_seg": [76.5]}
    low = figures["coco_low_data/mask_rcnn_R_50_FPN_1percent_12k"]["DetCo+AA"]
    assert low == {"bbox": [12.4, 23.5, 11.8], "segm": [12.1]}


def test_all_files_say_the_same(half_run):
    output, results = half_run
    text = write_report(output, TASKS, results, **OPTIONS)
    assert (output / "results.md").read_text() == text
    content = json.loads((output / "results.json").read_text())
    assert content["summary"][TASKS[0].name]["DetCo"]["bbox/AP"]["mean"] == 12.0
    assert [run["status"] for run in content["runs"]].count("done") == 5
    assert content["runs"] == json.loads(json.dumps(results))
    assert content["runs"][0]["curve"] == {"bbox/AP": [[9, 1.0]]}
    assert (output / "bars.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(output.glob(".*"))  # nothing half-written stays


def test_a_report_of_nothing_is_a_report(tmp_path):
    results = [read_result(cell, tmp_path) for cell in plan(TASKS, ("random",), 1, "0/1")]
    assert "0 of 3 runs are done" in write_report(tmp_path, TASKS, results, **OPTIONS)

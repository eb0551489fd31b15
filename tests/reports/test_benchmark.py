"""What the benchmark counts, compares and writes."""

import csv
import json
import math

import pytest

from detco_d2.reports.benchmark import (
    Cell,
    Task,
    check_claim,
    claim,
    difference,
    mean_and_std,
    plan,
    read_result,
    summarise,
    with_seed,
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
        *[("random", 0, (10.0, 20.0, 5.0)), ("random", 1, (12.0, 20.2, 5.0))],
        *[("DetCo", 0, (11.0, 30.0, 6.0)), ("DetCo", 1, (13.0, 30.2, 6.0))],
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


def test_shards_run_every_cell_once():
    whole = plan(TASKS, ("random", "DetCo"), 3, "0/1")
    assert len(whole) == len(set(whole)) == 18
    parts = [cell for i in range(4) for cell in plan(TASKS, ("random", "DetCo"), 3, f"{i}/4")]
    assert sorted(map(repr, parts)) == sorted(map(repr, whole))
    assert {cell.seed for cell in whole[:6]} == {0}  # the first table needs one seed alone


@pytest.mark.parametrize("shard", ["4/4", "1", "a/b", "-1/2"])
def test_an_impossible_shard_is_refused(shard):
    with pytest.raises(ValueError, match="0 <= i < n"):
        plan(TASKS, ("random",), 1, shard)


def test_every_seed_draws_its_own_subset():
    names = ("coco_2017_train_1percent_seed0", "voc_trainval_0.2_seed0@/data/bccd", "coco_2017_val")
    assert with_seed(names, 3) == (
        "coco_2017_train_1percent_seed3",
        "voc_trainval_0.2_seed3@/data/bccd",
        "coco_2017_val",
    )


def test_a_folder_of_other_settings_is_refused_by_what_differs(tmp_path):
    claim(tmp_path / "cell", {"SOLVER.MAX_ITER": 100, "weights": "a"})
    claim(tmp_path / "cell", {"SOLVER.MAX_ITER": 100, "weights": "a"})
    for begin in (check_claim, claim):
        with pytest.raises(ValueError, match=r"SOLVER.MAX_ITER: 100 there, 200 now") as error:
            begin(tmp_path / "cell", {"SOLVER.MAX_ITER": 200, "weights": "a"})
        assert "weights" not in str(error.value)


def test_checking_a_folder_does_not_begin_it(tmp_path):
    check_claim(tmp_path / "cell", {"weights": "a"})
    assert not list(tmp_path.iterdir())


def test_a_cell_is_done_when_its_results_are_there(half_run):
    status = {(r["task"], r["init"], r["seed"]): r["status"] for r in half_run[1]}
    assert status[TASKS[0].name, "random", 1] == "done"
    assert status[TASKS[1].name, "random", 0] == "not started"
    assert status[TASKS[2].name, "random", 0] == "not finished"


def test_nothing_predicted_counts_as_zero_and_stays_in_the_mean(tmp_path):
    nan = float("nan")
    write_cell(tmp_path, TASKS[0], "random", 0, boxes(nan, nan, nan))
    write_cell(tmp_path, TASKS[0], "random", 1, boxes(4.0, 8.0, 2.0))
    results = [read_result(Cell(TASKS[0], "random", seed), tmp_path) for seed in (0, 1)]
    row = summarise(results)[TASKS[0].name]["random"]
    assert row["bbox/AP"] == {"mean": 2.0, "std": pytest.approx(math.sqrt(8)), "n": 2}
    assert set(row) == {"bbox/AP", "bbox/AP50", "bbox/AP75"}


def test_the_curve_survives_a_cut_and_a_resume(tmp_path):
    lines = ['{"iteration": 9, "bbox/AP": 1.0}', '{"iteration": 14, "total_loss": 2.0}']
    lines += ['{"iteration": 19, "bbox/AP": 2.0}', '{"iteration": 19, "bbox/AP": 3.0}', '{"itera']
    write_cell(tmp_path, TASKS[0], "random", 0, None, lines)
    curve = read_result(Cell(TASKS[0], "random", 0), tmp_path)["curve"]
    assert curve == {"bbox/AP": [[9, 1.0], [19, 3.0]]}


@pytest.mark.parametrize(
    ("values", "is_difference"), [((10.0, 10.5), True), ((9.0, 12.0), False), ((10.2,), None)]
)
def test_only_beyond_two_standard_deviations_is_a_difference(values, is_difference):
    delta, verdict = difference(mean_and_std(values), mean_and_std((8.0, 8.5)))
    assert delta == pytest.approx(sum(values) / len(values) - 8.25)
    assert verdict is is_difference


def test_the_tables_have_the_papers_shape_and_say_what_is_missing(half_run):
    text = markdown(TASKS, half_run[1], **OPTIONS)
    header = "12k box AP / AP50 / AP75 | 1x box AP / AP50 / AP75"
    assert f"| coco/mask_rcnn_R_50_FPN | {header} |" in text
    assert "| random | 11.0 ± 1.4 / 20.1 ± 0.1 / 5.0 ± 0.0 | - |" in text
    assert "| 39.5 / 60.3 / 43.1 (n = 1) |" in text
    assert "| DetCo | +1.0 / **+10.0** / **+1.0** | - |" in text
    assert "- cityscapes/semantic_segmentation_R_50_FCN, random, seed 0: not finished" in text
    assert "5 of 12 runs are done" in text
    assert "(paper)" not in text


def test_the_papers_figures_are_marked_as_the_papers(half_run):
    text = markdown(TASKS, half_run[1], **{**OPTIONS, "published": True})
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
    with open(output / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    done = [row for row in rows if row["status"] == "done"]
    assert len(done) == 5 * 3 and len(rows) == 5 * 3 + 7
    assert {"DetCo", "39.5000", "AP"} <= {v for row in done for v in row.values()}
    for name in ("bars.png", "curves.png"):
        assert (output / name).read_bytes()[:4] == b"\x89PNG"
    assert not list(output.glob(".*"))  # nothing half-written stays


def test_a_report_of_nothing_is_a_report(tmp_path):
    results = [read_result(cell, tmp_path) for cell in plan(TASKS, ("random",), 1, "0/1")]
    assert "0 of 3 runs are done" in write_report(tmp_path, TASKS, results, **OPTIONS)

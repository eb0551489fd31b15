"""The benchmark's report: results.json, results.csv, results.md, and two pictures."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from ..files import replacing
from .benchmark import METRICS, Task, difference, show, summarise

KIND_TITLES = {"bbox": "box", "segm": "mask", "keypoints": "keypoint", "sem_seg": "semantic"}
Summary = dict[str, dict[str, dict[str, Any]]]


def read_published() -> dict[str, dict[str, dict[str, list[float]]]]:
    """The paper's figures: {task: {method: {kind: [percent for each metric known]}}}."""
    figures: dict[str, dict[str, dict[str, list[float]]]] = {}
    with open(Path(__file__).with_name("published.csv"), newline="") as file:
        for row in csv.DictReader(file):
            kinds = figures.setdefault(row["task"], {}).setdefault(row["method"], {})
            kinds[row["kind"]] = [float(value) for value in row["percent"].split("/")]
    return figures


def _columns(tasks: Sequence[Task], summary: Summary) -> list[tuple[str, str, str, list[str]]]:
    """(task, column title, kind, names of the metrics) of one table, left to right."""
    columns = []
    for task in tasks:
        names = {name for row in summary.get(task.name, {}).values() for name in row}
        for kind, metrics in METRICS.items():
            present = [m for m in metrics if f"{kind}/{m}" in names]
            if present:
                title = f"{task.group_and_column[1]} {KIND_TITLES[kind]} {' / '.join(present)}"
                columns.append((task.name, title.strip(), kind, present))
    return columns


def _cell(row: dict[str, Any], kind: str, metrics: Sequence[str], seeds: int) -> str:
    found = [row.get(f"{kind}/{metric}") for metric in metrics]
    if found[0] is None:
        return "-"
    parts = [show(value) for value in found if value]
    missing = f" (n = {found[0]['n']})" if found[0]["n"] < seeds else ""
    return " / ".join(parts) + missing


def _difference_cell(
    row: dict[str, Any], base: dict[str, Any], kind: str, metrics: Sequence[str]
) -> str:
    parts = []
    for metric in metrics:
        ours, theirs = row.get(f"{kind}/{metric}"), base.get(f"{kind}/{metric}")
        if ours is None or theirs is None:
            return "-"
        delta, is_difference = difference(ours, theirs)
        parts.append(f"**{delta:+.1f}**" if is_difference else f"{delta:+.1f}")
    return " / ".join(parts)


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {title} | " + " | ".join(header) + " |", "|---" * (len(header) + 1) + "|"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def _group(
    title: str,
    members: Sequence[Task],
    columns: Sequence[tuple[str, str, str, list[str]]],
    summary: Summary,
    inits: Sequence[str],
    seeds: int,
    baseline: str,
    paper: dict[str, dict[str, dict[str, list[float]]]],
) -> list[str]:
    """The lines of one group's table and of its differences to the baseline."""
    header = [column for _, column, _, _ in columns]
    rows = [
        [init, *(_cell(summary[t].get(init, {}), k, m, seeds) for t, _, k, m in columns)]
        for init in inits
    ]
    for method in dict.fromkeys(m for task in members for m in paper.get(task.name, {})):
        figures = [paper.get(t, {}).get(method, {}).get(k, []) for t, _, k, _ in columns]
        texts = [" / ".join(f"{v:.1f}" for v in values) or "-" for values in figures]
        rows.append([f"*{method} (paper)*", *(f"*{text}*" for text in texts)])
    lines = _table(title, header, rows)
    base = {task: summary[task].get(baseline, {}) for task, *_ in columns}
    rows = [
        [init]
        + [_difference_cell(summary[t].get(init, {}), base[t], k, m) for t, _, k, m in columns]
        for init in inits
        if init != baseline
    ]
    return lines + (_table(f"difference to {baseline}", header, rows) if rows else [])


def markdown(
    tasks: Sequence[Task],
    results: Sequence[dict[str, Any]],
    seeds: int,
    baseline: str,
    published: bool,
    command: str,
) -> str:
    """The tables, in the paper's shapes: a group of tasks a table, initialisations as rows.

    Args:
        tasks: all tasks of the benchmark; those of one group share a table.
        results: of every cell, see :func:`read_result`.
        seeds: how many runs of each were asked for.
        baseline: the initialisation from which differences are shown.
        published: show the paper's figures beside, marked as such.
        command: what was run.
    """
    summary, paper = summarise(results), read_published() if published else {}
    inits = list(dict.fromkeys(result["init"] for result in results))
    done = sum(result["status"] == "done" for result in results)
    lines = ["# Transfer benchmark", "", f"Command: `{command}`", ""]
    lines += [
        f"{done} of {len(results)} runs are done. Mean ± standard deviation (of a sample) over "
        f"{seeds} seeds, in percent. A difference is bold when it is beyond two standard "
        "deviations of the difference of two runs, sqrt(std_a² + std_b²); what is not bold is "
        "none.",
        "",
    ]
    if published:
        lines += ["Rows marked *(paper)* are figures of the paper, not of these runs.", ""]
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        groups.setdefault(task.group_and_column[0], []).append(task)
    for group, members in groups.items():
        columns = _columns(members, summary)
        if columns:
            lines += _group(group, members, columns, summary, inits, seeds, baseline, paper)
    unfinished = [r for r in results if r["status"] != "done"]
    if unfinished:
        lines += ["Not done:", ""]
        lines += [
            f"- {r['task']}, {r['init']}, seed {r['seed']}: {r['status']}" for r in unfinished
        ]
        lines += [""]
    return "\n".join(lines)


def _grid(count: int, title: str) -> tuple[Any, list[Any]]:
    columns = min(4, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.2 * columns, 3.2 * rows), squeeze=False, constrained_layout=True
    )
    figure.suptitle(title)
    for axis in axes.flat[count:]:
        axis.axis("off")
    return figure, list(axes.flat[:count])


def draw_bars(path: Path, summary: Summary) -> None:
    """One panel a task: the first metric of each kind by initialisation, with error bars."""
    figure, axes = _grid(len(summary), "mean over seeds; error bars: one standard deviation")
    for axis, (task, inits) in zip(axes, summary.items()):
        names = [f"{kind}/{metrics[0]}" for kind, metrics in METRICS.items()]
        names = [n for n in names if any(n in row for row in inits.values())]
        for i, (init, row) in enumerate(inits.items()):
            found = [row.get(name, {"mean": 0.0, "std": None}) for name in names]
            places = np.arange(len(names)) + (i - (len(inits) - 1) / 2) * 0.8 / len(inits)
            errors = [value["std"] or 0.0 for value in found]
            means = [value["mean"] for value in found]
            axis.bar(places, means, 0.8 / len(inits), yerr=errors, capsize=3, label=init)
        axis.set_title(task, fontsize=8)
        axis.set_xticks(range(len(names)), names)
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_curves(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """One panel a task: the first metric over iterations, a line a seed, a colour an init."""
    tasks = list(dict.fromkeys(result["task"] for result in results if result["curve"]))
    inits = list(dict.fromkeys(result["init"] for result in results))
    figure, axes = _grid(len(tasks), "at every evaluation; a line a seed")
    for axis, task in zip(axes, tasks):
        for result in (r for r in results if r["task"] == task and r["curve"]):
            name, points = next(iter(result["curve"].items()))
            colour = f"C{inits.index(result['init'])}"
            label = result["init"] if result["seed"] == 0 else None
            axis.plot(*zip(*points), marker="o", markersize=3, color=colour, label=label)
            axis.set(xlabel="iteration", ylabel=name)
        axis.set_title(task, fontsize=8)
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def write_report(
    output: Path,
    tasks: Sequence[Task],
    results: Sequence[dict[str, Any]],
    **options: Any,
) -> str:
    """Write results.json, results.csv, results.md, bars.png and curves.png; returns the Markdown.

    Args:
        output: folder.
        tasks, results: of the whole benchmark, whatever shard ran them.
        options: the other arguments of :func:`markdown`.
    """
    summary = summarise(results)
    content = {"command": options["command"], "summary": summary, "runs": list(results)}
    with replacing(output / "results.json") as file:
        file.write_text(json.dumps(content, indent=1))
    lines = ["task,init,seed,status,kind,metric,percent"]
    for r in results:
        cell = f"{r['task']},{r['init']},{r['seed']},{r['status']}"
        values = [(k, m, v) for k, row in r["metrics"].items() for m, v in row.items()]
        lines += [f"{cell},{k},{m},{v:.4f}" for k, m, v in values] or [f"{cell},,,"]
    with replacing(output / "results.csv") as file:
        file.write_text("\n".join(lines) + "\n")
    text = markdown(tasks, results, **options)
    with replacing(output / "results.md") as file:
        file.write_text(text)
    if any(row for inits in summary.values() for row in inits.values()):
        draw_bars(output / "bars.png", summary)
    if any(result["curve"] for result in results):
        draw_curves(output / "curves.png", results)
    return text

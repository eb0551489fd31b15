"""The benchmark's report: results.json, the same as tables in results.md, and bars.png."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from ..files import replacing
from .benchmark import METRICS, Task, difference, show, summarise
from .charts import panels

KIND_TITLES = {"bbox": "box", "segm": "mask", "keypoints": "keypoint", "sem_seg": "semantic"}
_EXPLANATION = (
    "Mean ± standard deviation (of a sample) over {} seeds, in percent. A difference is bold when "
    "it is beyond two standard deviations of the difference of two runs, sqrt(std_a² + std_b²); "
    "what is not bold is none."
)
# By task, initialisation and "<kind>/<metric>": mean, std and n.
Summary = dict[str, dict[str, dict[str, dict[str, Any]]]]
Figures = dict[str, dict[str, dict[str, list[float]]]]


def read_published() -> Figures:
    """The paper's figures: {task: {method: {kind: [percent for each metric known]}}}."""
    figures: Figures = {}
    with open(Path(__file__).with_name("published.csv"), newline="") as file:
        for row in csv.DictReader(file):
            kinds = figures.setdefault(row["task"], {}).setdefault(row["method"], {})
            kinds[row["kind"]] = [float(value) for value in row["percent"].split("/")]
    return figures


def _result_cell(values: Sequence[dict[str, Any]], seeds: int) -> str:
    if not values:
        return "-"
    missing = f" (n = {values[0]['n']})" if values[0]["n"] < seeds else ""
    return " / ".join(map(show, values)) + missing


def _difference_cell(values: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]]) -> str:
    if not values or len(values) != len(base):
        return "-"
    parts = []
    for ours, theirs in zip(values, base):
        delta, is_difference = difference(ours, theirs)
        parts.append(f"**{delta:+.1f}**" if is_difference else f"{delta:+.1f}")
    return " / ".join(parts)


def _table(title: str, columns: Mapping[str, Mapping[str, str]]) -> str:
    """A table of columns by heading, each with its cells by the name of the row."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows = [[name, *(column.get(name, "-") for column in columns.values())] for name in names]
    return tabulate(rows, [title, *columns], tablefmt="github", disable_numparse=True) + "\n"


def _group_tables(
    title: str, tasks: Sequence[Task], summary: Summary, seeds: int, baseline: str, paper: Figures
) -> list[str]:
    """The table of one group of tasks, and that of its differences to the baseline."""
    results: dict[str, dict[str, str]] = {}
    differences: dict[str, dict[str, str]] = {}
    for task in tasks:
        rows = summary.get(task.name, {})
        for kind, metrics in METRICS.items():
            present = [m for m in metrics if any(f"{kind}/{m}" in row for row in rows.values())]
            if not present:
                continue
            heading = [task.group_and_column[1], KIND_TITLES[kind], " / ".join(present)]
            column = " ".join(filter(None, heading))
            names = [f"{kind}/{metric}" for metric in present]
            values = {i: [row[name] for name in names if name in row] for i, row in rows.items()}
            base = values.pop(baseline)
            shown = {init: _result_cell(found, seeds) for init, found in values.items()}
            results[column] = {baseline: _result_cell(base, seeds), **shown}
            for method, figures in paper.get(task.name, {}).items():
                text = " / ".join(f"{value:.1f}" for value in figures.get(kind, []))
                results[column][f"*{method} (paper)*"] = f"*{text}*" if text else "-"
            differences[column] = {i: _difference_cell(v, base) for i, v in values.items()}
    titled = {title: results, f"difference to {baseline}": differences}
    return [_table(name, columns) for name, columns in titled.items() if any(columns.values())]


def markdown(
    tasks: Sequence[Task],
    results: Sequence[dict[str, Any]],
    seeds: int,
    baseline: str,
    published: bool,
    command: str,
) -> str:
    """Gives the tables, in the paper's shapes: initialisations as rows.

    Args:
        tasks: all tasks of the benchmark; those of one group share a table.
        results: of every cell, see :func:`read_result`.
        seeds: how many runs of each were asked for.
        baseline: the initialisation from which differences are shown.
        published: show the paper's figures beside, marked as such.
        command: what was run.
    """
    summary, paper = summarise(results), read_published() if published else {}
    unfinished = [result for result in results if result["status"] != "done"]
    done = f"{len(results) - len(unfinished)} of {len(results)} runs are done."
    parts = ["# Transfer benchmark\n", f"Command: `{command}`\n"]
    parts.append(f"{done} {_EXPLANATION.format(seeds)}\n")
    if published:
        parts.append("Rows marked *(paper)* are figures of the paper, not of these runs.\n")
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        groups.setdefault(task.group_and_column[0], []).append(task)
    for group, members in groups.items():
        parts += _group_tables(group, members, summary, seeds, baseline, paper)
    if unfinished:
        parts.append("Not done:\n")
        parts += [
            f"- {r['task']}, {r['init']}, seed {r['seed']}: {r['status']}" for r in unfinished
        ]
        parts.append("")
    return "\n".join(parts)


def plot_bars(path: Path, summary: Summary) -> None:
    """Writes a panel for each task: the first metric of each kind, with error bars."""
    columns = min(4, len(summary))
    with panels(path, -(-len(summary) // columns), columns, (4.2, 3.2)) as (figure, axes):
        figure.suptitle("mean over seeds; error bars: one standard deviation")
        for axis in axes.flat[len(summary) :]:
            axis.axis("off")
        for axis, (task, inits) in zip(axes.flat, summary.items()):
            names = [f"{kind}/{metrics[0]}" for kind, metrics in METRICS.items()]
            names = [name for name in names if any(name in row for row in inits.values())]
            width = 0.8 / len(inits)
            for i, (init, row) in enumerate(inits.items()):
                found = [row.get(name, {"mean": 0.0, "std": None}) for name in names]
                places = np.arange(len(names)) + (i - (len(inits) - 1) / 2) * width
                errors = [value["std"] or 0.0 for value in found]
                means = [value["mean"] for value in found]
                axis.bar(places, means, width, yerr=errors, capsize=3, label=init)
            axis.set_title(task)
            axis.set_xticks(range(len(names)), names)
        axes[0, 0].legend()


def write_report(
    output: Path, tasks: Sequence[Task], results: Sequence[dict[str, Any]], **options: Any
) -> str:
    """Writes results.json, results.md and bars.png; returns the Markdown.

    Args:
        output: folder.
        tasks, results: of the whole benchmark, whatever shard ran them.
        options: the other arguments of :func:`markdown`.
    """
    summary = summarise(results)
    content = {"command": options["command"], "summary": summary, "runs": list(results)}
    with replacing(output / "results.json") as file:
        file.write_text(json.dumps(content, indent=1))
    text = markdown(tasks, results, **options)
    with replacing(output / "results.md") as file:
        file.write_text(text)
    if any(row for inits in summary.values() for row in inits.values()):
        plot_bars(output / "bars.png", summary)
    return text

"""The numbers of a pretrain-and-transfer run, as text and for tools/report.py."""

import json
from pathlib import Path
from typing import Any

from .benchmark import METRICS as _METRICS
from .benchmark import mean_and_std, show

METRICS = _METRICS["bbox"]


def summarise_transfer(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation over seeds: {init: {metric: {mean, std, n}}}.

    Args:
        runs: one dict a run with `init`, `seed` and the metrics AP, AP50, AP75 in percent.
    """
    table: dict[str, dict[str, Any]] = {}
    for init in dict.fromkeys(run["init"] for run in runs):
        table[init] = {}
        for metric in METRICS:
            values = [run[metric] for run in runs if run["init"] == init]
            table[init][metric] = mean_and_std(values)
    return table


def write_report(folder: str, report: dict[str, Any]) -> str:
    """Write report.json.

    Args:
        folder: to write into.
        report: `description`, `command`, `transfer` as :func:`summarise_transfer` gives it, and
            `seconds` by phase.

    Returns:
        the same as Markdown.
    """
    (Path(folder) / "report.json").write_text(json.dumps(report, indent=1))
    lines = [report["description"], "", f"Command: `{report['command']}`", ""]
    lines += ["| initialisation | " + " | ".join(METRICS) + " | seeds |", "|---|---|---|---|---|"]
    for init, row in report["transfer"].items():
        cells = " | ".join(show(row[m]) for m in METRICS)
        lines.append(f"| {init} | {cells} | {row['AP']['n']} |")
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report["seconds"].items())
    return "\n".join([*lines, "", f"Wall time: {times}."])

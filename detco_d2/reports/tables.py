"""The benchmark's results over seeds: results.json, and the same as tables in results.md."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from ..files import replacing

EXPLANATION = (
    "In percent: mean ± standard deviation (of a sample) over the runs; in brackets the difference "
    "to the first row. It is bold beyond two standard deviations of the difference of two runs, "
    "sqrt(std_a² + std_b²); what is not bold is none."
)
Value = Mapping[str, Any]  # mean, std (None for a single run) and n
Summary = Mapping[str, Mapping[str, Mapping[str, Value]]]  # by task, init and "<kind>/<metric>"


def summarise(results: Sequence[dict[str, Any]]) -> Summary:
    """Takes the results of cells, see :func:`read_result`, together over the seeds."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for result in results:
        row = found.setdefault(result["task"], {}).setdefault(result["init"], {})
        for name, value in result["metrics"].items():
            row.setdefault(name, []).append(value)
    return {
        task: {
            init: {name: mean_and_std(values) for name, values in row.items()}
            for init, row in inits.items()
        }
        for task, inits in found.items()
    }


def mean_and_std(values: Sequence[float]) -> Value:
    """Mean, standard deviation of a sample (None for one value), and number of values."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std, "n": len(values)}


def difference(a: Value, b: Value) -> tuple[float, bool]:
    """Difference of two means, and whether it is known to be beyond two of its deviations."""
    delta = a["mean"] - b["mean"]
    if a["std"] is None or b["std"] is None:
        return delta, False
    return delta, abs(delta) > 2 * math.hypot(a["std"], b["std"])


def table(title: str, rows: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """{header, rows} of cells by row and column, with a dash where a row has none."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = [[name, *(row.get(column, "-") for column in columns)] for name, row in rows.items()]
    return {"header": [title, *columns], "rows": cells}


def task_tables(summary: Summary) -> list[dict[str, Any]]:
    """A table for each task: a row for each initialisation, with its difference to the first."""
    tables = []
    for task, inits in summary.items():
        base = next(iter(inits.values()))
        rows = {}
        for init, row in inits.items():
            runs = max((value["n"] for value in row.values()), default=0)
            cells = {name: _cell(value, base.get(name)) for name, value in row.items()}
            rows[init] = {"runs": str(runs), **cells}
        tables.append(table(f"{task}, %", rows))
    return tables


def _cell(value: Value, base: Value | None) -> str:
    text = f"{value['mean']:.1f}"
    if value["std"] is not None:
        text += f" ± {value['std']:.1f}"
    if base is None or base is value:
        return text
    delta, is_difference = difference(value, base)
    return text + (f" (**{delta:+.1f}**)" if is_difference else f" ({delta:+.1f})")


def write_report(output: Path, results: Sequence[dict[str, Any]], command: str) -> str:
    """Writes results.json and results.md about all cells, whatever shard ran them.

    Returns:
        the Markdown.
    """
    summary = summarise(results)
    content = {"command": command, "summary": summary, "runs": list(results)}
    with replacing(output / "results.json") as file:
        file.write_text(json.dumps(content, indent=1))
    todo = [result for result in results if result["status"] != "done"]
    done = f"{len(results) - len(todo)} of {len(results)} runs are done."
    parts = ["# Transfer benchmark", f"Command: `{command}`", f"{done} {EXPLANATION}"]
    for task in task_tables(summary):
        parts.append(
            tabulate(task["rows"], task["header"], tablefmt="github", disable_numparse=True)
        )
    if todo:
        lines = [f"- {r['task']}, {r['init']}, seed {r['seed']}: {r['status']}" for r in todo]
        parts += ["Not done:", "\n".join(lines)]
    text = "\n\n".join(parts) + "\n"
    with replacing(output / "results.md") as file:
        file.write_text(text)
    return text

"""The benchmark's results over seeds: results.json, and the same as tables in results.md."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ttest_rel
from tabulate import tabulate

from ..files import replacing

EXPLANATION = (
    "In percent. A difference is the mean over pairs, two runs of one seed, with its 95 % interval "
    "(Student's t); it is bold where the interval excludes 0, and what is not bold is none. One "
    "pair has no interval. Of each row: mean ± standard deviation (of a sample) over the runs."
)
Value = Mapping[str, Any]  # mean, n, and std or interval (None for a single run or pair)
Summary = Mapping[str, Mapping[str, Mapping[str, Value]]]  # by task, init and "<kind>/<metric>"
Row = Mapping[str, Mapping[int, float]]  # by "<kind>/<metric>" and seed


def by_seed(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The rows of cells' results, see :func:`read_result`, by task and initialisation."""
    found: dict[str, dict[str, Any]] = {}
    for result in results:
        row = found.setdefault(result["task"], {}).setdefault(result["init"], {})
        for name, value in result["metrics"].items():
            row.setdefault(name, {})[result["seed"]] = value
    return found


def summarise(results: Sequence[dict[str, Any]]) -> Summary:
    """Takes the results of cells together over the seeds."""
    return {
        task: {
            init: {name: mean_and_std([*values.values()]) for name, values in row.items()}
            for init, row in inits.items()
        }
        for task, inits in by_seed(results).items()
    }


def mean_and_std(values: Sequence[float]) -> Value:
    """Mean, standard deviation of a sample (None for one value), and number of values."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std, "n": len(values)}


def differences(inits: Mapping[str, Row]) -> Mapping[str, Mapping[str, Value]]:
    """The paired differences of every row to those before it, by "<init> - <other>" and metric."""
    found = {}
    for other, init in itertools.combinations(inits, 2):
        both = [name for name in inits[init] if name in inits[other]]
        pairs = {name: _difference(inits[init][name], inits[other][name]) for name in both}
        found[f"{init} - {other}"] = {name: value for name, value in pairs.items() if value["n"]}
    return found


def _difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Value:
    seeds = sorted(ours.keys() & theirs.keys())
    first, second = ([values[seed] for seed in seeds] for values in (ours, theirs))
    interval = None
    if len(seeds) > 1:
        interval = list(map(float, ttest_rel(first, second).confidence_interval(0.95)))
    mean = float(np.mean(np.subtract(first, second))) if seeds else None
    return {"mean": mean, "interval": interval, "n": len(seeds)}


def table(title: str, rows: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """{header, rows} of cells by row and column, with a dash where a row has none."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    cells = [[name, *(row.get(column, "-") for column in columns)] for name, row in rows.items()]
    return {"header": [title, *columns], "rows": cells}


def task_tables(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each task the paired differences, if there are two rows or more, and the rows."""
    summary, tables = summarise(results), []
    for task, inits in by_seed(results).items():
        if pairs := differences(inits):
            tables.append(_counted(f"{task}, difference", "pairs", pairs))
        tables.append(_counted(f"{task}, %", "runs", summary[task]))
    return tables


def _counted(title: str, count: str, rows: Mapping[str, Mapping[str, Value]]) -> dict[str, Any]:
    """A table of values, with how many runs or pairs they are of."""
    cells = {}
    for name, row in rows.items():
        most = max((value["n"] for value in row.values()), default=0)
        cells[name] = {count: str(most), **{key: _cell(value) for key, value in row.items()}}
    return table(title, cells)


def _cell(value: Value) -> str:
    if "interval" not in value:
        return f"{value['mean']:.1f}" + ("" if value["std"] is None else f" ± {value['std']:.1f}")
    if value["interval"] is None:
        return f"{value['mean']:+.1f}"
    low, high = value["interval"]
    text = f"{value['mean']:+.1f} ({low:+.1f} to {high:+.1f})"
    return f"**{text}**" if low > 0 or high < 0 else text


def write_report(output: Path, results: Sequence[dict[str, Any]], command: str) -> str:
    """Writes results.json and results.md about all cells, whatever shard ran them.

    Returns:
        the Markdown.
    """
    content = {
        "command": command,
        "summary": summarise(results),
        "differences": {task: differences(inits) for task, inits in by_seed(results).items()},
        "runs": list(results),
    }
    with replacing(output / "results.json") as file:
        file.write_text(json.dumps(content, indent=1))
    todo = [result for result in results if result["status"] != "done"]
    done = f"{len(results) - len(todo)} of {len(results)} runs are done."
    parts = ["# Transfer benchmark", f"Command: `{command}`", f"{done} {EXPLANATION}"]
    for task in task_tables(results):
        cells = task["rows"], task["header"]
        parts.append(tabulate(*cells, tablefmt="github", disable_numparse=True))
    if todo:
        lines = [f"- {r['task']}, {r['init']}, seed {r['seed']}: {r['status']}" for r in todo]
        parts += ["Not done:", "\n".join(lines)]
    text = "\n\n".join(parts) + "\n"
    with replacing(output / "results.md") as file:
        file.write_text(text)
    return text

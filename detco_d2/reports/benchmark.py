"""The transfer benchmark's cells: what is to run, what has run, and what came out.

A task is a config, perhaps on other data; a cell is one fine-tuning: a task from one
initialisation with one seed, in a folder of its own. A cell is done when `results.json` is in it.
"""

import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files import replacing

# What the tables show of each kind of result, in this order.
METRICS: dict[str, tuple[str, ...]] = {
    "bbox": ("AP", "AP50", "AP75"),
    "segm": ("AP", "AP50", "AP75"),
    "keypoints": ("AP", "AP50", "AP75"),
    "sem_seg": ("IoU",),
}


@dataclass(frozen=True)
class Task:
    """A config file, and KEY VALUE pairs that put it on some data.

    `name` is `<group>_<column>`, such as coco/mask_rcnn_R_50_C4_1x: tasks of one group share a
    table, as the paper's do.
    """

    name: str
    config: str
    settings: tuple[str, ...] = ()

    @property
    def group_and_column(self) -> tuple[str, str]:
        match = re.fullmatch(r"(.+?)_(\d+k|\dx|[\d.]+percent)(?:_12k)?", self.name)
        return (match[1], match[2]) if match else (self.name, "")


@dataclass(frozen=True)
class Cell:
    """One fine-tuning run."""

    task: Task
    init: str
    seed: int

    @property
    def label(self) -> tuple[str, str, int]:
        return self.task.name, self.init, self.seed

    def folder(self, output: Path) -> Path:
        return output / "cells" / self.task.name / self.init / f"seed{self.seed}"


def plan(tasks: Sequence[Task], inits: Iterable[str], seeds: int, shard: str) -> list[Cell]:
    """All cells of a benchmark that a shard runs, seed by seed, so that early tables compare.

    Args:
        tasks: what to fine-tune.
        inits: names of the initialisations.
        seeds: runs of each.
        shard: "i/n" with 0 <= i < n: the i-th of every n cells.

    Raises:
        ValueError: a shard that is not of this form.
    """
    cells = [Cell(task, init, seed) for seed in range(seeds) for task in tasks for init in inits]
    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not match or int(match[1]) >= int(match[2]):
        raise ValueError(f"--shard is {shard!r}; it must be i/n with 0 <= i < n, such as 0/4.")
    return cells[int(match[1]) :: int(match[2])]


@functools.cache
def file_digest(path: str) -> str:
    """SHA-256 of a weight file; "" for no file, the random start."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""


def with_seed(names: Iterable[str], seed: int) -> tuple[str, ...]:
    """Data-set names whose seeded subsets are drawn from this seed; other names stay.

    >>> with_seed(["coco_2017_train_1percent_seed0", "coco_2017_val"], 3)
    ('coco_2017_train_1percent_seed3', 'coco_2017_val')
    """
    return tuple(re.sub(r"_seed0(?=@|$)", f"_seed{seed}", name) for name in names)


def check_claim(folder: Path, identity: dict[str, Any]) -> None:
    """Make sure that a cell's folder was not begun as something else.

    Args:
        folder: of the cell.
        identity: everything that decides the result; JSON values.

    Raises:
        ValueError: the folder was begun with another identity; names what differs.
    """
    file = folder / "cell.json"
    if not file.is_file():
        return
    before = json.loads(file.read_text())
    changed = sorted(k for k in {*before, *identity} if before.get(k) != identity.get(k))
    if changed:
        lines = "\n".join(
            f"  {k}: {before.get(k)!r} there, {identity.get(k)!r} now" for k in changed
        )
        raise ValueError(
            f"{str(folder)!r} was begun with other settings:\n{lines}\nGive another --output, or "
            "remove that folder to run it anew."
        )


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Begin a cell's folder, or go on in it; see :func:`check_claim`."""
    check_claim(folder, identity)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "cell.json") as file:
        file.write_text(json.dumps(identity, indent=1))


def read_result(cell: Cell, output: Path) -> dict[str, Any]:
    """What is known of a cell: {config, task, init, seed, status, metrics, curve, seconds}.

    `status` is "done", "not finished" or "not started"; `metrics` is {kind: {metric: percent}},
    with 0 where an evaluator gives NaN because nothing was predicted; `curve` is
    {"<kind>/<metric>": [[iteration, percent], ...]} of every evaluation on the way.
    """
    folder = cell.folder(output)
    result: dict[str, Any] = {
        "task": cell.task.name,
        "init": cell.init,
        "seed": cell.seed,
        "config": cell.task.config,
        "status": "not finished" if (folder / "cell.json").is_file() else "not started",
        "metrics": {},
        "curve": _read_curve(folder / "metrics.json"),
    }
    if (folder / "results.json").is_file():
        found = json.loads((folder / "results.json").read_text())
        result["status"] = "done"
        result["metrics"] = {
            kind: {m: _percent(found[kind][m]) for m in metrics if m in found[kind]}
            for kind, metrics in METRICS.items()
            if kind in found
        }
    return result


def _percent(value: float) -> float:
    return 0.0 if math.isnan(value) else float(value)


def _read_curve(file: Path) -> dict[str, list[list[float]]]:
    curve: dict[str, dict[int, float]] = {}
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            scalars = json.loads(line)
        except json.JSONDecodeError:
            continue  # a run that was cut off can leave half a line
        for kind, metrics in METRICS.items():
            name = f"{kind}/{metrics[0]}"
            if name in scalars:  # a resumed run repeats iterations: the later line stands
                curve.setdefault(name, {})[scalars["iteration"]] = _percent(scalars[name])
    return {name: [[i, points[i]] for i in sorted(points)] for name, points in curve.items()}


def summarise(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """{task: {init: {"<kind>/<metric>": {mean, std, n}}}} over the seeds that are done.

    The standard deviation is that of a sample (n - 1), and None for a single seed.
    """
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for result in results:
        inits = table.setdefault(result["task"], {})
        row = inits.setdefault(result["init"], {})
        for kind, metrics in result["metrics"].items():
            for metric, value in metrics.items():
                row.setdefault(f"{kind}/{metric}", []).append(value)
    for inits in table.values():
        for row in inits.values():
            row.update({name: mean_and_std(values) for name, values in row.items()})
    return table


def mean_and_std(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation of a sample (None for one value), and number of values."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std, "n": len(values)}


def show(value: dict[str, Any]) -> str:
    """The text of what :func:`mean_and_std` returns.

    >>> show({"mean": 57.04, "std": 0.21, "n": 5})
    '57.0 ± 0.2'
    """
    return f"{value['mean']:.1f}" + ("" if value["std"] is None else f" ± {value['std']:.1f}")


def difference(a: dict[str, Any], b: dict[str, Any]) -> tuple[float, bool | None]:
    """Difference of two means, and whether it is beyond two standard deviations.

    The deviation is that of the difference of two runs, sqrt(std_a^2 + std_b^2); None where one
    of them has a single seed.
    """
    delta = a["mean"] - b["mean"]
    if a["std"] is None or b["std"] is None:
        return delta, None
    return delta, abs(delta) > 2 * math.hypot(a["std"], b["std"])

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

from ..files import replacing
from ..weights.reading import split_choice

# What the tables show of each kind of result, in this order.
METRICS: dict[str, tuple[str, ...]] = {
    "bbox": ("AP", "AP50", "AP75"),
    "segm": ("AP", "AP50", "AP75"),
    "keypoints": ("AP", "AP50", "AP75"),
    "sem_seg": ("IoU",),
}


@dataclass(frozen=True)
class Task:
    """A config file, and KEY VALUE pairs that put it on some data."""

    name: str  # such as coco/mask_rcnn_R_50_C4_1x
    config: str
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One fine-tuning run."""

    task: Task
    init: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task.name}, {self.init}, seed {self.seed}"

    def folder(self, output: Path) -> Path:
        return output / "cells" / self.task.name / self.init / f"seed{self.seed}"


def plan(tasks: Sequence[Task], inits: Iterable[str], seeds: int, shard: str) -> list[Cell]:
    """All cells of a benchmark that a shard runs, seed by seed, so that early tables compare.

    Args:
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
    return hashlib.sha256(Path(split_choice(path)[0]).read_bytes()).hexdigest() if path else ""


def with_seed(names: Iterable[str], seed: int) -> tuple[str, ...]:
    """Data-set names whose seeded subsets are drawn from this seed; other names stay.

    >>> with_seed(["coco_2017_train_1percent_seed0", "/data/voc:trainval%10", "coco_2017_val"], 3)
    ('coco_2017_train_1percent_seed3', '/data/voc:trainval%10,seed=3', 'coco_2017_val')
    """
    names = (re.sub(r"_seed0(?=@|$)", f"_seed{seed}", name) for name in names)
    return tuple(re.sub(r"(%[\d.]+)(,seed=0)?$", rf"\1,seed={seed}", name) for name in names)


def check_claim(folder: Path, identity: dict[str, Any]) -> None:
    """Refuses a cell's folder that was begun with another identity: all that decides the result.

    Raises:
        ValueError: it was; names what differs.
    """
    file = folder / "cell.json"
    before = json.loads(file.read_text()) if file.is_file() else identity
    changed = [
        f"  {key}: {before.get(key)!r} there, {identity.get(key)!r} now"
        for key in sorted({*before, *identity})
        if before.get(key) != identity.get(key)
    ]
    if changed:
        lines = "\n".join(changed)
        raise ValueError(
            f"{str(folder)!r} was begun with other settings:\n{lines}\nGive another --output, or "
            "remove that folder to run it anew."
        )


def claim(folder: Path, identity: dict[str, Any]) -> None:
    """Begins a cell's folder, or goes on in it; see :func:`check_claim`."""
    check_claim(folder, identity)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "cell.json") as file:
        file.write_text(json.dumps(identity, indent=1))


def read_result(cell: Cell, output: Path) -> dict[str, Any]:
    """What is known of a cell: {task, init, seed, status, metrics}.

    `status` is "done", "not finished" or "not started"; `metrics` is {"<kind>/<metric>": percent},
    with 0 where an evaluator gives NaN because nothing was predicted.
    """
    folder = cell.folder(output)
    result: dict[str, Any] = {
        "task": cell.task.name,
        "init": cell.init,
        "seed": cell.seed,
        "status": "not finished" if (folder / "cell.json").is_file() else "not started",
        "metrics": {},
    }
    if (folder / "results.json").is_file():
        found = json.loads((folder / "results.json").read_text())
        result["status"] = "done"
        for kind, metrics in METRICS.items():
            for metric in metrics:
                if metric in found.get(kind, {}):
                    value = found[kind][metric]
                    is_none = value is None or math.isnan(value)
                    result["metrics"][f"{kind}/{metric}"] = 0.0 if is_none else value
    return result

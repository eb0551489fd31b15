"""What the output folder of a run holds, read so that a half-written file is no error."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..config_files import flatten

FAMILIES = {"gg": "global-global", "gl": "global-local", "ll": "local-local"}
Curves = dict[str, list[tuple[int, float]]]
_WARNING = re.compile(r"\[\d\d/\d\d [\d:]+\] \S+ (?:WARNING|ERROR): (.*)")


def read_scalars(file: Path) -> Curves:
    """Every scalar of a metrics.json by name: (iteration, value), in the order of iterations.

    A run that went on from a checkpoint has written some iterations twice: the later line stands.
    A line that was cut off is left out.

    Raises:
        FileNotFoundError: no such file; names those in the folders below.
    """
    if not file.is_file():
        others = sorted(str(other.parent) for other in file.parent.glob("*/metrics.json"))
        found = f"; there are runs in {', '.join(others[:5])}" if others else ""
        raise FileNotFoundError(
            f"There is no {str(file)!r}: not the output folder of a run, or none that has written "
            f"its first scalars{found}."
        )
    values: dict[str, dict[int, float]] = {}
    with open(file, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            scalars = _parse(line)
            iteration = scalars.pop("iteration", None) if isinstance(scalars, dict) else None
            if not isinstance(iteration, int):
                continue
            for name, value in scalars.items():
                if is_number(value):
                    values.setdefault(name, {})[iteration] = float(value)
    return {name: sorted(points.items()) for name, points in values.items()}


def is_number(value: Any) -> bool:
    """Whether it is a number of JSON, be it NaN or infinite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def read_json(file: Path) -> Any:
    """The content of a JSON file, or None if there is none that can be read."""
    try:
        return _parse(file.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None


def read_warnings(file: Path) -> list[tuple[str, int]]:
    """The warnings and errors of a log.txt, and how often each was given; the latest last."""
    counts: Counter[str] = Counter()
    if file.is_file():
        with open(file, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if match := _WARNING.match(line):
                    count = counts.pop(match[1], 0)  # put at the end again
                    counts[match[1]] = count + 1
    return list(counts.items())


def read_config(file: Path) -> tuple[str, dict[str, Any]]:
    """The text of a config.yaml, and its values by key with dots.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no YAML, or YAML that would make Python objects.
    """
    if not file.is_file():
        raise FileNotFoundError(f"There is no {str(file)!r}: not the output folder of a run.")
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        return text, dict(flatten(yaml.safe_load(text) or {}))
    except (yaml.YAMLError, AttributeError, RecursionError) as error:
        raise ValueError(f"{str(file)!r} is no config: {error}") from error


def latest(points: list[tuple[int, float]], count: int = 5) -> float:
    """The median of the last values, since that of one batch says little; NaN if one is none."""
    values = [value for _, value in points[-count:]]
    return math.nan if any(map(math.isnan, values)) else sorted(values)[len(values) // 2]


@dataclass
class Run:
    """What is known of a run; only the first three must be there.

    Attributes:
        folder: OUTPUT_DIR.
        curves: its scalars.
        config: the text of config.yaml, and its values by key.
        changed: values that differ from the defaults, by key: (default, value).
        warnings: from the log, with how often each was given.
        transfer: folders with the results of transfer.
        command: that made the report.
    """

    folder: Path
    curves: Curves
    config: tuple[str, Mapping[str, Any]]
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    warnings: Sequence[tuple[str, int]] = ()
    transfer: Sequence[Path] = ()
    command: str = ""

    def key(self, name: str, default: Any = "?") -> Any:
        return self.config[1].get(name, default)

    @property
    def starts(self) -> list[dict[str, Any]]:
        starts = read_json(self.folder / "run.json")
        return [s for s in starts if isinstance(s, dict)] if isinstance(starts, list) else []


def health(run: Run) -> tuple[list[str], list[str]]:
    """What is as it should be, and what is not, in sentences about the latest values."""
    good: list[str] = []
    bad: list[str] = []
    last = {name: latest(points) for name, points in run.curves.items()}
    odd = sorted(n for n, ps in run.curves.items() if not all(math.isfinite(y) for _, y in ps))
    if odd:
        bad.append(f"Values that are no finite numbers, in {', '.join(odd)}.")
    length = run.key("MODEL.DETCO.QUEUE_LENGTH")
    length = length if isinstance(length, int) and length > 0 else None
    for family, title in FAMILIES.items():
        found = [n for n in last if n.startswith(f"top1/{family}_")]
        if found and length:
            top1, chance = last[max(found)], 1 / (length + 1)
            text = f"Top-1 of {title} at {max(found)[len('top1/gg_') :]}: {100 * top1:.1f} %, "
            text += f"chance is {100 * chance:.2g} % (median of the last 5 values)."
            (good if top1 > 2 * chance else bad).append(text)
    high = [
        n for n, y in last.items() if length and n[:9] == "info_nce/" and y >= math.log(length + 1)
    ]
    if high:
        names = ", ".join(sorted(n[9:] for n in high))
        bad.append(f"Losses at chance, log(K+1), or above: {names}. Early in a run that is usual.")
    spreads = {n[len("spread/") :]: y for n, y in last.items() if n.startswith("spread/")}
    if spreads:
        least = min(spreads, key=lambda name: spreads[name])
        text = f"Least spread of embeddings: {spreads[least]:.2f}, {least}"
        collapsed = spreads[least] < 0.1
        (bad if collapsed else good).append(text + (": collapsed." if collapsed else "."))
    if (waiting := last.get("data_time_share", 0.0)) > 0.2:
        bad.append(f"{100 * waiting:.0f} % of the time is spent waiting for images.")
    if images := last.get("data/bad_images", 0.0):
        bad.append(f"{images:.0f} images could not be read; bad_images.txt lists them.")
    if run.warnings:
        bad.append(f"Warnings in the log: {sum(count for _, count in run.warnings)}, below.")
    return good, bad

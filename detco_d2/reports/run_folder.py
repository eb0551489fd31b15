"""What the output folder of a run holds, read so that a half-written file is no error."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..config_files import flatten

Curves = dict[str, list[tuple[int, float]]]
_WARNING = re.compile(r"^\[\d\d/\d\d [\d:]+\] \S+ (?:WARNING|ERROR): (.*)", re.MULTILINE)


def read_scalars(file: Path) -> Curves:
    """Every scalar of a metrics.json by name: (iteration, value), in the order of iterations.

    A run that went on from a checkpoint has written some iterations twice: the later line stands.
    A line that was cut off is left out.

    Raises:
        FileNotFoundError: no such file.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no {str(file)!r}: not the output folder of a run, or none that has written "
            "its first scalars."
        )
    values: dict[str, dict[int, float]] = {}
    with open(file, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            scalars = _parse(line)
            iteration = scalars.pop("iteration", None) if isinstance(scalars, dict) else None
            if not isinstance(iteration, int):
                continue
            for name, value in scalars.items():
                value = math.nan if value is None else value
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    values.setdefault(name, {})[iteration] = float(value)
    return {name: sorted(points.items()) for name, points in values.items()}


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
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    for warning in _WARNING.findall(text):
        counts[warning] = counts.pop(warning, 0) + 1  # at the end again
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


@dataclass
class Run:
    """What is known of a run; only the first three must be there."""

    folder: Path  # OUTPUT_DIR
    curves: Curves
    config: tuple[str, Mapping[str, Any]]  # the text of config.yaml, and its values by key
    warnings: Sequence[tuple[str, int]] = ()  # from the log, with how often each was given
    transfer: Sequence[Path] = ()  # folders of tools/benchmark.py

    def key(self, name: str) -> Any:
        return self.config[1].get(name, "?")


def read_run(folder: Path, transfer: Sequence[Path] = ()) -> Run:
    """Reads an output folder of pretrain_net.py or train_net.py.

    Args:
        transfer: folders of tools/benchmark.py; none: the one around it, as the demo has it.

    Raises:
        FileNotFoundError, ValueError: a file that must be there is not, or is broken.
    """
    for other in transfer:
        if not (other / "results.json").is_file():
            raise FileNotFoundError(f"--transfer: there is no results.json in {other}.")
    around = folder.absolute().parent
    return Run(
        folder=folder,
        curves=read_scalars(folder / "metrics.json"),
        config=read_config(folder / "config.yaml"),
        warnings=read_warnings(folder / "log.txt"),
        transfer=transfer or ([around] if (around / "results.json").is_file() else []),
    )

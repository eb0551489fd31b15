"""The load report: how much of what a model wants was found, by part of the network."""

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

_COLUMNS = ("part", "wanted", "found", "missing", "other shape", "coverage")


def misfits(
    found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> dict[str, tuple[int, ...] | None]:
    """The names of wanted tensors that are missing (None), or found in another shape (which)."""
    seen = {name: tuple(found[name].shape) if name in found else None for name in wanted}
    return {name: shape for name, shape in seen.items() if shape != tuple(wanted[name].shape)}


def load_report(
    found: Mapping[str, Any], wanted: Mapping[str, Any], unused: Mapping[str, int]
) -> str:
    """A table with a line a part (stem, res2, ...), what is missing and what is left over.

    Args:
        found, wanted: tensors by name, of the file and of the model.
        unused: how many tensors of the file were not taken, by the beginning of their names.
    """
    wrong = misfits(found, wanted)
    parts = dict.fromkeys(name.partition(".")[0] for name in wanted)
    rows = []
    for part in parts:
        names = [name for name in wanted if name.partition(".")[0] == part]
        seen = [wrong[name] for name in names if name in wrong]
        missing = seen.count(None)
        rows.append([len(names), len(names) - len(seen), missing, len(seen) - missing])
    rows.append([sum(column) for column in zip(*rows)])
    table = [
        [part, *row, f"{100 * row[1] / row[0]:.1f} %"] for part, row in zip([*parts, "all"], rows)
    ]
    lines = [tabulate(table, _COLUMNS, "plain", colalign=("left", *["right"] * 5))]
    for name, shape in wrong.items():
        problem = f"missing: {name}" if shape is None else f"other shape: {name} {shape}, expected"
        lines.append(f"  {problem} {tuple(wanted[name].shape)}")
    extra = sorted(found.keys() - wanted.keys())
    lines += [f"  no place for: {name} {tuple(found[name].shape)}" for name in extra]
    if unused:
        others = ", ".join(f"{beginning} ({count})" for beginning, count in unused.items())
        lines.append(f"not of the backbone, left: {others}")
    return "\n".join(lines)

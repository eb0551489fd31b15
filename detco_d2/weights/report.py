"""What of a backbone was found in a weight file: a table by part of the network."""

from collections.abc import Mapping
from typing import Any

from .names import PARTS


def load_report(
    found: Mapping[str, Any], wanted: Mapping[str, Any], unused: Mapping[str, int]
) -> tuple[str, float]:
    """Compare tensors with those of the model that they should fill.

    Args:
        found: tensors by name, only their shapes are looked at.
        wanted: the model's, likewise.
        unused: how many tensors of the file were not taken, by the beginning of their names.

    Returns:
        a table with a line a part (stem, res2, ...), what is missing and what is left over; and
        the coverage, the share in percent of the wanted tensors that are there in their shape.
    """
    lines = [
        f"{'part':<8}{'wanted':>8}{'found':>8}{'missing':>9}{'other shape':>13}{'coverage':>10}"
    ]
    problems = []
    totals = [0, 0, 0, 0]  # wanted, found, missing, of another shape
    for part in PARTS:
        names = sorted(name for name in wanted if name.partition(".")[0] == part)
        missing = [name for name in names if name not in found]
        shapes = {
            name: (tuple(found[name].shape), tuple(wanted[name].shape))
            for name in names
            if name in found and tuple(found[name].shape) != tuple(wanted[name].shape)
        }
        fits = len(names) - len(missing) - len(shapes)
        counts = [len(names), fits, len(missing), len(shapes)]
        totals = [total + count for total, count in zip(totals, counts)]
        lines.append(_row(part, *counts))
        problems += [f"  missing: {name} {tuple(wanted[name].shape)}" for name in missing]
        problems += [
            f"  other shape: {name} {theirs}, expected {ours}"
            for name, (theirs, ours) in shapes.items()
        ]
    lines.append(_row("all", *totals))
    extra = sorted(set(found) - set(wanted))
    problems += [f"  no place for: {name} {tuple(found[name].shape)}" for name in extra]
    lines += problems
    if unused:
        others = ", ".join(f"{group} ({count})" for group, count in unused.items())
        lines.append(f"not of the backbone, left: {others}")
    return "\n".join(lines), 100 * totals[1] / totals[0] if totals[0] else 0.0


def _row(part: str, wanted: int, fits: int, missing: int, shapes: int) -> str:
    share = f"{100 * fits / wanted:.1f} %" if wanted else "-"
    return f"{part:<8}{wanted:>8}{fits:>8}{missing:>9}{shapes:>13}{share:>10}"

"""The load report: how much of a ResNet a weight file has, by part of the network."""

from collections.abc import Mapping
from typing import Any

import torch
from tabulate import tabulate

from .backbone import Backbone, misfits, refuse_nonfinite
from .frozen import resnet_like, shape_of
from .names import PARTS

_COLUMNS = ("part", "wanted", "found", "missing", "other shape", "coverage")


def check_complete(backbone: Backbone) -> str:
    """Compare a backbone's tensors with those of the ResNet of its depth and width.

    Returns:
        the load report, see :func:`load_report`.

    Raises:
        ValueError: a tensor holds NaN, is missing, of another shape or of another network (with
            the report); or a ResNet that Detectron2 cannot build.
    """
    found = backbone.tensors
    refuse_nonfinite(found, backbone)
    if "res2.0.conv1.weight" not in found:  # of a pretraining of this project
        return f"{len(found)} backbone tensors (no ResNet, so not checked against one)."
    with torch.device("meta"):  # shapes are all that is asked for
        state = resnet_like(backbone).state_dict()
    wanted = {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
    matched = len(wanted) - len(misfits(found, wanted))
    report = (
        f"{load_report(found, wanted, backbone.unused)}\n{matched} of {len(wanted)} backbone "
        f"tensors of ResNet-{shape_of(backbone)['DEPTH']} matched."
    )
    if matched < len(wanted) or len(found) > len(wanted):
        raise ValueError(f"{backbone}: this is not a whole backbone.\n{report}")
    return report


def load_report(
    found: Mapping[str, Any], wanted: Mapping[str, Any], unused: Mapping[str, int]
) -> str:
    """A table with a line a part (stem, res2, ...), what is missing and what is left over.

    Args:
        found: tensors by name, only their shapes are looked at.
        wanted: those of the model that they should fill, likewise.
        unused: how many tensors of the file were not taken, by the beginning of their names.
    """
    wrong = misfits(found, wanted)
    rows = []
    for part in PARTS:
        names = [name for name in wanted if name.partition(".")[0] == part]
        seen = [wrong[name] for name in names if name in wrong]
        missing = seen.count(None)
        rows.append([len(names), len(names) - len(seen), missing, len(seen) - missing])
    rows.append([sum(column) for column in zip(*rows)])
    shares = [f"{100 * row[1] / row[0]:.1f} %" if row[0] else "-" for row in rows]
    table = [[part, *row, share] for part, row, share in zip((*PARTS, "all"), rows, shares)]
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

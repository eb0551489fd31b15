"""What a run meets and survives: images that cannot be read, steps that are no numbers."""

import itertools
import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files import replacing

logger = logging.getLogger(__name__)

MAX_REPORTS = 3


class BadImages:
    """The images of a run that could not be read, and why; equal on all processes."""

    def __init__(self, num_images: int, max_fraction: float, file: str = "") -> None:
        """
        Args:
            num_images: of the data; at most `max_fraction` of them may be unreadable.
            file: where to list them, one JSON object a line; "" for nowhere.
        """
        self.reasons: dict[str, str] = {}
        self.num_images = num_images
        self.max_fraction = max_fraction
        self.file = file

    def add(self, found: list[tuple[str, str]]) -> None:
        """Take note of (path, reason) pairs, which come in the same order on all processes.

        Raises:
            RuntimeError: more than the allowed share of the images is unreadable.
        """
        new = {path: reason for path, reason in found if path not in self.reasons}
        for path, reason in new.items():
            logger.warning("Image %r is skipped: %s", path, reason)
        self.reasons.update(new)
        if self.file and new:
            with open(self.file, "a") as file:
                file.write(_lines(new))
        if len(self.reasons) > self.max_fraction * self.num_images:
            first = "\n".join(f"  {path!r}: {why}" for path, why in list(self.reasons.items())[:5])
            raise RuntimeError(
                f"{len(self.reasons)} of {self.num_images} images cannot be read, more than the "
                f"share of {self.max_fraction:g} that DATALOADER.MAX_BAD_FRACTION allows; "
                f"{f'all are in {self.file}; ' if self.file else ''}the first are:\n{first}"
            )

    def write_list(self) -> None:
        """Let the file say what is known now, and nothing of a run that was cut off."""
        if self.file and self.reasons:
            with replacing(self.file) as part:
                part.write_text(_lines(self.reasons))
        elif self.file:
            Path(self.file).unlink(missing_ok=True)


def _lines(reasons: dict[str, str]) -> str:
    """JSON objects, whatever bytes the paths are made of."""
    pairs = ({"file_name": path, "reason": reason} for path, reason in reasons.items())
    return "".join(json.dumps(pair) + "\n" for pair in pairs)


class NonFiniteSteps:
    """Counts steps that gave no number, and survives `max_in_a_row`.

    The first three are written down in `folder`, as `nonfinite_<iteration>.pt`; "" for nowhere.
    """

    def __init__(self, max_in_a_row: int, folder: str = "") -> None:
        self.max_in_a_row = max_in_a_row
        self.folder = folder
        self.in_a_row = self.total = 0

    def passed(self) -> None:
        self.in_a_row = 0

    def failed(self, report: dict[str, Any]) -> None:
        """
        Args:
            report: `iteration`, `losses` and what else may tell the cause; tensors, numbers, text.

        Raises:
            FloatingPointError: one step too many.
        """
        self.in_a_row += 1
        self.total += 1
        bad = [name for name, value in report["losses"].items() if not math.isfinite(value)]
        cause = f"no number in {', '.join(bad)}" if bad else "a gradient is infinite or no number"
        text = f"Step {report['iteration']} is undone: {cause} ({self.in_a_row} in a row)."
        logger.warning(text)
        if self.folder:
            self._write(report)
        if self.in_a_row > self.max_in_a_row:
            raise FloatingPointError(
                f"{text} SOLVER.MAX_NONFINITE_STEPS allows {self.max_in_a_row}. Lower "
                f"SOLVER.BASE_LR, or turn bfloat16 off. Losses: {json.dumps(report['losses'])}"
            )

    def _write(self, report: dict[str, Any]) -> None:
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        if len(list(folder.glob("*.pt"))) >= MAX_REPORTS:
            return
        file = folder / f"nonfinite_{report['iteration']:07d}.pt"
        try:
            with replacing(file) as part:
                torch.save(report, part)
            logger.warning("What is known of it: %s", file)
        except (OSError, RuntimeError) as error:  # a full disk; training matters more
            logger.error("Cannot write %s: %s", file, error)


def nonfinite_gradients(model: nn.Module, most: int = 20) -> list[str]:
    """The names of the first parameters whose gradient holds an infinity or a NaN."""
    graded = ((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
    bad = (name for name, gradient in graded if not gradient.isfinite().all())
    return list(itertools.islice(bad, most))

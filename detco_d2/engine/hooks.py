"""Hooks of the trainers."""

import logging
import os
import shutil
from typing import Any

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

logger = logging.getLogger(__name__)


class CheckpointHook(hooks.PeriodicCheckpointer):
    """Detectron2's, which goes on when the disk is full: the next save may find it emptied.

    The last save of a run must succeed.
    """

    def __init__(self, checkpointer: Any, period: int, max_failures: int) -> None:
        super().__init__(checkpointer, period)
        self.max_failures = max_failures
        self.failures = 0

    def before_train(self) -> None:
        """
        Raises:
            RuntimeError: the disk has no room for a single checkpoint.
        """
        super().before_train()
        keep, (room, count) = self.checkpointer.keep or 1, self._room()
        text = f"{room}, and {keep} are kept while one is written."
        if count < 1:
            raise RuntimeError(f"{text} Free space there, or name another OUTPUT_DIR.")
        if count < keep + 1:
            logger.warning("%s", text)

    def after_step(self) -> None:
        """
        Raises:
            RuntimeError: one failure too many, or the last save failed.
        """
        try:
            super().after_step()
            if (self.trainer.iter + 1) % self.period == 0:
                self.failures = 0
        except (OSError, RuntimeError) as error:  # torch's writer turns one into the other
            self.failures += 1
            text = (
                f"No checkpoint at iteration {self.trainer.iter}: {error}. {self._room()[0]}. "
                "Earlier ones are untouched."
            )
            if self.trainer.iter + 1 >= self.trainer.max_iter:
                raise RuntimeError(text) from error
            if self.failures > self.max_failures:
                allowed = f"SOLVER.MAX_FAILED_SAVES allows {self.max_failures} in a row."
                raise RuntimeError(f"{text} {allowed}") from error
            logger.error("%s Training goes on.", text)

    def _room(self) -> tuple[str, float]:
        """What is free and what a checkpoint takes; and how many of them the disk has room for.

        A checkpoint has the model, and a momentum for each number that it trains.
        """
        model, folder = self.checkpointer.model, os.path.abspath(self.checkpointer.save_dir)
        tensors = list(model.state_dict().values())
        tensors += [p for p in model.parameters() if p.requires_grad]
        size, free = sum(tensor.nbytes for tensor in tensors), shutil.disk_usage(folder).free
        text = f"{folder} has {free / 1e6:.1f} MB free; a checkpoint takes {size / 1e6:.1f} MB"
        return text, free / size


class StopHook(HookBase):
    """Saves and ends the process, with 128 + the signal's number, when a step was asked to stop."""

    def __init__(self, checkpointer: Any, step: Any) -> None:
        self.checkpointer = checkpointer
        self.step = step

    def after_step(self) -> None:
        """
        Raises:
            SystemExit: on all processes after the same step.
        """
        number, iteration = self.step.stop_signal, self.trainer.iter
        if not number:
            return
        self.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        comm.synchronize()  # a launcher may stop all as soon as one has ended
        logger.warning(
            f"Stopped by signal {number:d} after iteration {iteration}; the same command line goes "
            "on from there."
        )
        raise SystemExit(128 + number)

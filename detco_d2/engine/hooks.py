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
        """
        Args:
            checkpointer: fvcore's.
            period: iterations between two saves.
            max_failures: saves in a row that may fail.
        """
        super().__init__(checkpointer, period)
        self.max_failures = max_failures
        self.failures = 0

    def before_train(self) -> None:
        """
        Raises:
            RuntimeError: the disk has no room for a single checkpoint.
        """
        super().before_train()
        size, free = self._size(), self._free()
        keep = getattr(self.checkpointer, "keep", None) or 1
        text = (
            f"{os.path.abspath(self.checkpointer.save_dir)} has {free / 1e6:.1f} MB free; a "
            f"checkpoint takes {size / 1e6:.1f} MB, and {keep} are kept while one is written."
        )
        if free < size:
            raise RuntimeError(f"{text} Free space there, or name another OUTPUT_DIR.")
        if free < (keep + 1) * size:
            logger.warning("%s", text)

    def _size(self) -> int:
        """Bytes of a checkpoint: the model, and a momentum for each number that it trains."""
        tensors = list(self.checkpointer.model.state_dict().values())
        tensors += [p for p in self.checkpointer.model.parameters() if p.requires_grad]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _free(self) -> int:
        return shutil.disk_usage(self.checkpointer.save_dir).free

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
                f"No checkpoint at iteration {self.trainer.iter}: {error}. "
                f"{os.path.abspath(self.checkpointer.save_dir)} has {self._free() / 1e6:.1f} MB "
                f"free; one takes {self._size() / 1e6:.1f} MB. Earlier ones are untouched."
            )
            is_last = self.trainer.iter + 1 >= self.trainer.max_iter
            if is_last or self.failures > self.max_failures:
                allowed = f" SOLVER.MAX_FAILED_SAVES allows {self.max_failures} in a row."
                raise RuntimeError(text + ("" if is_last else allowed)) from error
            logger.error("%s Training goes on.", text)


class StopHook(HookBase):
    """Saves and ends the process, with 128 + the signal's number, when a step was asked to stop."""

    def __init__(self, checkpointer: Any) -> None:
        """
        Args:
            checkpointer: fvcore's; saves on the main process only.
        """
        self.checkpointer = checkpointer

    def after_step(self) -> None:
        """
        Raises:
            SystemExit: on all processes after the same step.
        """
        number, iteration = self.trainer._trainer.stop_signal, self.trainer.iter
        if not number:
            return
        self.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        comm.synchronize()  # a launcher may stop all as soon as one has ended
        logger.warning(
            "Stopped by signal %d after iteration %d; the same command line goes on from there.",
            *(number, iteration),
        )
        raise SystemExit(128 + number)

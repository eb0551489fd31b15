"""Hooks of the trainers."""

import logging
import os
import shutil
from typing import Any

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

logger = logging.getLogger(__name__)


class ThroughputHook(HookBase):
    """Records `images_per_second` and `data_time_share`, and says both in the log.

    Reads Detectron2's `time` and `data_time` (seconds an iteration), so it comes after its
    `IterationTimer` and before the writers.
    """

    def __init__(self, batch_size: int, period: int = 20) -> None:
        """
        Args:
            batch_size: images an iteration over all processes.
            period: iterations between two lines in the log.
        """
        self.batch_size = batch_size
        self.period = period

    def after_step(self) -> None:
        storage = self.trainer.storage
        if not comm.is_main_process() or "time" not in storage.histories():
            return  # the timer skips the first iterations
        seconds = storage.history("time").latest()
        waiting = storage.history("data_time").latest()
        storage.put_scalar("images_per_second", self.batch_size / seconds)
        storage.put_scalar("data_time_share", min(waiting / seconds, 1.0))
        if (self.trainer.iter + 1) % self.period == 0:
            share = storage.history("data_time_share").median(self.period)
            logger.info(
                "%.1f images/s, waiting for data %.0f %% of the time%s",
                storage.history("images_per_second").median(self.period),
                100 * share,
                "" if share < 0.2 else " (raise DATALOADER.NUM_WORKERS if cores are idle)",
            )


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


class CollapseHook(HookBase):
    """Warns when the embeddings of a stage have come together in a point (`spread/...` near 0)."""

    def __init__(self, limit: float = 0.05, period: int = 100) -> None:
        """
        Args:
            limit: of the spread, which is 1 on the whole sphere; see `embedding_spread`.
            period: iterations over which the median is taken.
        """
        self.limit = limit
        self.period = period
        self.collapsed: set[str] = set()  # each is said once, until it has recovered

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.period:
            return
        for name, history in self.trainer.storage.histories().items():
            if not name.startswith("spread/"):
                continue
            spread = history.median(self.period)
            if spread >= self.limit:
                self.collapsed.discard(name)
            elif name not in self.collapsed:
                self.collapsed.add(name)
                logger.warning(
                    "%s is %.4f at iteration %d: the %s embeddings have collapsed to a point. "
                    'MODEL.DETCO.HEAD_NORM "BN", a lower SOLVER.BASE_LR or more varied images '
                    "help (docs/short_runs.md).",
                    *(name, spread, self.trainer.iter, name[len("spread/") :].replace("_", " ")),
                )

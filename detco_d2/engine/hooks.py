"""Hooks of the trainers."""

import logging

from detectron2.engine import HookBase
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

"""What a run says of itself while it trains, without labels: numbers, and one line."""

import logging
import math
import statistics
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage

logger = logging.getLogger(__name__)

PERIOD = 20  # iterations between two status lines, and between two writes of the scalars
_LEAST_SPREAD = 0.05  # of the median over a collapse period; it is 1 on the whole sphere


class HealthHook(HookBase):
    """Records how the contrast fares, says it in one line, and warns of a collapse.

    It belongs on the main process alone, after Detectron2's `IterationTimer`, whose `time` and
    `data_time` it reads, and before the writers. At the iterations of its line the model is
    watched closely; see :class:`Monitor`.

    Scalars, besides those of the model: `queue/filled` (0..1), `chance/loss` (log(K + 1), of each
    term), `images_per_second`, `data_time_share` (0..1).
    """

    collapse_period = 100  # iterations over which the median of the spread is taken

    def __init__(self, detco: Any, batch_size: int) -> None:
        """
        Args:
            detco: the model, not in DDP.
            batch_size: images an iteration over all processes.
        """
        self.detco = detco
        self.batch_size = batch_size
        self.collapsed: set[str] = set()  # each is said once, until it has recovered
        self.queue_length = detco.queue.features.shape[1]
        self.chance = math.log(self.queue_length + 1)
        self.total_chance = self.chance * len(detco.families) * sum(detco.stage_weights.values())

    def before_train(self) -> None:
        missing, full_at = self._missing_keys(self.trainer.start_iter)
        rises = f"The loss rises until the queues are full at iteration {full_at}"
        state = rises if missing else "The queues are full"
        logger.info(
            f"{state}; chance is then log(K + 1) = {self.chance:.2f} for each term, and "
            f"{self.total_chance:.2f} for the total loss."
        )

    def before_step(self) -> None:
        self.detco.monitor.closely = self._is_due()

    def after_step(self) -> None:
        storage = self.trainer.storage
        if "time" in storage.histories():  # the timer skips the first iterations
            seconds = storage.history("time").latest()
            waiting = min(storage.history("data_time").latest() / seconds, 1.0)
            rate = self.batch_size / seconds
            storage.put_scalars(images_per_second=rate, data_time_share=waiting)
        if (self.trainer.iter + 1) % self.collapse_period == 0:
            self._warn_of_collapse(storage)
        if self._is_due():
            line = [*self._contrast(storage), self._queues(storage), *self._machine(storage)]
            logger.info("%s", " | ".join([self._progress(storage), *line]))

    def _is_due(self) -> bool:
        done = self.trainer.iter + 1
        ends = (self.trainer.start_iter + 1, self.trainer.max_iter)
        return done % PERIOD == 0 or done in ends

    def _missing_keys(self, iteration: int) -> tuple[int, int]:
        """How many keys each queue lacks (undone steps add none), and when it will be full."""
        missing = max(0, self.queue_length - int(self.detco.queue.num_enqueued))
        return missing, iteration + math.ceil(missing / self.batch_size)

    def _warn_of_collapse(self, storage: EventStorage) -> None:
        for name, history in storage.histories().items():
            if not name.startswith("spread/"):
                continue
            spread = history.median(self.collapse_period)
            if spread >= _LEAST_SPREAD:
                self.collapsed.discard(name)
            elif name not in self.collapsed:
                self.collapsed.add(name)
                view = name.removeprefix("spread/").replace("_", " ")
                logger.warning(
                    f"{name} is {spread:.4f} at iteration {self.trainer.iter}: the {view} "
                    'embeddings have collapsed to a point. MODEL.DETCO.HEAD_NORM "BN", a lower '
                    "SOLVER.BASE_LR or more varied images help (docs/GETTING_STARTED.md)."
                )

    def _progress(self, storage: EventStorage) -> str:
        done, last = self.trainer.iter + 1, self.trainer.max_iter
        text = f"iteration {done} of {last} ({100 * done // last} %)"
        if "time" not in storage.histories():
            return text
        return f"{text}, {duration(storage.history('time').median(1000) * (last - done))} left"

    def _queues(self, storage: EventStorage) -> str:
        missing, full_at = self._missing_keys(self.trainer.iter + 1)
        filled = 1 - missing / self.queue_length
        scalars = {"queue/filled": filled, "chance/loss": self.chance}
        storage.put_scalars(**scalars, smoothing_hint=False)
        if missing:
            return f"queues {100 * filled:.0f} % full, the loss rises until iteration {full_at}"
        return f"queues full, oldest key {self.queue_length / self.batch_size:.0f} iterations"

    def _contrast(self, storage: EventStorage) -> list[str]:
        def each(kind: str, firsts: Iterable[str], scale: float, digits: int) -> str:
            texts = []
            for first in firsts:
                names = [f"{kind}/{first}_{stage}" for stage in self.detco.stage_weights]
                values = (scale * _median(storage, name) for name in names)
                texts.append(f"{first} " + "/".join(f"{value:.{digits}f}" for value in values))
            return ", ".join(texts)

        stages, chance = "/".join(self.detco.stage_weights), 100 / (self.queue_length + 1)
        views = dict.fromkeys(view.split("_")[0] for view in self.detco.views if "query" in view)
        top1 = each("top1", self.detco.families, 100, 0)
        return [
            f"loss {_median(storage, 'total_loss'):.2f} (chance {self.total_chance:.2f})",
            f"top-1 % of {stages}: {top1} (chance {chance:.2g})",
            f"spread {each('spread', views, 1, 2)}",
        ]

    def _machine(self, storage: EventStorage) -> list[str]:
        parts = []
        if "images_per_second" in storage.histories():
            rate, share = (_median(storage, n) for n in ("images_per_second", "data_time_share"))
            advice = "" if share < 0.2 else " (raise DATALOADER.NUM_WORKERS if cores are idle)"
            parts.append(f"{rate:.1f} images/s, waiting for data {100 * share:.0f} %{advice}")
        if "lr" in storage.histories():
            parts.append(f"lr {storage.history('lr').latest():.2g}")
        if torch.cuda.is_available():
            parts.append(f"memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
        return parts


def _median(storage: EventStorage, name: str) -> float:
    """Of those values since the last line that are numbers (a step may be undone); or NaN."""
    values = storage.histories()[name].values() if name in storage.histories() else []
    numbers = [value for value, _ in values[-PERIOD:] if math.isfinite(value)]
    return statistics.median(numbers) if numbers else math.nan


def duration(seconds: float) -> str:
    """Say a time in the unit that leaves two or three digits.

    >>> duration(75), duration(720), duration(9000), duration(300000)
    ('75 s', '12 min', '2.5 h', '3.5 days')
    """
    for unit, size, digits in (("days", 86400, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"

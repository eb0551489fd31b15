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
_COLLAPSE_PERIOD = 100


class HealthHook(HookBase):
    """Records how the contrast fares, says it in one line, and warns of a collapse.

    Of the main process, on which alone it belongs. It comes after Detectron2's `IterationTimer`,
    whose `time` and `data_time` it reads, and before the writers. At the iterations of its line
    the model watches closely; see :class:`DetCo`.

    Scalars, besides those of the model: `queue/filled` (0..1), `queue/age` (of the oldest key, in
    iterations), `chance/loss` (log(K + 1), of each term), `images_per_second`, `data_time_share`
    (0..1), `eta_seconds`.
    """

    def __init__(
        self,
        detco: Any,
        batch_size: int,
        period: int = PERIOD,
        *,
        collapse_limit: float = 0.05,
        collapse_period: int = _COLLAPSE_PERIOD,
    ) -> None:
        """
        Args:
            detco: the model, not in DDP.
            batch_size: images an iteration over all processes.
            period: iterations between two lines; also the first and the last iteration have one.
            collapse_limit: of the spread, which is 1 on the whole sphere; see `embedding_spread`.
            collapse_period: iterations over which its median is taken.
        """
        self.detco = detco
        self.batch_size = batch_size
        self.period = period
        self.collapse_limit = collapse_limit
        self.collapse_period = collapse_period
        self.collapsed: set[str] = set()  # each is said once, until it has recovered
        self.queue_length = detco.queue.features.shape[1]
        self.chance = math.log(self.queue_length + 1)
        self.total_chance = self.chance * len(detco.families) * sum(detco.stage_weights.values())

    def before_train(self) -> None:
        missing = self.queue_length - int(self.detco.queue.num_enqueued)
        state = "The queues are full"
        if missing > 0:
            full_at = self.trainer.start_iter + math.ceil(missing / self.batch_size)
            state = f"The loss rises until the queues are full at iteration {full_at}"
        logger.info(
            "%s; chance is then log(K + 1) = %.2f for each term, and %.2f for the total loss.",
            *(state, self.chance, self.total_chance),
        )

    def before_step(self) -> None:
        self.detco.watch_closely = self._is_due()

    def after_step(self) -> None:
        storage = self.trainer.storage
        self._record_speed(storage)
        if (self.trainer.iter + 1) % self.collapse_period == 0:
            self._warn_of_collapse(storage)
        if self._is_due():
            logger.info("%s", " | ".join(self._line(storage)))

    def _is_due(self) -> bool:
        done = self.trainer.iter + 1
        ends = (self.trainer.start_iter + 1, self.trainer.max_iter)
        return done % self.period == 0 or done in ends

    def _record_speed(self, storage: EventStorage) -> None:
        if "time" not in storage.histories():
            return  # the timer skips the first iterations
        seconds = storage.history("time").latest()
        waiting = storage.history("data_time").latest()
        storage.put_scalar("images_per_second", self.batch_size / seconds)
        storage.put_scalar("data_time_share", min(waiting / seconds, 1.0))

    def _warn_of_collapse(self, storage: EventStorage) -> None:
        for name, history in storage.histories().items():
            if not name.startswith("spread/"):
                continue
            spread = history.median(self.collapse_period)
            if spread >= self.collapse_limit:
                self.collapsed.discard(name)
            elif name not in self.collapsed:
                self.collapsed.add(name)
                logger.warning(
                    "%s is %.4f at iteration %d: the %s embeddings have collapsed to a point. "
                    'MODEL.DETCO.HEAD_NORM "BN", a lower SOLVER.BASE_LR or more varied images '
                    "help (docs/GETTING_STARTED.md).",
                    *(name, spread, self.trainer.iter, name[len("spread/") :].replace("_", " ")),
                )

    def _line(self, storage: EventStorage) -> list[str]:
        """The parts of the status line; records what of it is not recorded yet."""

        def recent(name: str) -> float:
            return _median(storage, name, self.period)

        def by_stage(kind: str, first: str, scale: float, digits: int) -> str:
            values = [recent(f"{kind}/{first}_{stage}") for stage in self.detco.stage_weights]
            return f"{first} " + "/".join(f"{scale * value:.{digits}f}" for value in values)

        def each(kind: str, firsts: Iterable[str], scale: float = 1, digits: int = 2) -> str:
            return ", ".join(by_stage(kind, first, scale, digits) for first in firsts)

        families = self.detco.families
        views = dict.fromkeys(view.split("_")[0] for view in self.detco.views if "query" in view)
        chance = 100 / (self.queue_length + 1)
        parts = [
            self._progress(storage),
            f"loss {recent('total_loss'):.2f} (chance {self.total_chance:.2f})",
            f"top-1 % of {'/'.join(self.detco.stage_weights)}: {each('top1', families, 100, 0)} "
            f"(chance {chance:.2g})",
            f"top-5 % {each('top5', families, 100, 0)} (chance {min(100.0, 5 * chance):.2g})",
            f"alignment {each('alignment', families)}",
            f"uniformity {each('uniformity', views)}",
            f"spread {each('spread', views)}",
            self._queues(storage),
        ]
        if "images_per_second" in storage.histories():
            share = recent("data_time_share")
            advice = "" if share < 0.2 else " (raise DATALOADER.NUM_WORKERS if cores are idle)"
            parts.append(
                f"{recent('images_per_second'):.1f} images/s, waiting for data "
                f"{100 * share:.0f} %{advice}"
            )
        if "lr" in storage.histories():
            parts.append(f"lr {storage.history('lr').latest():.2g}")
        if torch.cuda.is_available():
            parts.append(f"memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
        return parts

    def _progress(self, storage: EventStorage) -> str:
        done, last = self.trainer.iter + 1, self.trainer.max_iter
        text = f"iteration {done} of {last} ({100 * done // last} %)"
        if "time" not in storage.histories():
            return text
        left = storage.history("time").median(1000) * (last - done)
        storage.put_scalar("eta_seconds", left, smoothing_hint=False)
        return f"{text}, {duration(left)} left"

    def _queues(self, storage: EventStorage) -> str:
        enqueued = int(self.detco.queue.num_enqueued)  # undone steps have added none
        missing = max(0, self.queue_length - enqueued)
        filled = 1 - missing / self.queue_length
        age = filled * self.queue_length / self.batch_size
        storage.put_scalars(
            **{"queue/filled": filled, "queue/age": age, "chance/loss": self.chance},
            smoothing_hint=False,
        )
        if missing:
            full_at = self.trainer.iter + 1 + math.ceil(missing / self.batch_size)
            return f"queues {100 * filled:.0f} % full, the loss rises until iteration {full_at}"
        return f"queues full, oldest key {age:.0f} iterations"


def _median(storage: EventStorage, name: str, count: int) -> float:
    """Of the newest so many values that are numbers, since a step may be undone; or NaN."""
    if name not in storage.histories():
        return math.nan
    values = [value for value, _ in storage.history(name).values()[-count:]]
    values = [value for value in values if math.isfinite(value)]
    return statistics.median(values) if values else math.nan


def duration(seconds: float) -> str:
    """In the unit that leaves two or three digits.

    >>> duration(75), duration(720), duration(9000), duration(300000)
    ('75 s', '12 min', '2.5 h', '3.5 days')
    """
    for unit, size, digits in (("days", 86400, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"

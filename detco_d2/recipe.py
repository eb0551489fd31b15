"""Settings that follow from how many images there are, and how long a run is."""

from typing import Any

KEYS = (
    "MODEL.DETCO.HEAD_NORM",
    "MODEL.DETCO.QUEUE_LENGTH",
    "MODEL.DETCO.QUEUE_FILL",
    "MODEL.DETCO.MOMENTUM",
    "SOLVER.BASE_LR",
    "SOLVER.WARMUP_ITERS",
)

_PAPER_BATCH, _PAPER_RATE, _PAPER_QUEUE = 256, 0.03, 65536
_LONG = 100_000_000  # images that a run sees; the paper's sees 256 million


def recipe(num_images: int, batch: int, iterations: int) -> dict[str, Any]:
    """Gives the values of KEYS; at the paper's size they are the paper's.

    - Heads have no norm in long runs, as in the paper. In shorter ones the deep local heads learn
      more with BN (docs/MODEL_ZOO.md).
    - A queue holds at most half of the images: otherwise an image meets itself among its negatives.
      It holds at most an eighth of what the run sees: otherwise it is full of random vectors, or of
      keys of an encoder that has changed, for much of the run.
    - Without a norm the queues are filled with real keys first, or deep local heads collapse.
    - The momentum encoder averages over 1 / (1 - m) iterations: a tenth of the run, from 100 to the
      paper's 1,000. With less the keys in a queue would not belong together.
    - The rate is in proportion to the batch (Goyal et al. 2017).
    - A batch above the paper's has five epochs of warm-up (the same), at most a tenth of the run.

    Args:
        num_images: of the data.
        batch: images an iteration, over all processes.
        iterations: of the whole run.
    """
    seen = batch * iterations
    horizon = min(max(iterations / 10, 100), 1000)
    is_long, is_large = seen >= _LONG, batch > _PAPER_BATCH
    return {
        "MODEL.DETCO.HEAD_NORM": "" if is_long else "BN",
        "MODEL.DETCO.QUEUE_LENGTH": max(1, min(_PAPER_QUEUE, num_images // 2, seen // 8)),
        "MODEL.DETCO.QUEUE_FILL": is_long,
        "MODEL.DETCO.MOMENTUM": round(1 - 1 / horizon, 6),
        "SOLVER.BASE_LR": _PAPER_RATE * batch / _PAPER_BATCH,
        "SOLVER.WARMUP_ITERS": min(5 * num_images // batch, iterations // 10) if is_large else 0,
    }

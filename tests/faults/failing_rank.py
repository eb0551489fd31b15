"""pretrain_net.py, but one process fails at iteration 5: `failing_rank.py RANK HOW ...flags`.

HOW is raise, die, hang, or for its loader process die_loader, hang_loader.
"""

import os
import signal
import sys
import time
from typing import Any

from detectron2.utils import comm

import pretrain_net
from detco_d2.data.mapper import DetCoDatasetMapper
from detco_d2.engine.step import PretrainStep

rank, how = int(sys.argv.pop(1)), sys.argv.pop(1)
run_step, make_sample = PretrainStep.run_step, DetCoDatasetMapper.__call__


def fail() -> None:
    if how.startswith("raise"):
        raise KeyError("planted")
    if how.startswith("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        time.sleep(1)


def step_or_fail(self: PretrainStep) -> None:
    if self.iter == 5 and comm.get_rank() == rank and "loader" not in how:
        fail()
    run_step(self)


class Loads:
    count = 0


def sample_or_fail(self: DetCoDatasetMapper, image: dict[str, Any]) -> dict[str, Any]:
    Loads.count += 1
    if "loader" in how and comm.get_rank() == rank and Loads.count == 10:
        fail()
    return make_sample(self, image)


PretrainStep.run_step = step_or_fail  # type: ignore[method-assign]
DetCoDatasetMapper.__call__ = sample_or_fail  # type: ignore[method-assign]

if __name__ == "__main__":
    pretrain_net.run()

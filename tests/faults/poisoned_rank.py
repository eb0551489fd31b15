"""Run by torchrun in two CPU processes: gradients and keys of rank 1 turn into NaN for a step."""

import math
import sys
from typing import Any

import torch
from detectron2.engine import create_ddp_model
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from detco_d2.compat import create_local_process_group
from detco_d2.engine.guard import NonFiniteSteps
from detco_d2.engine.step import PretrainStep
from tests.conftest import make_batch, tiny_config
from tests.faults.harness import changed, state_of


def main(output: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = comm.get_rank()
    create_local_process_group(2)
    torch.manual_seed(rank)
    model = build_model(tiny_config()).train()
    optimizer = torch.optim.SGD(model.query_encoder.parameters(), lr=0.05, momentum=0.9)
    wrapped = create_ddp_model(model, broadcast_buffers=False, device_ids=None)
    batches = (make_batch(2, seed=10 * i + rank) for i in range(100))
    reports: list[dict[str, Any]] = []

    class Steps(NonFiniteSteps):
        def failed(self, report: dict[str, Any]) -> None:
            reports.append(report)
            super().failed(report)

    step = PretrainStep(wrapped, batches, optimizer, nonfinite=Steps(5))

    def run() -> None:
        with EventStorage():
            step.run_step()

    def poison(module: torch.nn.Module, inputs: object, result: torch.Tensor) -> torch.Tensor:
        return result + (math.nan if rank == 1 else 0.0)

    run()
    before = state_of(step)
    handles = [
        lambda: model.key_encoder.global_heads["res4"].out.register_forward_hook(poison),
        lambda: model.query_encoder.backbone.res3.register_forward_hook(poison),
    ]
    for register in handles:
        handle = register()
        run()
        handle.remove()
    poisoned = state_of(step)
    run()
    torch.save(
        {
            "changed_by_poison": changed(before, poisoned),
            "changed_by_step": len(changed(poisoned, state_of(step))),
            "undone": step.nonfinite.total,
            "finite": all(bool(v.isfinite().all()) for v in state_of(step).values()),
            "finite_losses": [
                all(math.isfinite(value) for value in process["losses"].values())
                for process in reports[-1]["processes"]
            ],
            "queue": model.queue.features,
        },
        f"{output}/rank{rank}.pt",
    )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])

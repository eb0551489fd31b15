"""Run by torchrun in two CPU processes: steps of DetCo under DDP, and what they end with."""

import sys
from typing import Any

import torch
from detectron2.engine import create_ddp_model
from detectron2.modeling import build_model
from detectron2.utils import comm

from detco_d2.compat import create_local_process_group
from detco_d2.engine.fill import FillHook
from detco_d2.engine.pretrain import PretrainTrainer
from detco_d2.modeling.distributed import Shuffle, concat_all_gather
from tests.conftest import R18, make_batch, tiny_config

# With group norm in the backbone nothing depends on who shares a batch.
NORM_FREE = [*R18, "MODEL.RESNETS.NORM", "GN"]


def run(model: torch.nn.Module, steps: int, part: slice) -> list[dict[str, float]]:
    """Train on this process's part of batches of four; returns the losses of each step."""
    detco: Any = getattr(model, "module", model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses_of_steps = []
    for step in range(steps):
        detco.begin_step()
        losses = model({name: view[part] for name, view in make_batch(4, seed=step).items()})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        detco.finish_step()
        losses_of_steps.append({name: loss.item() for name, loss in losses.items()})
    return losses_of_steps


def accumulate(model: torch.nn.Module, own: slice) -> torch.Tensor:
    """The gradient of one step over both halves of this process's images, one after the other."""
    batch = {name: view[own] for name, view in make_batch(4).items()}
    first, second = ({name: view[i : i + 1] for name, view in batch.items()} for i in (0, 1))
    model.module.begin_step()
    with model.no_sync():
        (sum(model(first).values()) / 2).backward()
    (sum(model(second).values()) / 2).backward()
    model.module.finish_step()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def filled_queue(output: str, images: str) -> torch.Tensor:
    """The queues of a trainer before its first step."""
    torch.manual_seed(0)
    settings = [*NORM_FREE, "DATASETS.TRAIN", (images,), "OUTPUT_DIR", output]
    trainer = PretrainTrainer(tiny_config(*settings, "MODEL.DETCO.QUEUE_LENGTH", 12))
    hook = FillHook(trainer.cfg)
    hook.trainer = trainer
    hook.before_train()
    return trainer._trainer.detco.queue.features


def main(output: str, broadcast_buffers: bool, images: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = comm.get_rank()
    create_local_process_group(2)
    own = slice(2 * rank, 2 * rank + 2)

    torch.manual_seed(100 + rank)  # Detectron2 seeds every process differently
    model = build_model(tiny_config()).train()
    wrapped = create_ddp_model(model, broadcast_buffers=broadcast_buffers, device_ids=None)
    run(wrapped, 4, own)
    result = {"queue": model.queue.features, "count": model.queue.num_enqueued}
    result["query"] = torch.cat([p.detach().flatten() for p in model.query_encoder.parameters()])
    result["key"] = torch.cat([p.detach().flatten() for p in model.key_encoder.parameters()])

    torch.manual_seed(0)
    # the second variant goes without the shuffle, whose result must be the same
    shuffle = ["MODEL.DETCO.SHUFFLE_BN", not broadcast_buffers]
    exact = build_model(tiny_config(*NORM_FREE, *shuffle)).double().train()
    wrapped = create_ddp_model(exact, broadcast_buffers=broadcast_buffers, device_ids=None)
    result["losses"] = run(wrapped, 3, own)
    result["exact_queue"] = exact.queue.features

    rows = torch.arange(8).view(4, 2) + 10 * rank
    shuffle = Shuffle(rows, seed=3)
    result["dealt"], result["order"] = shuffle.wait(), shuffle.order
    result["undone"] = shuffle.undo(concat_all_gather(result["dealt"]), dim=0)
    result["next_order"] = Shuffle(rows, seed=11).order

    torch.manual_seed(0)
    parts = build_model(tiny_config(*NORM_FREE)).double().train()
    result["accumulated"] = accumulate(create_ddp_model(parts, device_ids=None), own)
    result["accumulated_queue"] = parts.queue.features
    result["filled_queue"] = filled_queue(f"{output}/{rank}", images)
    torch.save(result, f"{output}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "True", sys.argv[3])

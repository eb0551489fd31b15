"""One pretraining step: parts of a batch, one update, one transfer of what is watched."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage


class PretrainStep(SimpleTrainer):
    """Detectron2's `SimpleTrainer` with accumulation, and with one number crossing where it has 13.

    Detectron2 fetches every loss by itself and gathers them over the processes as pickles; here
    they leave the device together, as their mean over the processes.
    """

    def __init__(
        self,
        model: Any,
        data_loader: Any,
        optimizer: Any,
        parts: int = 1,
        finish: Callable[[dict[str, Any], torch.device], dict[str, Any]] | None = None,
    ) -> None:
        """
        Args:
            model: a DetCo, in DDP or not.
            data_loader: gives this process's share of each batch.
            optimizer: of the query encoder.
            parts: into which a share is cut (SOLVER.ACCUMULATION_STEPS).
            finish: moves a part of a batch to the device, as `DetCoDatasetMapper.finish`.
        """
        super().__init__(model, data_loader, optimizer)
        self.parts = parts
        self.finish = finish
        self.device = next(model.parameters()).device

    def run_step(self) -> None:
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, torch.Tensor] = {}
        for i, part in enumerate(split_batch(batch, self.parts)):
            ends = i == self.parts - 1
            if self.finish:
                part = self.finish(part, self.device)
            # gradients cross the network with the last part alone
            alone = hasattr(self.model, "no_sync") and not ends
            with self.model.no_sync() if alone else contextlib.nullcontext():
                losses = self.model(part, begins_step=i == 0, ends_step=ends)
                (sum(losses.values()) / self.parts).backward()
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0) + loss.detach() / self.parts
        self._record(sums, data_time)
        self.optimizer.step()

    def _record(self, losses: dict[str, torch.Tensor], data_time: float) -> None:
        values = torch.stack([*losses.values(), torch.tensor(data_time, device=self.device)])
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(values)
            values /= comm.get_world_size()
        *numbers, data_time = values.tolist()
        total = sum(numbers)
        if not total - total == 0:  # infinite or NaN, and so on every process
            raise FloatingPointError(
                f"The loss is {total} at iteration {self.iter}: "
                f"{dict(zip(losses, numbers))}. Lower SOLVER.BASE_LR, or turn bfloat16 off."
            )
        storage = get_event_storage()
        storage.put_scalars(total_loss=total, data_time=data_time, **dict(zip(losses, numbers)))


def split_batch(batch: dict[str, Any], parts: int) -> list[dict[str, Any]]:
    """Cut a batch of tensors and lists along the images into so many parts, in order."""
    if parts == 1:
        return [batch]
    result = []
    for i in range(parts):
        result.append(
            {
                name: values[i * len(values) // parts : (i + 1) * len(values) // parts]
                for name, values in batch.items()
            }
        )
    return result

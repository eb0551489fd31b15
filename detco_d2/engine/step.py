"""One pretraining step: parts of a batch, one update or none, one transfer of what is watched."""

import contextlib
import math
import time
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from .guard import BadImages, NonFiniteSteps, nonfinite_gradients
from .stopping import StopRequest

# What is shared of a step besides its losses.
_COUNTS = ("data_time", "num_bad_images", "stop_signal", "gradient")


class PretrainStep(SimpleTrainer):
    """Detectron2's `SimpleTrainer` with accumulation, and with steps that count or leave no trace.

    The losses leave the device together, as their mean over the processes, along with what all
    processes must decide alike: whether the step is a number, whether to stop.

    Attributes:
        stop_signal: the signal that some process was asked to stop by, 0 if none.
        keep_views: whether the next step leaves the last part as it entered the model in `views`.
    """

    def __init__(
        self,
        model: Any,
        data_loader: Any,
        optimizer: Any,
        mapper: Any = None,
        *,
        parts: int = 1,
        bad_images: BadImages | None = None,
        nonfinite: NonFiniteSteps | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        """
        Args:
            model: a DetCo, in DDP or not.
            data_loader: gives this process's share of each batch.
            optimizer: of the query encoder.
            mapper: finishes each part on the device; without one the loader's batches are finished.
            parts: into which a share is cut (SOLVER.ACCUMULATION_STEPS).
            bad_images, nonfinite: take note; by default no undone step is survived.
            stop: what this process is asked to do.
        """
        super().__init__(model, data_loader, optimizer)
        self.parts = parts
        self.mapper = mapper
        self.bad_images = bad_images
        self.nonfinite = nonfinite or NonFiniteSteps(0)
        self.stop = stop
        self.stop_signal = 0
        self.keep_views = False
        self.views: dict[str, Any] | None = None
        self.detco = getattr(model, "module", model)
        self.device = next(model.parameters()).device
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def run_step(self) -> None:
        """Raise as :class:`BadImages` and :class:`NonFiniteSteps` do."""
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        bad_images = batch.pop("bad_images", [])

        self.optimizer.zero_grad(set_to_none=True)
        self.detco.begin_step()
        sums: dict[str, torch.Tensor] = {}
        for i, part in enumerate(split_batch(batch, self.parts)):
            if self.mapper:
                part = self.mapper.finish(part, self.device)
            # gradients cross the network with the last part alone
            alone = hasattr(self.model, "no_sync") and i < self.parts - 1
            with self.model.no_sync() if alone else contextlib.nullcontext():
                losses = self.model(part)
                (sum(losses.values()) / self.parts).backward()
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0) + loss.detach() / self.parts
        self.views = part if self.keep_views else None

        number = self.stop.number if self.stop else 0
        shared, own = self._share(sums, data_time, len(bad_images), number)
        if all(math.isfinite(value) for value in shared.values()):
            self.optimizer.step()
            self.detco.finish_step()
            self.nonfinite.passed()
        else:
            self._undo(shared, own, batch)
        self._note(shared, bad_images, number)

    def close(self) -> None:
        """End the loader processes."""
        self._data_loader_iter.close()

    def _share(
        self, losses: dict[str, torch.Tensor], *counts: float
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Means over the processes, and this process's own values, of losses and `_COUNTS`."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        counted = torch.tensor(counts).to(self.device, non_blocking=True)
        own = torch.cat([torch.stack([*losses.values()]), counted, norm.detach()[None]])
        names = [*losses, *_COUNTS]
        mean = own.clone()
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(mean)
        both = torch.stack([mean / comm.get_world_size(), own]).tolist()
        return dict(zip(names, both[0])), dict(zip(names, both[1]))

    def _undo(self, shared: dict[str, float], own: dict[str, float], batch: dict[str, Any]) -> None:
        process = {
            "losses": {name: own[name] for name in own if name not in _COUNTS},
            "file_name": list(batch.get("file_name", [])),
        }
        report = {
            "iteration": self.iter,
            "losses": {name: shared[name] for name in process["losses"]},
            "gradient_norm": shared["gradient"],
            "nonfinite_gradients": nonfinite_gradients(self.detco),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "torch_rng_state": torch.get_rng_state(),
            "processes": comm.all_gather(process),
        }
        self.detco.undo_step()
        self.optimizer.zero_grad(set_to_none=True)
        self.nonfinite.failed(report)

    def _note(
        self, shared: dict[str, float], bad_images: list[tuple[str, str]], number: int
    ) -> None:
        storage = get_event_storage()
        losses = {name: value for name, value in shared.items() if name not in _COUNTS}
        storage.put_scalars(total_loss=sum(losses.values()), **losses)
        storage.put_scalars(data_time=shared["data_time"], gradient_norm=shared["gradient"])
        if self.nonfinite.total:
            storage.put_scalar("nonfinite_steps", self.nonfinite.total, smoothing_hint=False)
        if shared["stop_signal"]:
            self.stop_signal = max(comm.all_gather(number))
        if shared["num_bad_images"] and self.bad_images is not None:
            self.bad_images.add([pair for found in comm.all_gather(bad_images) for pair in found])
        if self.bad_images is not None and self.bad_images.reasons:
            count = len(self.bad_images.reasons)
            storage.put_scalar("data/bad_images", count, smoothing_hint=False)


def split_batch(batch: dict[str, Any], parts: int) -> list[dict[str, Any]]:
    """Cut a batch of tensors and lists along the images into so many parts, in order."""

    def part(i: int) -> dict[str, Any]:
        return {
            name: values[i * len(values) // parts : (i + 1) * len(values) // parts]
            for name, values in batch.items()
        }

    return [batch] if parts == 1 else [part(i) for i in range(parts)]

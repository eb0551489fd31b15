"""Detectron2's `DefaultTrainer`, opened where pretraining and CPU processes need it."""

import weakref
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, SimpleTrainer, TrainerBase, create_ddp_model
from detectron2.engine.train_loop import AMPTrainer
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter
from fvcore.common.history_buffer import HistoryBuffer

from ..files import StrictLines
from ..weights.checkpointer import BackboneCheckpointer
from ..weights.input_spec import InputSpec

_OWN = ("initial_lr", "momentum", "nesterov")  # what the optimiser has from the config, always


class Trainer(DefaultTrainer):
    """A `DefaultTrainer` for GPUs and CPU processes alike.

    DDP also wraps CPU models, MODEL.WEIGHTS takes any backbone, checkpoints carry the input
    settings and, on Detectron2 0.5 too, the optimiser, and SOLVER.AMP.ENABLED works on the CPU.
    """

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)
        world_size = comm.get_world_size()
        cfg = self.auto_scale_workers(cfg, world_size)
        if cfg.SOLVER.IMS_PER_BATCH % world_size:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {world_size} processes "
                f"cannot share equally; make it a multiple of {world_size}."
            )
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        device_ids = None if cfg.MODEL.DEVICE == "cpu" else [comm.get_local_rank()]
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids)
        self._trainer = self.build_step(cfg, model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = BackboneCheckpointer(
            model, cfg.OUTPUT_DIR, input_spec=InputSpec(cfg), trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @classmethod
    def uses_bfloat16(cls, cfg: CfgNode) -> bool:
        """Whether SOLVER.AMP.ENABLED means bfloat16 autocast: Detectron2's own AMP wants a GPU."""
        return cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu"

    @classmethod
    def build_model(cls, cfg: CfgNode) -> Any:
        model = super().build_model(cfg)
        if cls.uses_bfloat16(cfg):
            device_type = torch.device(cfg.MODEL.DEVICE).type
            model.forward = torch.autocast(device_type, torch.bfloat16)(model.forward)
        return model

    def build_step(self, cfg: CfgNode, model: Any, loader: Any, optimizer: Any) -> SimpleTrainer:
        """What makes one training step, as in `DefaultTrainer`."""
        own_amp = cfg.SOLVER.AMP.ENABLED and not self.uses_bfloat16(cfg)
        return (AMPTrainer if own_amp else SimpleTrainer)(model, loader, optimizer)

    def build_writers(self) -> list[EventWriter]:
        """Detectron2's, of which metrics.json has null for what is no number."""
        writers = super().build_writers()
        for writer in writers:
            if isinstance(writer, JSONWriter):
                writer._file_handle = StrictLines(writer._file_handle)
        return writers

    def before_train(self) -> None:
        # Detectron2 keeps a million values of each number: gigabytes, in a run of that length
        self.storage.histories().default_factory = partial(HistoryBuffer, max_length=1000)
        super().before_train()

    def state_dict(self) -> dict[str, Any]:
        states = {"_trainer": self._trainer.state_dict(), "config": self.cfg.dump()}
        return {**TrainerBase.state_dict(self), **states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        groups = self._trainer.optimizer.param_groups
        own = [{key: group[key] for key in _OWN if key in group} for group in groups]
        rates = self.scheduler.base_lrs
        if scaler := getattr(self._trainer, "grad_scaler", None):  # a run that had none may get one
            state["_trainer"].setdefault("grad_scaler", scaler.state_dict())
        TrainerBase.load_state_dict(self, state)
        self._trainer.load_state_dict(state["_trainer"])
        for group, values in zip(self._trainer.optimizer.param_groups, own):
            group.update(values)
        if self.scheduler.base_lrs != rates:
            self.scheduler.base_lrs = rates
            for group, rate in zip(self._trainer.optimizer.param_groups, self.scheduler.get_lr()):
                group["lr"] = rate
        # a fused update of tensors that do not belong together crashes the process
        for parameter, slots in self._trainer.optimizer.state.items():
            momentum = slots.get("momentum_buffer")
            if momentum is not None and momentum.shape != parameter.shape:
                raise ValueError(
                    "The optimiser's state in the checkpoint has its parameters in another order, "
                    "as another version of Detectron2 gives them. Go on with the version that "
                    "began the run (run.json names it), or start anew with --overwrite."
                )

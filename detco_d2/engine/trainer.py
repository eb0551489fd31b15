"""Detectron2's `DefaultTrainer`, opened where pretraining and CPU processes need it."""

import weakref
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, SimpleTrainer, TrainerBase, create_ddp_model
from detectron2.engine.train_loop import AMPTrainer
from detectron2.utils import comm

from ..checkpoint.handover import BackboneCheckpointer
from ..checkpoint.input_spec import InputSpec


class Trainer(DefaultTrainer):
    """A `DefaultTrainer` for GPUs and CPU processes alike.

    It differs in four things: DDP also wraps CPU models, MODEL.WEIGHTS takes any backbone that
    :class:`BackboneCheckpointer` knows, checkpoints carry the input settings, and the optimiser is
    saved on Detectron2 0.5 too.
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

    def build_step(self, cfg: CfgNode, model: Any, loader: Any, optimizer: Any) -> SimpleTrainer:
        """What makes one training step, as in `DefaultTrainer`."""
        step_class = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        return step_class(model, loader, optimizer)

    def state_dict(self) -> dict[str, Any]:
        return {**TrainerBase.state_dict(self), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        TrainerBase.load_state_dict(self, state)
        self._trainer.load_state_dict(state["_trainer"])

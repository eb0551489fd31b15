"""The pretraining trainer."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, SimpleTrainer, hooks
from detectron2.utils import comm

from ..data.build import build_pretrain_loader, pack_images
from ..data.datasets import load_images, prepare_datasets
from ..data.mapper import DetCoDatasetMapper
from ..data.shards import build_shard_loader, find_shards, is_shard_name, list_shards
from .hooks import ThroughputHook
from .launch import keep_freed_memory
from .step import PretrainStep
from .trainer import Trainer

logger = logging.getLogger(__name__)

KEEP_CHECKPOINTS = 3


def check_images(names: Sequence[str]) -> None:
    """Refuse a DATASETS.TRAIN that names what is not there, before any process starts.

    Raises:
        ValueError, FileNotFoundError, ImportError: see :func:`list_shards` and
            :func:`prepare_datasets`.
    """
    if any(is_shard_name(name) for name in names):
        list_shards(names)
    else:
        prepare_datasets(names, [])


def with_schedule(cfg: CfgNode, num_images: int) -> CfgNode:
    """A copy of the config whose SOLVER.MAX_ITER follows SOLVER.MAX_EPOCHS, if that is set.

    Likewise SOLVER.BASE_LR follows the batch, if SOLVER.LR_REFERENCE_BATCH is set.

    Raises:
        ValueError: a batch larger than the data.
    """
    batch, length = cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.DETCO.QUEUE_LENGTH
    if batch > num_images:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {batch}, but DATASETS.TRAIN has {num_images} images; the "
            "same image would be its own negative. Lower the batch or add images."
        )
    if length > num_images // 2:
        logger.warning(
            "MODEL.DETCO.QUEUE_LENGTH is %d for %d images: an image then meets itself among its "
            "negatives. At most half the number of images is advised: %d.",
            length,
            num_images,
            num_images // 2,
        )
    cfg = cfg.clone()
    cfg.defrost()
    if cfg.SOLVER.MAX_EPOCHS > 0:
        cfg.SOLVER.MAX_ITER = cfg.SOLVER.MAX_EPOCHS * (num_images // batch)
        logger.info("%d epochs are %d iterations", cfg.SOLVER.MAX_EPOCHS, cfg.SOLVER.MAX_ITER)
    if cfg.SOLVER.LR_REFERENCE_BATCH > 0:
        rate = cfg.SOLVER.BASE_LR * batch / cfg.SOLVER.LR_REFERENCE_BATCH
        logger.info(
            "SOLVER.BASE_LR: %g is for a batch of %d; for %d it is %g",
            *(cfg.SOLVER.BASE_LR, cfg.SOLVER.LR_REFERENCE_BATCH, batch, rate),
        )
        cfg.SOLVER.BASE_LR = rate
    cfg.freeze()
    return cfg


def merge_param_groups(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join parameter groups of equal settings, in order: one fused update for all of them."""
    merged: dict[tuple, dict[str, Any]] = {}
    for group in groups:
        settings = {name: value for name, value in group.items() if name != "params"}
        key = tuple(sorted(settings.items()))
        merged.setdefault(key, {**settings, "params": []})["params"] += group["params"]
    return list(merged.values())


class PretrainTrainer(Trainer):
    """Trains a DetCo model on the images of DATASETS.TRAIN.

    A checkpoint holds both encoders, the queues, the optimiser, the schedule, the iteration and
    the seed of the data; the data stream is a function of the last two, so a resumed run
    continues exactly. `SOLVER.AMP.ENABLED` means bfloat16 autocast, on GPU and CPU.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.images: Any
        self.from_shards = any(is_shard_name(name) for name in cfg.DATASETS.TRAIN)
        if self.from_shards:
            self.images = find_shards(cfg.DATASETS.TRAIN)
            num_images = sum(shard.num_images for shard in self.images)
        else:
            self.images = pack_images(load_images(cfg.DATASETS.TRAIN))
            num_images = len(self.images)
        self.data_seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self.mapper = DetCoDatasetMapper(cfg)
        if cfg.MODEL.DEVICE == "cpu" and cfg.SOLVER.KEEP_FREED_MEMORY:
            keep_freed_memory()
        processes, parts = comm.get_world_size(), cfg.SOLVER.ACCUMULATION_STEPS
        if parts < 1 or cfg.SOLVER.IMS_PER_BATCH % (processes * parts):
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {processes} processes "
                f"of {parts} SOLVER.ACCUMULATION_STEPS each cannot share equally; make it a "
                f"multiple of {processes * max(parts, 1)}, and the steps at least 1."
            )
        super().__init__(with_schedule(cfg, num_images))

    @classmethod
    def uses_bfloat16(cls, cfg: CfgNode) -> bool:
        return cfg.SOLVER.AMP.ENABLED

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: Any) -> torch.optim.Optimizer:
        """SGD as Detectron2 builds it, with one group for all parameters of equal settings."""
        optimizer = super().build_optimizer(cfg, model)
        optimizer.param_groups = merge_param_groups(optimizer.param_groups)
        if cfg.SOLVER.FUSED_SGD:
            for group in optimizer.param_groups:
                group.update(fused=True, foreach=False)
        return optimizer

    def build_step(self, cfg: CfgNode, model: Any, loader: Any, optimizer: Any) -> SimpleTrainer:
        parts = cfg.SOLVER.ACCUMULATION_STEPS
        return PretrainStep(model, loader, optimizer, parts, self.mapper.finish)

    def build_train_loader(self, cfg: CfgNode) -> Iterator[Any]:
        """A generator, so that the workers start at the first step, where a resume has set it."""
        build = build_shard_loader if self.from_shards else build_pretrain_loader
        yield from build(
            self.images,
            self.mapper,
            total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            seed=self.data_seed,
            start_iter=self.start_iter,
            pin_memory=cfg.MODEL.DEVICE != "cpu",
        )

    def build_hooks(self) -> list[HookBase]:
        result = [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            ThroughputHook(self.cfg.SOLVER.IMS_PER_BATCH),
        ]
        if comm.is_main_process():
            result.append(
                hooks.PeriodicCheckpointer(
                    self.checkpointer,
                    self.cfg.SOLVER.CHECKPOINT_PERIOD,
                    max_to_keep=KEEP_CHECKPOINTS,
                )
            )
            result.append(hooks.PeriodicWriter(self.build_writers(), period=20))
        return result

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "data_seed": self.data_seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.data_seed = state["data_seed"]

"""The pretraining trainer."""

import logging
from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

from ..data.build import build_pretrain_loader
from ..data.datasets import load_images
from ..data.mapper import DetCoDatasetMapper
from .hooks import ThroughputHook
from .trainer import Trainer

logger = logging.getLogger(__name__)

KEEP_CHECKPOINTS = 3


def with_schedule(cfg: CfgNode, num_images: int) -> CfgNode:
    """A copy of the config whose SOLVER.MAX_ITER follows SOLVER.MAX_EPOCHS, if that is set.

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
    cfg.freeze()
    return cfg


class PretrainTrainer(Trainer):
    """Trains a DetCo model on the images of DATASETS.TRAIN.

    A checkpoint holds both encoders, the queues, the optimiser, the schedule, the iteration and
    the seed of the data; the data stream is a function of the last two, so a resumed run
    continues exactly. `SOLVER.AMP.ENABLED` means bfloat16 autocast, on GPU and CPU.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.images = load_images(cfg.DATASETS.TRAIN)
        self.data_seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        super().__init__(with_schedule(cfg, len(self.images)))

    @classmethod
    def uses_bfloat16(cls, cfg: CfgNode) -> bool:
        return cfg.SOLVER.AMP.ENABLED

    def build_train_loader(self, cfg: CfgNode) -> Iterator[Any]:
        """A generator, so that the workers start at the first step, where a resume has set it."""
        yield from build_pretrain_loader(
            self.images,
            DetCoDatasetMapper(cfg),
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

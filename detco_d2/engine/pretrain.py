"""The pretraining trainer."""

import logging
import os
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, SimpleTrainer, hooks
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventWriter

from ..config_files import lookup, with_pairs
from ..data.mapper import DetCoDatasetMapper
from ..data.stream import build_pretrain_loader, load_train_images, mix_seed
from ..recipe import recipe
from .guard import BadImages, NonFiniteSteps
from .health import PERIOD, HealthHook
from .hooks import CheckpointHook, StopHook
from .machine import keep_freed_memory
from .preflight import check_batch
from .step import PretrainStep
from .stopping import StopRequest
from .trainer import Trainer
from .views_hook import ViewsHook

logger = logging.getLogger(__name__)

_STEP = 10  # a kind of draw, see mix_seed; the data uses those below


def num_iterations(cfg: CfgNode, num_images: int) -> int:
    """The length of a run: MAX_EPOCHS of so many images, or MAX_ITER."""
    epochs = cfg.SOLVER.MAX_EPOCHS
    return epochs * (num_images // cfg.SOLVER.IMS_PER_BATCH) if epochs else cfg.SOLVER.MAX_ITER


def recipe_pairs(cfg: CfgNode, num_images: int) -> list[Any]:
    """KEY VALUE pairs that :func:`recipe` gives for what is None in the config."""
    found = recipe(num_images, cfg.SOLVER.IMS_PER_BATCH, num_iterations(cfg, num_images))
    if cfg.SOLVER.LR_REFERENCE_BATCH > 0:  # by which it will be scaled
        found["SOLVER.BASE_LR"] *= cfg.SOLVER.LR_REFERENCE_BATCH / cfg.SOLVER.IMS_PER_BATCH
    pairs = [pair for pair in found.items() if lookup(cfg, pair[0]) is None]
    return [item for pair in pairs for item in pair]


def with_schedule(cfg: CfgNode, num_images: int) -> CfgNode:
    """A copy of the config whose MAX_ITER follows MAX_EPOCHS, and BASE_LR LR_REFERENCE_BATCH."""
    batch, length = cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.DETCO.QUEUE_LENGTH
    if length > num_images // 2:
        logger.warning(
            f"MODEL.DETCO.QUEUE_LENGTH is {length} for {num_images} images: an image then meets "
            "itself among its negatives. At most half the number of images is advised: "
            f"{num_images // 2}."
        )
    cfg = with_pairs(cfg, ["SOLVER.MAX_ITER", num_iterations(cfg, num_images)])
    if cfg.SOLVER.MAX_EPOCHS > 0:
        logger.info("%d epochs are %d iterations", cfg.SOLVER.MAX_EPOCHS, cfg.SOLVER.MAX_ITER)
    if cfg.SOLVER.LR_REFERENCE_BATCH > 0:
        rate = cfg.SOLVER.BASE_LR * batch / cfg.SOLVER.LR_REFERENCE_BATCH
        logger.info(
            f"SOLVER.BASE_LR: {cfg.SOLVER.BASE_LR:g} is for a batch of "
            f"{cfg.SOLVER.LR_REFERENCE_BATCH}; for {batch} it is {rate:g}"
        )
        cfg = with_pairs(cfg, ["SOLVER.BASE_LR", rate])
    return cfg


def own_file(cfg: CfgNode, name: str) -> str:
    """A path in OUTPUT_DIR, on the main process; elsewhere "", for nowhere."""
    return os.path.join(cfg.OUTPUT_DIR, name) if comm.is_main_process() else ""


class PretrainTrainer(Trainer):
    """Trains a DetCo model on the images of DATASETS.TRAIN.

    A checkpoint holds both encoders, the queues, the optimiser, the schedule, the iteration and
    the seed; the data stream and the random numbers of each step are functions of the last two, so
    a resumed run continues exactly. `SOLVER.AMP.ENABLED` means bfloat16 autocast, on GPU and CPU.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.images = load_train_images(cfg.DATASETS.TRAIN, cfg.OUTPUT_DIR)
        check_batch(cfg, len(self.images), comm.get_world_size())
        cfg = with_pairs(cfg, recipe_pairs(cfg, len(self.images)))
        self.data_seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self.mapper = DetCoDatasetMapper(cfg)
        if cfg.MODEL.DEVICE == "cpu":
            keep_freed_memory()
        self.config = cfg.dump()  # as the user wrote it
        self.bad_images = BadImages(
            len(self.images), cfg.DATALOADER.MAX_BAD_FRACTION, own_file(cfg, "bad_images.txt")
        )
        self.stop = StopRequest(patience=cfg.SOLVER.COLLECTIVE_TIMEOUT)
        super().__init__(with_schedule(cfg, len(self.images)))
        self.checkpointer.keep = cfg.SOLVER.KEEP_CHECKPOINTS

    @classmethod
    def uses_bfloat16(cls, cfg: CfgNode) -> bool:
        return cfg.SOLVER.AMP.ENABLED

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: Any) -> torch.optim.Optimizer:
        """SGD as Detectron2 builds it, with one group for all parameters of equal settings."""
        optimizer = super().build_optimizer(cfg, model)
        merged: dict[tuple, dict[str, Any]] = {}
        for group in optimizer.param_groups:
            group.update(fused=True, foreach=False)
            parameters = group.pop("params")
            key = tuple(sorted(group.items()))
            merged.setdefault(key, {**group, "params": []})["params"] += parameters
        optimizer.param_groups = list(merged.values())
        return optimizer

    def build_step(self, cfg: CfgNode, model: Any, loader: Any, optimizer: Any) -> SimpleTrainer:
        return PretrainStep(
            model,
            loader,
            optimizer,
            self.mapper,
            parts=cfg.SOLVER.ACCUMULATION_STEPS,
            bad_images=self.bad_images,
            nonfinite=NonFiniteSteps(cfg.SOLVER.MAX_NONFINITE_STEPS, own_file(cfg, "debug")),
            stop=self.stop,
        )

    def build_train_loader(self, cfg: CfgNode) -> Iterator[Any]:
        """A generator, so that the workers start at the first step, where a resume has set it."""
        yield from self.batches(self.mapper, self.data_seed, self.start_iter)

    def batches(self, mapper: DetCoDatasetMapper, seed: int, start_iter: int) -> Iterator[Any]:
        """This process's share of the batches of the stream of this seed; no number is drawn."""
        cfg = self.cfg
        loader = build_pretrain_loader(
            self.images,
            mapper,
            total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            seed=seed,
            start_iter=start_iter,
            pin_memory=cfg.MODEL.DEVICE != "cpu",
            timeout=cfg.SOLVER.COLLECTIVE_TIMEOUT,
            start_worker=lambda worker: self.stop.listen_in_worker(),
        )
        with torch.random.fork_rng(devices=[]):
            batches = iter(loader)  # draws a number, which a step would miss
        yield from batches

    def train(self) -> Any:
        """
        Raises:
            RuntimeError: a loader process died or hangs, too many images are unreadable, or the
                disk is full.
            FloatingPointError: too many steps in a row gave no number.
            SystemExit: a signal asked for it, and the last step is saved.
        """
        if self.start_iter >= self.max_iter:
            logger.info("Nothing to do: all %d iterations are done.", self.max_iter)
            return None
        with self.stop:
            try:
                return super().train()
            except RuntimeError as error:  # torch raises it wherever a step is at that moment
                if not str(error).startswith("DataLoader "):
                    raise
                raise RuntimeError(
                    f"A loader process died or hangs: {error} Lower DATALOADER.NUM_WORKERS if "
                    "memory ran out, or raise SOLVER.COLLECTIVE_TIMEOUT if images are slow to read."
                ) from error
            finally:
                self._trainer.close()

    def before_train(self) -> None:
        self.bad_images.write_list()
        super().before_train()

    def before_step(self) -> None:
        seed_all_rng(mix_seed(self.data_seed, _STEP, self.iter, comm.get_rank()))
        super().before_step()

    def build_hooks(self) -> list[HookBase]:
        cfg = self.cfg
        result: list[HookBase] = [hooks.IterationTimer(), hooks.LRScheduler()]
        if cfg.MODEL.DETCO.QUEUE_FILL:
            from .fill import FillHook

            result.insert(0, FillHook(cfg))
        if cfg.TEST.KNN.DATASET:
            from .knn import KNNHook

            result.append(KNNHook(cfg, self.stop))
        if comm.is_main_process():
            period, failures = cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.MAX_FAILED_SAVES
            result += [
                HealthHook(self._trainer.detco, cfg.SOLVER.IMS_PER_BATCH),
                ViewsHook(self._trainer, cfg.OUTPUT_DIR, cfg.INPUT.FORMAT, cfg.VIS_PERIOD),
                CheckpointHook(self.checkpointer, period, failures),
                hooks.PeriodicWriter(self.build_writers(), period=PERIOD),
            ]
        return [*result, StopHook(self.checkpointer, self._trainer)]

    def build_writers(self) -> list[EventWriter]:
        """metrics.json, Weights & Biases if WANDB.PROJECT is set, TensorBoard's files.

        TensorBoard's comes last: it removes the pictures from the event storage.
        """
        os.makedirs(self.cfg.OUTPUT_DIR, exist_ok=True)
        _, *writers = super().build_writers()  # the first prints, which HealthHook does
        if self.cfg.WANDB.PROJECT:
            from .writers import WandbWriter

            writers.insert(1, WandbWriter(self.cfg))
        return writers

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "config": self.config,
            "data_seed": self.data_seed,
            "bad_images": dict(self.bad_images.reasons),
            "shape": self._shape(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.data_seed = state["data_seed"]
        self.bad_images.reasons = dict(state.get("bad_images", {}))
        before, now = state.get("shape", {}), self._shape()
        pairs = {name: (value, now.get(name)) for name, value in before.items()}
        if changed := {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}:
            logger.warning(
                f"The run goes on in another shape (before, now): {changed}. Its queues, encoders "
                "and schedule continue; batch norm sees other groups of images, and the numbers "
                "are no longer those of the undisturbed run. SOLVER.BASE_LR stays as it is."
            )

    def _shape(self) -> dict[str, int]:
        """What the numbers of a run depend on besides its config's model and schedule."""
        return {
            "processes": comm.get_world_size(),
            "SOLVER.IMS_PER_BATCH": self.cfg.SOLVER.IMS_PER_BATCH,
            "SOLVER.ACCUMULATION_STEPS": self.cfg.SOLVER.ACCUMULATION_STEPS,
            "images": self.bad_images.num_images,
        }

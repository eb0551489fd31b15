"""The transfer trainer: fine-tune a detector from a pretrained backbone, and evaluate it."""

import os
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_train_loader, detection_utils
from detectron2.data.detection_utils import build_augmentation
from detectron2.data.transforms import RandomCrop
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..config_files import with_pairs
from ..weights.checkpointer import BackboneCheckpointer
from ..weights.input_spec import InputSpec
from .labels import build_evaluator, follow_data, write_classes
from .trainer import Trainer

_read_labels = detection_utils.read_image


def _read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Stands in for Detectron2's, to which 16 bits are white and what is transparent is black."""
    if format not in ("RGB", "BGR"):
        return _read_labels(file_name, format)
    from ..data.images import read_image  # loader processes alone need it

    pixels = np.asarray(read_image({"file_name": file_name}))
    return pixels[:, :, ::-1] if format == "BGR" else pixels


detection_utils.read_image = _read_image  # which all mappers look up


def build_mapper(cfg: CfgNode) -> DatasetMapper:
    """Detectron2's training mapper, which for semantic segmentation crops after it has scaled.

    Detectron2 itself crops first, so that the crop's size in pixels would follow the scale.
    """
    if cfg.MODEL.META_ARCHITECTURE != "SemanticSegmentor" or not cfg.INPUT.CROP.ENABLED:
        return DatasetMapper(cfg, is_train=True)
    scale, *flip = build_augmentation(cfg, is_train=True)
    crop = RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)
    return DatasetMapper(cfg, is_train=True, augmentations=[scale, crop, *flip])


class TransferTrainer(Trainer):
    """Fine-tunes a detector or a segmentation network; evaluates on DATASETS.TEST."""

    def __init__(self, cfg: CfgNode) -> None:
        """
        Raises:
            ValueError, OSError: data that cannot be trained on, see :func:`follow_data`.
        """
        super().__init__(with_pairs(cfg, follow_data(cfg)))
        if comm.is_main_process():
            write_classes(cfg)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> Any:
        model = super().build_model(cfg)
        if cls.uses_bfloat16(cfg):
            model.to(memory_format=torch.channels_last)
        return model

    def train(self) -> dict[str, Any]:
        """Return the scores of the last evaluation, by task."""
        super().train()
        return self._last_eval_results

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_detection_train_loader(cfg, mapper=build_mapper(cfg))

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_dir: str | None = None
    ) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, output_dir)


def load_detector(cfg: CfgNode, resume: bool) -> tuple[CfgNode, Any]:
    """The whole model of MODEL.WEIGHTS, or with `resume` the newest checkpoint of OUTPUT_DIR.

    Returns:
        the config with what follows from the data, and the model.

    Raises:
        ValueError, OSError: no weights, or a tensor of the model is not in them; or see
            :func:`follow_data`.
    """
    if not (resume or cfg.MODEL.WEIGHTS):
        raise ValueError(
            "There is nothing to evaluate: set MODEL.WEIGHTS to a model_final.pth of train_net.py, "
            "or pass --resume for the newest checkpoint of OUTPUT_DIR."
        )
    folder = cfg.OUTPUT_DIR if resume else os.path.dirname(cfg.MODEL.WEIGHTS)
    cfg = with_pairs(cfg, follow_data(cfg, folder))
    model = TransferTrainer.build_model(cfg)
    spec = InputSpec(cfg)
    checkpointer = BackboneCheckpointer(model, cfg.OUTPUT_DIR, input_spec=spec, complete=True)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    return cfg, model

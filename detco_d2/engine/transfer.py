"""The transfer trainer: fine-tune a detector from a pretrained backbone, and evaluate it."""

import os
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog, build_detection_train_loader
from detectron2.data.detection_utils import build_augmentation
from detectron2.data.transforms import RandomCrop
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    DatasetEvaluator,
    PascalVOCDetectionEvaluator,
)

from ..compat import has_compiled_coco_evaluator, mend_cityscapesscripts
from ..weights.checkpointer import BackboneCheckpointer
from ..weights.input_spec import InputSpec
from .trainer import Trainer


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
        """The evaluator that the data set's metadata (`evaluator_type`) asks for.

        Raises:
            ValueError: a data set without a type, or of one that is not known here.
        """
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if kind == "coco":
            folder = output_dir or os.path.join(cfg.OUTPUT_DIR, "inference")
            fast = has_compiled_coco_evaluator()
            return COCOEvaluator(dataset_name, output_dir=folder, use_fast_impl=fast)
        by_kind = {
            "pascal_voc": PascalVOCDetectionEvaluator,
            "cityscapes_instance": CityscapesInstanceEvaluator,
            "cityscapes_sem_seg": CityscapesSemSegEvaluator,
        }
        if kind not in by_kind:
            raise ValueError(
                f"DATASETS.TEST names {dataset_name!r}, whose metadata evaluator_type is {kind!r}; "
                f"known are {['coco', *by_kind]}. Set it with "
                f"MetadataCatalog.get({dataset_name!r})."
            )
        if kind.startswith("cityscapes"):
            mend_cityscapesscripts()
        return by_kind[kind](dataset_name)


def load_detector(cfg: CfgNode, resume: bool) -> Any:
    """The whole model of MODEL.WEIGHTS, or with `resume` the newest checkpoint of OUTPUT_DIR.

    Raises:
        ValueError, FileNotFoundError: no weights, or a tensor of the model is not in them.
    """
    if not (resume or cfg.MODEL.WEIGHTS):
        raise ValueError(
            "There is nothing to evaluate: set MODEL.WEIGHTS to a model_final.pth of train_net.py, "
            "or pass --resume for the newest checkpoint of OUTPUT_DIR."
        )
    model = TransferTrainer.build_model(cfg)
    spec = InputSpec(cfg)
    checkpointer = BackboneCheckpointer(model, cfg.OUTPUT_DIR, input_spec=spec, complete=True)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    return model


def evaluate(cfg: CfgNode, resume: bool) -> dict[str, Any]:
    """The scores on DATASETS.TEST of what :func:`load_detector` loads."""
    return TransferTrainer.test(cfg, load_detector(cfg, resume))

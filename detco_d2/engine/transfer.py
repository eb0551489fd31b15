"""The transfer trainer: fine-tune a detector from a pretrained backbone, and evaluate it."""

import copy
import json
import logging
import os
import tempfile
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_train_loader,
)
from detectron2.data.detection_utils import build_augmentation
from detectron2.data.transforms import RandomCrop
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    DatasetEvaluator,
    PascalVOCDetectionEvaluator,
)
from detectron2.utils import comm

from ..compat import has_compiled_coco_evaluator, mend_cityscapesscripts
from ..data.datasets import register_by_name
from ..data.labels import coco_content
from ..weights.checkpointer import BackboneCheckpointer
from ..weights.input_spec import InputSpec
from .labels import evaluator_kind, follow_data, write_classes
from .trainer import Trainer

# What the evaluator must know of a data set besides its labels.
_FOR_EVALUATOR = ("thing_classes", "thing_dataset_id_to_contiguous_id")

logger = logging.getLogger(__name__)


def build_mapper(cfg: CfgNode) -> DatasetMapper:
    """Detectron2's training mapper, which for semantic segmentation crops after it has scaled.

    Detectron2 itself crops first, so that the crop's size in pixels would follow the scale.
    """
    if cfg.MODEL.META_ARCHITECTURE != "SemanticSegmentor" or not cfg.INPUT.CROP.ENABLED:
        return DatasetMapper(cfg, is_train=True)
    scale, *flip = build_augmentation(cfg, is_train=True)
    crop = RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)
    return DatasetMapper(cfg, is_train=True, augmentations=[scale, crop, *flip])


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str | None = None
) -> DatasetEvaluator:
    """COCO's evaluator, but for data sets whose metadata asks for PASCAL VOC's or Cityscapes'.

    PASCAL VOC's counts a class without boxes as 0, so COCO's takes its place where there is one.

    Raises:
        ValueError: a data set without an evaluator, see :func:`evaluator_kind`.
    """
    kind = evaluator_kind(dataset_name)
    if kind.startswith("cityscapes"):
        mend_cityscapesscripts()
        is_instance = kind == "cityscapes_instance"
        return (CityscapesInstanceEvaluator if is_instance else CityscapesSemSegEvaluator)(
            dataset_name
        )
    register_by_name([dataset_name])
    images, metadata = DatasetCatalog.get(dataset_name), MetadataCatalog.get(dataset_name)
    if kind == "pascal_voc":
        found = {box["category_id"] for image in images for box in image["annotations"]}
        if len(found) == len(metadata.thing_classes):
            return PascalVOCDetectionEvaluator(dataset_name)
        logger.warning("%s lacks boxes of some classes: COCO's AP, not VOC's", dataset_name)
    folder = output_dir or os.path.join(cfg.OUTPUT_DIR, "inference")
    truth = f"{dataset_name} as evaluated"  # a name of its own: labels in files may be incomplete
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(truth, None)
    DatasetCatalog.register(truth, lambda: copy.deepcopy(images))  # Detectron2 moves keypoints
    known = {key: metadata.get(key) for key in _FOR_EVALUATOR if metadata.get(key)}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        MetadataCatalog.get(truth).set(json_file=file.name, **known)
        json.dump(coco_content(truth), file, default=lambda value: value.tolist())
        file.flush()
        fast = has_compiled_coco_evaluator()
        return COCOEvaluator(truth, output_dir=folder, use_fast_impl=fast)


class TransferTrainer(Trainer):
    """Fine-tunes a detector or a segmentation network; evaluates on DATASETS.TEST."""

    def __init__(self, cfg: CfgNode) -> None:
        """
        Raises:
            ValueError, OSError: data that cannot be trained on, see :func:`follow_data`.
        """
        super().__init__(with_data(cfg))
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


def with_data(cfg: CfgNode, detector: str | None = None) -> CfgNode:
    """A copy of the config with what follows from its data; see :func:`follow_data`."""
    pairs = follow_data(cfg, detector)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(pairs)
    cfg.freeze()
    return cfg


def evaluate(cfg: CfgNode, resume: bool) -> dict[str, Any]:
    """Evaluate MODEL.WEIGHTS, or with `resume` the newest checkpoint of OUTPUT_DIR."""
    cfg = with_data(cfg, cfg.OUTPUT_DIR if resume else os.path.dirname(cfg.MODEL.WEIGHTS))
    model = TransferTrainer.build_model(cfg)
    checkpointer = BackboneCheckpointer(model, cfg.OUTPUT_DIR, input_spec=InputSpec(cfg))
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    return TransferTrainer.test(cfg, model)

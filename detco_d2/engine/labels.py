"""Labelled data of a fine-tuning: what they must be, what the config takes from them, their AP."""

import copy
import json
import logging
import os
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    DatasetEvaluator,
    PascalVOCDetectionEvaluator,
)
from detectron2.utils import comm

from ..compat import has_compiled_coco_evaluator
from ..config_files import flatten
from ..data.check import check_labels
from ..data.datasets import prepare_datasets, register_by_name, use_classes
from ..data.labels import coco_content, complete
from ..data.sizes import keep_sizes, recall_sizes
from ..files import replacing

_EVALUATORS = {
    "coco": COCOEvaluator,
    "pascal_voc": PascalVOCDetectionEvaluator,
    "cityscapes_instance": CityscapesInstanceEvaluator,
    "cityscapes_sem_seg": CityscapesSemSegEvaluator,
}
_CLASSES = "classes.json"  # beside the checkpoints: the names, in the order of the model's numbers

logger = logging.getLogger(__name__)


def evaluator_kind(name: str) -> str:
    """What evaluates a data set: its metadata's `evaluator_type`, by default "coco".

    Raises:
        ValueError: none, or one that is not known here.
    """
    kind = MetadataCatalog.get(name).get("evaluator_type", "coco")
    if kind not in _EVALUATORS:
        raise ValueError(
            f"DATASETS.TEST names {name!r}, whose metadata evaluator_type is {kind!r}; known are "
            f"{list(_EVALUATORS)}. A folder of images has no labels; otherwise set the type with "
            f"MetadataCatalog.get({name!r})."
        )
    return kind


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
        from ..data.cityscapes import mend_evaluator

        mend_evaluator()
        return _EVALUATORS[kind](dataset_name)
    register_by_name([dataset_name])
    images, metadata = DatasetCatalog.get(dataset_name), MetadataCatalog.get(dataset_name)
    if kind == "pascal_voc":
        found = {label["category_id"] for image in images for label in image["annotations"]}
        if len(found) == len(metadata.thing_classes):
            return PascalVOCDetectionEvaluator(dataset_name)
        logger.warning("%s lacks boxes of some classes: COCO's AP, not VOC's", dataset_name)
    images = copy.deepcopy(images)  # Detectron2 moves keypoints
    complete(images, dataset_name)
    truth = f"{dataset_name} as evaluated"  # a name of its own: labels in files may be incomplete
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop(truth, None)
    DatasetCatalog.register(truth, lambda: images)
    keys = ("thing_classes", "thing_dataset_id_to_contiguous_id")
    known = {key: metadata.get(key) for key in keys if metadata.get(key)}
    folder = output_dir or os.path.join(cfg.OUTPUT_DIR, "inference")
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        MetadataCatalog.get(truth).set(json_file=file.name, **known)
        json.dump(coco_content(truth), file, default=lambda value: value.tolist())
        file.flush()
        return COCOEvaluator(truth, output_dir=folder, use_fast_impl=has_compiled_coco_evaluator())


def read_classes(folder: str) -> list[str]:
    """The names of a detector's classes, which its run left beside its weights; [] if none."""
    file = Path(folder, _CLASSES)
    return json.loads(file.read_text()) if file.is_file() else []


def write_classes(cfg: CfgNode) -> None:
    """Leave the names of the classes in OUTPUT_DIR."""
    if classes := MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes"):
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        with replacing(os.path.join(cfg.OUTPUT_DIR, _CLASSES)) as file:
            file.write_text(json.dumps(list(classes)))


def follow_data(
    cfg: CfgNode, detector: str | None = None, given: Collection[str] | None = None
) -> list[Any]:
    """Read all labels of a run and refuse what would fail later or count wrongly.

    Classes are numbered as the first of DATASETS.TRAIN has them (of several, the one with most), or
    as an evaluated detector was trained; those of other sets are matched by name.

    Args:
        detector: of an evaluation alone, the folder of what is evaluated. DATASETS.TRAIN need not
            be there.
        given: the keys that the user set; by default those without Detectron2's value.

    Returns:
        KEY VALUE pairs that follow from the data: numbers of classes, MASK_FORMAT.

    Raises:
        ValueError, OSError: says which file or entry, or which key.
    """
    train, test = (cfg.DATASETS.TRAIN if detector is None else ()), cfg.DATASETS.TEST
    prepare_datasets(train, test)
    for name in test:
        evaluator_kind(name)
    recall_sizes(cfg.OUTPUT_DIR)
    pairs: list[Any] = []
    classes = read_classes(detector) if detector else []
    found = {name: _check(cfg, name, "DATASETS.TRAIN", pairs) for name in train}
    classes = max([classes, *found.values()], key=len)
    others = [("DATASETS.TRAIN", name) for name in train if found[name] != classes]
    for key, name in others + [("DATASETS.TEST", name) for name in test]:
        if classes:
            use_classes(name, classes)
        classes = _check(cfg, name, key, pairs) or classes
    if comm.is_main_process():
        keep_sizes(cfg.OUTPUT_DIR)
    return pairs + _count_classes(cfg, [*train, *test], given)


def _check(cfg: CfgNode, name: str, key: str, pairs: list[Any]) -> list[str]:
    """Check the labels of one data set; returns its classes."""
    images = DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    classes = list(metadata.get("thing_classes", []))
    if changes := metadata.get("changes"):
        logger.info("%s: %s", name, changes)
    is_labelled = any("annotations" in image for image in images)
    if key == "DATASETS.TEST" and metadata.get("evaluator_type") == "coco" and not is_labelled:
        logger.warning("%s has no labels: its boxes are written, and no AP", name)
        return classes
    model = cfg.MODEL
    if model.META_ARCHITECTURE == "SemanticSegmentor":
        check_labels(images, name, key, None)
        return classes
    fields = ["segmentation"] * model.MASK_ON + ["keypoints"] * model.KEYPOINT_ON
    check_labels(images, name, key, fields)
    if metadata.get("evaluator_type", "coco") == "coco":
        complete(images, name)  # nobody did, of data registered in Python
    boxes = [b for image in images for b in image.get("annotations", []) if not b.get("iscrowd")]
    count = model.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    if model.KEYPOINT_ON and any(len(box["keypoints"]) != 3 * count for box in boxes):
        raise ValueError(
            f"{key} names {name!r}, where boxes have other than {count} keypoints; set "
            "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS, and TEST.KEYPOINT_OKS_SIGMAS to as many values."
        )
    is_rle = any(isinstance(box.get("segmentation"), dict) for box in boxes)
    if model.MASK_ON and cfg.INPUT.MASK_FORMAT != "bitmask" and is_rle and key == "DATASETS.TRAIN":
        logger.info("INPUT.MASK_FORMAT: bitmask, as %s has masks in RLE", name)
        pairs += ["INPUT.MASK_FORMAT", "bitmask"]
    absent = set(range(len(classes))) - {box["category_id"] for box in boxes}
    if absent and key == "DATASETS.TEST":
        left_out = ", ".join(classes[number] for number in sorted(absent))
        logger.info("%s has no box of %s: left out of the mean of AP", name, left_out)
    return classes


def _count_classes(cfg: CfgNode, names: Sequence[str], given: Collection[str] | None) -> list[Any]:
    """KEY VALUE pairs of the numbers of classes that differ from the config."""
    is_map = cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor"
    role = "stuff_classes" if is_map else "thing_classes"
    count = max([len(MetadataCatalog.get(name).get(role, [])) for name in names], default=0)
    plain = dict(flatten(get_cfg()))
    keys: list[str] = []
    pairs: list[Any] = []
    for key, value in flatten(cfg):
        is_number = key.startswith("MODEL.") and key.endswith(".NUM_CLASSES")
        if not is_number or ("SEM_SEG" in key) != is_map:
            continue
        keys.append(key)
        if count in (0, value):
            continue
        if key in given if given is not None else value != plain.get(key):
            raise ValueError(
                f"{key} is {value}, and the data have {count} classes ({names[0]!r}); set it to "
                f"{count}, or leave it out. A detector in MODEL.WEIGHTS must have as many."
            )
        pairs += [key, count]
    logger.info("%d classes, as %s has: %s", count, ", ".join(names), ", ".join(keys))
    return pairs

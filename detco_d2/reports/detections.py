"""Boxes that fine-tuned detectors find, under those of the labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer

from ..config import add_detco_config
from ..config_files import flatten
from ..data.datasets import prepare_datasets
from ..engine.machine import adapt_to_machine
from ..weights.checkpointer import BackboneCheckpointer
from ..weights.input_spec import InputSpec
from .charts import panels, show_picture
from .run_folder import read_config

_MAX_IMAGES = 4
_MAX_BOXES = 5  # of an image, the best ones


def plot_detections(path: Path, detectors: Mapping[str, str]) -> None:
    """Writes a row of labels and a row of the best boxes of each detector, to a .png.

    Args:
        detectors: checkpoints by name, each in an output folder of train_net.py. The images are
            the first ones of the first one's DATASETS.TEST.

    Raises:
        FileNotFoundError, ValueError: no config, no data, no weights, or not those of a detector.
    """
    configs = {name: _read_config(file) for name, file in detectors.items()}
    test = next(iter(configs.values())).DATASETS.TEST
    prepare_datasets([], test)
    images = DatasetCatalog.get(test[0])[:_MAX_IMAGES]
    metadata = MetadataCatalog.get(test[0])
    found = {name: _detect(cfg, detectors[name], images) for name, cfg in configs.items()}
    with panels(path, 1 + len(found), len(images), (2.6, 2.0)) as (_, axes):
        for axis, name in zip(axes[:, 0], ["labels", *found]):
            axis.set_ylabel(name)
        for column, image in enumerate(images):
            pixels = read_image(image["file_name"], "RGB")
            drawn = [Visualizer(pixels, metadata).draw_dataset_dict(image)]
            for boxes in found.values():
                canvas = Visualizer(pixels, metadata)
                drawn.append(canvas.draw_instance_predictions(boxes[column]))
            for axis, picture in zip(axes[:, column], drawn):
                show_picture(axis, picture.get_image())


def _read_config(file: str) -> CfgNode:
    """The config of the run that wrote a checkpoint, without the keys of other versions."""
    cfg = get_cfg()
    add_detco_config(cfg)
    known = dict(flatten(cfg))
    _, values = read_config(Path(file).with_name("config.yaml"))
    cfg.merge_from_list([item for pair in values.items() if pair[0] in known for item in pair])
    cfg.MODEL.DEVICE = "cuda"  # wherever it was trained
    adapt_to_machine(cfg, torch.cuda.device_count())
    return cfg


@torch.no_grad()
def _detect(cfg: CfgNode, file: str, images: Sequence[dict[str, Any]]) -> list[Instances]:
    """The best boxes of each image."""
    model = build_model(cfg).eval()
    BackboneCheckpointer(model, input_spec=InputSpec(cfg)).resume_or_load(file, resume=False)
    mapper = DatasetMapper(cfg, is_train=False)
    boxes = []
    for image in images:
        output = model([mapper(image)])[0]
        if "instances" not in output:
            raise ValueError(
                f"{file!r} is a {cfg.MODEL.META_ARCHITECTURE}, which finds no boxes; give the "
                "model_final.pth of a detector."
            )
        found = output["instances"].to("cpu")
        boxes.append(found[found.scores.argsort(descending=True)[:_MAX_BOXES]])
    return boxes

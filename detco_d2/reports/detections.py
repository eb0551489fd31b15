"""Boxes that fine-tuned detectors find, beside each other and under those of the labels."""

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

_MAX_BOXES = 5  # of an image, the best ones


def plot_detections(
    path: Path, detectors: Mapping[str, str], files: Sequence[str], count: int
) -> None:
    """Writes a row of labels, if there are any, and a row of the best boxes of each detector.

    Args:
        path: the .png to write.
        detectors: checkpoints by name, each in an output folder of train_net.py.
        files: images; none: the first ones of the detectors' DATASETS.TEST.
        count: how many images at most.

    Raises:
        FileNotFoundError, ValueError: a folder without a config.yaml, or one of no detector; data
            or weights that are not there.
    """
    configs = {name: _read_config(file) for name, file in detectors.items()}
    test = next(iter(configs.values())).DATASETS.TEST
    prepare_datasets([], test)
    labelled = [] if files else DatasetCatalog.get(test[0])[:count]
    images = labelled or [{"file_name": file} for file in files[:count]]
    metadata = MetadataCatalog.get(test[0])

    def canvas(image: dict[str, Any]) -> Visualizer:
        return Visualizer(read_image(image["file_name"], "RGB"), metadata)

    rows = {"labels": [canvas(image).draw_dataset_dict(image) for image in labelled]}
    for name, cfg in configs.items():
        found = zip(images, _detect(cfg, detectors[name], images))
        rows[name] = [canvas(image).draw_instance_predictions(boxes) for image, boxes in found]
    rows = {name: drawn for name, drawn in rows.items() if drawn}
    with panels(path, len(rows), len(images), (2.6, 2.0)) as (_, axes):
        for line, (name, drawn) in zip(axes, rows.items()):
            line[0].set_ylabel(name)
            for axis, picture in zip(line, drawn):
                show_picture(axis, picture.get_image())


def _read_config(file: str) -> CfgNode:
    """The config of the run that wrote a checkpoint, without the keys of other versions."""
    cfg = get_cfg()
    add_detco_config(cfg)
    known = dict(flatten(cfg))
    _, values = read_config(Path(file).with_name("config.yaml"))
    cfg.merge_from_list([item for pair in values.items() if pair[0] in known for item in pair])
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

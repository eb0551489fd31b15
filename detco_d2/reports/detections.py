"""What a fine-tuned detector finds: boxes by image, and pictures of several detectors' boxes."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer

from ..config import add_detco_config
from ..config_files import flatten
from ..data.images import read_image
from ..engine.labels import follow_data, read_classes
from ..engine.machine import adapt_to_machine
from ..weights.checkpointer import BackboneCheckpointer
from ..weights.input_spec import InputSpec
from ..weights.saving import newest_intact
from .charts import panels, show_picture
from .run_folder import read_config

_MAX_IMAGES = 4
_MAX_BOXES = 5  # of an image, the best ones


class Detector:
    """A network of train_net.py's, with the config and the classes that are beside its weights."""

    def __init__(self, path: str) -> None:
        """
        Args:
            path: of a run's folder, whose newest checkpoint counts, or of a checkpoint in it.

        Raises:
            FileNotFoundError, ValueError: no config, no weights, or not those of a detector.
        """
        file = str(newest_intact(path) or "") if os.path.isdir(path) else path
        if not file:
            raise FileNotFoundError(f"There is no checkpoint in {path!r}.")
        self.file, self.folder = file, os.path.dirname(file)
        self.classes = read_classes(self.folder)
        self.cfg = get_cfg()
        add_detco_config(self.cfg)
        known = dict(flatten(self.cfg))  # other versions have other keys
        _, values = read_config(Path(file).with_name("config.yaml"))
        pairs = [pair for pair in values.items() if pair[0] in known]
        self.cfg.merge_from_list([item for pair in pairs for item in pair])
        self.cfg.OUTPUT_DIR = self.folder  # where it is now
        self.cfg.MODEL.DEVICE = "cuda"  # wherever it was trained
        adapt_to_machine(self.cfg, torch.cuda.device_count())
        self.model = build_model(self.cfg).eval()
        spec = InputSpec(self.cfg)
        checkpointer = BackboneCheckpointer(self.model, input_spec=spec, complete=True)
        checkpointer.resume_or_load(file, resume=False)
        sizes = self.cfg.INPUT
        self.resize = ResizeShortestEdge([sizes.MIN_SIZE_TEST] * 2, sizes.MAX_SIZE_TEST)

    @torch.no_grad()
    def __call__(self, pixels: np.ndarray) -> Instances:
        """The boxes in an RGB image of shape (H, W, 3), uint8, from the best to the worst.

        Raises:
            ValueError: the network finds no boxes, since it is another kind of one.
        """
        height, width = pixels.shape[:2]
        if self.cfg.INPUT.FORMAT == "BGR":
            pixels = pixels[:, :, ::-1]
        resized = self.resize.get_transform(pixels).apply_image(pixels).transpose(2, 0, 1)
        image = torch.from_numpy(np.ascontiguousarray(resized))
        output = self.model([{"image": image, "height": height, "width": width}])[0]
        if "instances" not in output:
            raise ValueError(
                f"{self.file!r} is a {self.cfg.MODEL.META_ARCHITECTURE}, which finds no boxes; "
                "give the model_final.pth of a detector."
            )
        found = output["instances"].to("cpu")
        return found[found.scores.argsort(descending=True)]


def plot_detections(path: Path, files: Mapping[str, str]) -> None:
    """Writes a row of labels and a row of the best boxes of each detector, to a .png.

    Args:
        files: checkpoints by name, each in an output folder of train_net.py. The images are the
            first ones of the first one's DATASETS.TEST.

    Raises:
        FileNotFoundError, ValueError: no data, or as :class:`Detector`.
    """
    detectors = {name: Detector(file) for name, file in files.items()}
    first = next(iter(detectors.values()))
    follow_data(first.cfg, first.folder)  # the names of classes that it learnt
    test = first.cfg.DATASETS.TEST[0]
    images, metadata = DatasetCatalog.get(test)[:_MAX_IMAGES], MetadataCatalog.get(test)
    with panels(path, 1 + len(detectors), len(images), (2.6, 2.0)) as (_, axes):
        for axis, name in zip(axes[:, 0], ["labels", *detectors]):
            axis.set_ylabel(name)
        for column, image in enumerate(images):
            pixels = np.asarray(read_image(image))
            drawn = [Visualizer(pixels, metadata).draw_dataset_dict(image)]
            for detector in detectors.values():
                boxes = detector(pixels)[:_MAX_BOXES]
                drawn.append(Visualizer(pixels, metadata).draw_instance_predictions(boxes))
            for axis, picture in zip(axes[:, column], drawn):
                show_picture(axis, picture.get_image())

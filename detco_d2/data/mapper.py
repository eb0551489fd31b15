"""One image file -> the views that enter the network."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image

from ..families import required_views
from .images import read_image
from .jigsaw import cut_jigsaw, cut_jigsaw_batch, draw_jigsaw
from .photometric import apply_batched, apply_fast, pack
from .views import Pyramid, View, safe_reduction

logger = logging.getLogger(__name__)


class DetCoDatasetMapper:
    """Decodes an image once and makes the views of it that the loss families need.

    It has two halves. :meth:`__call__` runs in a loader process, on one image; :meth:`finish` runs
    on the training device, on a batch. All randomness comes from torch's generator.
    """

    def __init__(self, cfg: CfgNode, views: Sequence[str] = ()) -> None:
        """
        Args:
            views: which of global_query, global_key, local_query, local_key to make; by default
                those that the loss families of the config read.
        """
        node = cfg.INPUT.DETCO
        names = views or required_views(cfg.MODEL.DETCO.FAMILIES)
        self.views = {name: View(node, name.partition("_")[0]) for name in names}
        self.limits: dict[str, Any] = {"min_side": node.MIN_SIDE, "max_pixels": node.MAX_PIXELS}
        self.patch_size = node.PATCH_SIZE
        self.is_bgr = cfg.INPUT.FORMAT == "BGR"
        self.augmentation = node.AUGMENTATION
        if self.augmentation == "exact":
            logger.warning('INPUT.DETCO.AUGMENTATION "exact" is gone; "pil" takes its place')
            self.augmentation = "pil"
        if self.augmentation != "pil":
            self.limits["reduction"] = partial(safe_reduction, views=self.views.values())

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """The loader's half: `file_name`, and for each view a uint8 tensor.

        Global views are of shape (3, S, S), local views of shape (9, 3, p, p), with `{view}/cells`
        of shape (9,): which cell of the crop each patch comes from. With "device" they are what
        :meth:`finish` makes that of.

        Raises:
            UnreadableImage: the file cannot be decoded; names it.
        """
        image: Any = self.decode(dataset_dict)
        sample: dict[str, Any] = {"file_name": dataset_dict["file_name"]}
        if self.augmentation != "pil":
            cv2.setNumThreads(0)  # the loader's processes are the parallelism
            image = Pyramid(image)
        for view in self.views:
            sample.update(self._make_view(image, view))
        return sample

    def finish(self, batch: dict[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
        """The device's half: move a batch of views there, and do what "device" leaves to it."""
        result = {}
        for view in self.views:
            pixels = batch[view].to(device, non_blocking=True)
            if self.augmentation == "device":
                pixels = self._finish_view(batch, view, pixels)
            result[view] = pixels
            if view.startswith("local"):
                result[f"{view}/cells"] = batch[f"{view}/cells"]
        return result

    def decode(self, dataset_dict: dict[str, Any]) -> Image.Image:
        """An RGB image, upright; smaller than the file's where only "pil" could see it."""
        return read_image(dataset_dict, **self.limits)

    def _make_view(self, image: Any, view: str) -> dict[str, torch.Tensor]:
        draw, jigsaw = self.views[view], {}
        if self.augmentation == "pil":
            array = np.asarray(draw.chain(image))
        else:
            array, drawn = draw.crop(image), draw.photometric()
        if view.startswith("local"):
            names = f"{view}/cells", f"{view}/offsets"
            jigsaw = dict(zip(names, draw_jigsaw(len(array), self.patch_size)))
        if self.augmentation == "device":
            return {view: torch.from_numpy(array), f"{view}/photometric": pack(drawn), **jigsaw}
        if self.augmentation == "fast":
            array = apply_fast(array, drawn)
        pixels = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
        if self.is_bgr:
            pixels = pixels.flip(0)
        if jigsaw:
            pixels = cut_jigsaw(pixels, self.patch_size, *jigsaw.values())
        return {view: pixels, **jigsaw}

    def _finish_view(self, batch: dict[str, Any], view: str, pixels: torch.Tensor) -> torch.Tensor:
        pixels = apply_batched(pixels.permute(0, 3, 1, 2), batch[f"{view}/photometric"])
        if self.is_bgr:
            pixels = pixels.flip(1)
        if view.startswith("global"):
            return pixels
        drawn = (batch[f"{view}/cells"], batch[f"{view}/offsets"])
        moved = (numbers.to(pixels.device, non_blocking=True) for numbers in drawn)
        return cut_jigsaw_batch(pixels, self.patch_size, *moved)

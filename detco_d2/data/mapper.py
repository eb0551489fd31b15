"""One image file -> the views that enter the network."""

import io
import logging
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils.file_io import PathManager
from PIL import Image

from ..families import required_views
from .decode import UnreadableImage, decode_image
from .jigsaw import cut_jigsaw, cut_jigsaw_batch, draw_jigsaw
from .photometric import Photometric, apply_batched, apply_fast, pack
from .views import Pyramid, ViewDraw, ViewSettings, build_view_transform, safe_reduction

logger = logging.getLogger(__name__)


class DetCoDatasetMapper:
    """Decodes an image once and makes the views of it that the loss families need.

    It has two halves. :meth:`__call__` runs in a loader process, on one image; :meth:`finish` runs
    on the training device, on a batch. All randomness comes from torch's generator.
    """

    @configurable
    def __init__(
        self,
        *,
        views: list[str],
        global_settings: ViewSettings,
        local_settings: ViewSettings,
        patch_size: int,
        image_format: str,
        augmentation: str,
        min_side: int,
        max_pixels: int,
    ) -> None:
        """
        Args:
            views: which of global_query, global_key, local_query, local_key to make.
            global_settings, local_settings: of a global view, and of the crop for the jigsaw.
            patch_size, image_format, augmentation, min_side, max_pixels: as the config's keys.
        """
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {image_format!r}; pretraining takes RGB or BGR.")
        if augmentation == "exact":
            logger.warning('INPUT.DETCO.AUGMENTATION "exact" is gone; "pil" takes its place')
            augmentation = "pil"
        self.views = views
        self.settings = {
            view: global_settings if view.startswith("global") else local_settings for view in views
        }
        self.plain = {view: build_view_transform(s) for view, s in self.settings.items()}
        self.draws = {view: ViewDraw(s) for view, s in self.settings.items()}
        self.patch_size = patch_size
        self.image_format = image_format
        self.augmentation = augmentation
        self.min_side = min_side
        self.max_pixels = max_pixels

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.INPUT.DETCO
        local_settings = ViewSettings(
            size=node.LOCAL_SIZE,
            scale=tuple(node.LOCAL_SCALE),
            flip_prob=node.FLIP_PROB,
            color_jitter=tuple(node.COLOR_JITTER),
            color_jitter_prob=node.COLOR_JITTER_PROB,
            grayscale_prob=node.GRAYSCALE_PROB,
            blur_prob=node.BLUR_PROB,
            blur_sigma=tuple(node.BLUR_SIGMA),
        )
        return {
            "views": required_views(cfg.MODEL.DETCO.FAMILIES),
            "global_settings": replace(
                local_settings,
                size=node.GLOBAL_SIZE,
                scale=tuple(node.GLOBAL_SCALE),
                randaugment_ops=node.RANDAUGMENT_OPS,
                randaugment_magnitude=node.RANDAUGMENT_MAGNITUDE,
            ),
            "local_settings": local_settings,
            "patch_size": node.PATCH_SIZE,
            "image_format": cfg.INPUT.FORMAT,
            "augmentation": node.AUGMENTATION,
            "min_side": node.MIN_SIDE,
            "max_pixels": node.MAX_PIXELS,
        }

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
            if not _is_global(view):
                result[f"{view}/cells"] = batch[f"{view}/cells"]
        return result

    def decode(self, dataset_dict: dict[str, Any]) -> Image.Image:
        """An RGB image, upright; smaller than the file's where only "pil" could see it."""
        path = dataset_dict["file_name"]
        try:
            with _open(dataset_dict) as file:
                return decode_image(
                    file,
                    min_side=self.min_side,
                    max_pixels=self.max_pixels,
                    reduction=self._reduction,
                )
        except UnreadableImage as error:
            raise UnreadableImage(error.reason, path) from error
        except (OSError, ValueError) as error:  # of opening; a path may not hold a zero byte
            raise UnreadableImage(f"{type(error).__name__}: {error}", path) from error

    def _reduction(self, width: int, height: int) -> int:
        if self.augmentation == "pil":
            return 1
        return safe_reduction(width, height, list(self.settings.values()))

    def _make_view(self, image: Any, view: str) -> dict[str, torch.Tensor]:
        drawn = Photometric()
        if self.augmentation == "pil":
            array = np.asarray(self.plain[view](image))
        else:
            array, drawn = self.draws[view].crop(image), self.draws[view].photometric()
            if self.augmentation == "fast":
                array = apply_fast(array, drawn)
        jigsaw = None if _is_global(view) else draw_jigsaw(len(array), self.patch_size)
        if self.augmentation == "device":
            result = {view: torch.from_numpy(array), f"{view}/photometric": pack(drawn)}
            if jigsaw:
                result[f"{view}/cells"], result[f"{view}/offsets"] = jigsaw
            return result
        pixels = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
        if self.image_format == "BGR":
            pixels = pixels.flip(0)
        if jigsaw is None:
            return {view: pixels}
        return {view: cut_jigsaw(pixels, self.patch_size, *jigsaw), f"{view}/cells": jigsaw[0]}

    def _finish_view(self, batch: dict[str, Any], view: str, pixels: torch.Tensor) -> torch.Tensor:
        pixels = apply_batched(pixels.permute(0, 3, 1, 2), batch[f"{view}/photometric"])
        if self.image_format == "BGR":
            pixels = pixels.flip(1)
        if _is_global(view):
            return pixels
        cells, offsets = (
            batch[f"{view}/{name}"].to(pixels.device, non_blocking=True)
            for name in ("cells", "offsets")
        )
        return cut_jigsaw_batch(pixels, self.patch_size, cells, offsets)


def _open(dataset_dict: dict[str, Any]) -> Any:
    """The encoded image as a file: a member of a tar file, bytes that are read, or a path."""
    if "member" in dataset_dict:
        from .tar import read_member  # a run on folders does not need it

        return io.BytesIO(read_member(*dataset_dict["member"]))
    if "image_bytes" in dataset_dict:
        return io.BytesIO(dataset_dict["image_bytes"])
    return PathManager.open(dataset_dict["file_name"], "rb")


def _is_global(view: str) -> bool:
    return view.startswith("global")

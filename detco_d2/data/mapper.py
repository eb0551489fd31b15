"""One image file -> the views that enter the network."""

import io
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps

from ..config import required_views
from .jigsaw import cut_jigsaw, cut_jigsaw_batch, draw_jigsaw
from .photometric import Photometric, apply_batched, apply_exact, apply_fast, pack
from .views import Pyramid, ViewDraw, ViewSettings, build_view_transform, safe_reduction

# The modes that sample without antialiasing, and may decode at a reduced scale.
_FAST = ("fast", "device")
_ORIENTATION = 0x0112  # the EXIF tag


class DetCoDatasetMapper:
    """Decode an image once and draw the views of it that the loss families need.

    A Detectron2 data-set mapper: it is called with one data-set dict, of which it reads only
    `file_name`, and `image_bytes` if the file has been read. All randomness comes from torch's
    generator.
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
    ) -> None:
        """
        Args:
            views: which of global_query, global_key, local_query, local_key to make.
            global_settings: of a global view.
            local_settings: of the square crop that is cut into a 3x3 jigsaw.
            patch_size: side of the nine patches in pixels.
            image_format: channel order of the result, "RGB" or "BGR".
            augmentation: "pil", "exact", "fast" or "device" (see INPUT.DETCO.AUGMENTATION).

        Raises:
            ValueError: an image format other than these two.
        """
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {image_format!r}; pretraining takes RGB or BGR.")
        self.views = views
        self.settings = {
            view: global_settings if view.startswith("global") else local_settings for view in views
        }
        self.plain = {view: build_view_transform(s) for view, s in self.settings.items()}
        self.draws = {view: ViewDraw(s) for view, s in self.settings.items()}
        self.patch_size = patch_size
        self.image_format = image_format
        self.augmentation = augmentation

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.INPUT.DETCO
        photometric: dict[str, Any] = dict(
            flip_prob=node.FLIP_PROB,
            color_jitter=tuple(node.COLOR_JITTER),
            color_jitter_prob=node.COLOR_JITTER_PROB,
            grayscale_prob=node.GRAYSCALE_PROB,
            blur_prob=node.BLUR_PROB,
            blur_sigma=tuple(node.BLUR_SIGMA),
        )
        return {
            "views": required_views(cfg.MODEL.DETCO.FAMILIES),
            "global_settings": ViewSettings(
                size=node.GLOBAL_SIZE,
                scale=tuple(node.GLOBAL_SCALE),
                randaugment_ops=node.RANDAUGMENT_OPS,
                randaugment_magnitude=node.RANDAUGMENT_MAGNITUDE,
                **photometric,
            ),
            "local_settings": ViewSettings(
                size=node.LOCAL_SIZE, scale=tuple(node.LOCAL_SCALE), **photometric
            ),
            "patch_size": node.PATCH_SIZE,
            "image_format": cfg.INPUT.FORMAT,
            "augmentation": node.AUGMENTATION,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Returns:
            `file_name`, and for each view a uint8 tensor: global views of shape (3, S, S), local
            views of shape (9, 3, p, p). With "device" the views are what :meth:`finish` takes
            instead.

        Raises:
            RuntimeError: the file cannot be decoded; names the file.
        """
        image: Any = self.decode(dataset_dict)
        sample: dict[str, Any] = {"file_name": dataset_dict["file_name"]}
        if self.augmentation in _FAST:
            cv2.setNumThreads(0)  # the loader's processes are the parallelism
            image = Pyramid(image)
        for view in self.views:
            sample.update(self._make_view(image, view))
        return sample

    def decode(self, dataset_dict: dict[str, Any]) -> Image.Image:
        """An RGB image, upright; smaller than the file's where the fast modes cannot see it.

        Raises:
            RuntimeError: the file cannot be decoded; names it.
        """
        file_name, content = dataset_dict["file_name"], dataset_dict.get("image_bytes")
        try:
            with io.BytesIO(content) if content else PathManager.open(file_name, "rb") as file:
                image = Image.open(file)
                if self.augmentation in _FAST:
                    width, height = image.size
                    reduction = safe_reduction(width, height, list(self.settings.values()))
                    image.draft(image.mode, (width // reduction, height // reduction))
                image.load()
            if image.getexif().get(_ORIENTATION, 1) != 1:
                image = ImageOps.exif_transpose(image)
            return image if image.mode == "RGB" else image.convert("RGB")
        except Exception as error:
            raise RuntimeError(f"Cannot read the image {file_name!r}: {error}") from error

    def _make_view(self, image: Any, view: str) -> dict[str, torch.Tensor]:
        draw, drawn = self.draws[view], Photometric()
        if self.augmentation == "pil":
            array = np.asarray(self.plain[view](image))
        elif self.augmentation == "exact":
            cropped = draw.crop_exact(image)
            array = apply_exact(cropped, draw.photometric())
        else:
            array, drawn = draw.crop_fast(image), draw.photometric()
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
        return {view: cut_jigsaw(pixels, self.patch_size, *jigsaw) if jigsaw else pixels}

    def finish(self, batch: dict[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
        """Move a batch to the device, and do there what INPUT.DETCO.AUGMENTATION leaves to it.

        Returns:
            uint8 tensors: global views of shape (N, 3, S, S), local views of shape
            (N, 9, 3, p, p).
        """
        result = {}
        for view in self.views:
            pixels = batch[view].to(device, non_blocking=True)
            if self.augmentation == "device":
                pixels = pixels.permute(0, 3, 1, 2)
                pixels = apply_batched(pixels, batch[f"{view}/photometric"])
                if self.image_format == "BGR":
                    pixels = pixels.flip(1)
                if not _is_global(view):
                    places = (batch[f"{view}/{name}"] for name in ("cells", "offsets"))
                    places = (place.to(device, non_blocking=True) for place in places)
                    pixels = cut_jigsaw_batch(pixels, self.patch_size, *places)
            result[view] = pixels
        return result


def _is_global(view: str) -> bool:
    return view.startswith("global")

"""One image file -> the views that enter the network."""

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from ..config import required_views
from .jigsaw import cut_jigsaw, draw_jigsaw
from .views import build_view_transform


class DetCoDatasetMapper:
    """Decode an image once and draw the views of it that the loss families need.

    A Detectron2 data-set mapper: it is called with one data-set dict, of which it reads only
    `file_name`. All randomness comes from torch's generator.
    """

    @configurable
    def __init__(
        self,
        *,
        views: list[str],
        global_transform: Callable[[Image.Image], Image.Image],
        local_transform: Callable[[Image.Image], Image.Image],
        patch_size: int,
        image_format: str,
    ) -> None:
        """
        Args:
            views: which of global_query, global_key, local_query, local_key to make.
            global_transform: makes a global view of a decoded image.
            local_transform: makes the square crop that is cut into a 3x3 jigsaw.
            patch_size: side of the nine patches in pixels.
            image_format: channel order of the result, "RGB" or "BGR".

        Raises:
            ValueError: an image format other than these two.
        """
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {image_format!r}; pretraining takes RGB or BGR.")
        self.views = views
        self.global_transform = global_transform
        self.local_transform = local_transform
        self.patch_size = patch_size
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        node = cfg.INPUT.DETCO
        photometric = dict(
            flip_prob=node.FLIP_PROB,
            color_jitter=tuple(node.COLOR_JITTER),
            color_jitter_prob=node.COLOR_JITTER_PROB,
            grayscale_prob=node.GRAYSCALE_PROB,
            blur_prob=node.BLUR_PROB,
            blur_sigma=tuple(node.BLUR_SIGMA),
        )
        return {
            "views": required_views(cfg.MODEL.DETCO.FAMILIES),
            "global_transform": build_view_transform(
                size=node.GLOBAL_SIZE,
                scale=tuple(node.GLOBAL_SCALE),
                randaugment_ops=node.RANDAUGMENT_OPS,
                randaugment_magnitude=node.RANDAUGMENT_MAGNITUDE,
                **photometric,
            ),
            "local_transform": build_view_transform(
                size=node.LOCAL_SIZE, scale=tuple(node.LOCAL_SCALE), **photometric
            ),
            "patch_size": node.PATCH_SIZE,
            "image_format": cfg.INPUT.FORMAT,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """
        Returns:
            `file_name`, and for each view a uint8 tensor: global views of shape (3, S, S), local
            views of shape (9, 3, p, p).

        Raises:
            RuntimeError: the file cannot be decoded; names the file.
        """
        file_name = dataset_dict["file_name"]
        try:
            image = Image.fromarray(detection_utils.read_image(file_name, "RGB"))
        except Exception as error:
            raise RuntimeError(f"Cannot read the image {file_name!r}: {error}") from error
        sample: dict[str, Any] = {"file_name": file_name}
        for view in self.views:
            sample[view] = self._make_view(image, view.startswith("global"))
        return sample

    def _make_view(self, image: Image.Image, is_global: bool) -> torch.Tensor:
        transform = self.global_transform if is_global else self.local_transform
        view = pil_to_tensor(transform(image))
        if self.image_format == "BGR":
            view = view.flip(0)
        if is_global:
            return view
        return cut_jigsaw(view, self.patch_size, *draw_jigsaw(view.shape[-1], self.patch_size))

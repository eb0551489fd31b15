"""The random transforms of the global and the local view (paper section 3.4, MoCo v2)."""

import math
from collections.abc import Iterable

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image, ImageFilter
from torchvision import transforms as T

from .photometric import Photometric

RATIO = (3 / 4, 4 / 3)  # width / height of a random crop
_JITTER = ("brightness", "contrast", "saturation", "hue")  # in the order of torchvision's numbers


def _happens(probability: float) -> bool:
    return torch.rand(1).item() < probability


class View:
    """Draws one kind of view: a crop, and the photometric set of MoCo v2.

    Attributes:
        chain: of torchvision on RGB Pillow images, which defines what a view is. :meth:`crop` and
            :meth:`photometric` draw what it draws from the same state of torch's generator.
    """

    def __init__(self, node: CfgNode, kind: str) -> None:
        """
        Args:
            node: INPUT.DETCO.
            kind: "global" or "local", which is the crop for the jigsaw.
        """
        self.node = node
        self.size: int = node[f"{kind.upper()}_SIZE"]
        self.scale: tuple[float, float] = tuple(node[f"{kind.upper()}_SCALE"])
        self.jitter = T.ColorJitter(*node.COLOR_JITTER)
        self.randaugment = []
        if kind == "global" and node.RANDAUGMENT_OPS:
            self.randaugment.append(T.RandAugment(node.RANDAUGMENT_OPS, node.RANDAUGMENT_MAGNITUDE))
        self.chain = T.Compose(
            [
                T.RandomResizedCrop(self.size, self.scale, RATIO),
                T.RandomHorizontalFlip(node.FLIP_PROB),
                *self.randaugment,
                T.RandomApply([self.jitter], p=node.COLOR_JITTER_PROB),
                T.RandomGrayscale(node.GRAYSCALE_PROB),
                T.RandomApply([T.Lambda(self.blur)], p=node.BLUR_PROB),
            ]
        )

    def sigma(self) -> float:
        return torch.empty(()).uniform_(*self.node.BLUR_SIGMA).item()

    def blur(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(self.sigma()))

    def crop(self, pyramid: "Pyramid") -> np.ndarray:
        """Crop, flip and RandAugment, of shape (size, size, 3)."""
        box = T.RandomResizedCrop.get_params(pyramid.image, list(self.scale), list(RATIO))
        view = pyramid.crop(box, self.size)
        if _happens(self.node.FLIP_PROB):
            view = cv2.flip(view, 1)
        for randaugment in self.randaugment:
            view = np.asarray(randaugment(Image.fromarray(view)))
        return view

    def photometric(self) -> Photometric:
        """The rest of the chain's draws, to be called after the crop."""
        colours = []
        if _happens(self.node.COLOR_JITTER_PROB):
            order, *factors = self.jitter.get_params(*(getattr(self.jitter, n) for n in _JITTER))
            colours = [(_JITTER[i], factors[i]) for i in order.tolist() if factors[i] is not None]
        if _happens(self.node.GRAYSCALE_PROB):
            colours.append(("grayscale", 0.0))
        return Photometric(tuple(colours), self.sigma() if _happens(self.node.BLUR_PROB) else 0.0)


class Pyramid:
    """An image and its halves, so that bilinear sampling without antialiasing is good enough."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.levels = [np.asarray(image)]

    def crop(self, box: tuple[int, int, int, int], size: int) -> np.ndarray:
        """Resize a box (top, left, height and width in pixels) to (size, size, 3).

        It is sampled from the smallest level that has as many pixels.
        """
        level = max(0, int(math.log2(max(1.0, min(box[2:]) / size))))
        while len(self.levels) <= level:
            height, width = (side // 2 for side in self.levels[-1].shape[:2])
            half = cv2.resize(self.levels[-1], (width, height), interpolation=cv2.INTER_AREA)
            self.levels.append(half)
        top, left, height, width = (side >> level for side in box)
        part = self.levels[level][top : top + height, left : left + width]
        return cv2.resize(part, (size, size), interpolation=cv2.INTER_LINEAR)


def safe_reduction(width: int, height: int, views: Iterable[View]) -> int:
    """The power of two by which an image may be decoded smaller unseen.

    Every crop that the views allow keeps at least as many pixels a side as the view has.
    """
    reduction = 8  # what JPEG offers at most
    for view in views:
        shortest = min(width, height, math.sqrt(view.scale[0] * width * height * RATIO[0]))
        while reduction > 1 and shortest / reduction < view.size:
            reduction //= 2
    return reduction

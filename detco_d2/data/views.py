"""The random transforms of the global and the local view (paper section 3.4, MoCo v2)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision import transforms as T

from .photometric import Photometric

RATIO = (3 / 4, 4 / 3)  # width / height of a random crop


@dataclass(frozen=True)
class ViewSettings:
    """How one kind of view is drawn: a crop, and the photometric set of MoCo v2."""

    size: int  # side of the result in pixels
    scale: tuple[float, float]  # share of the image's area that the random crop covers
    flip_prob: float
    color_jitter: tuple[float, float, float, float]  # brightness, contrast, saturation, hue
    color_jitter_prob: float
    grayscale_prob: float
    blur_prob: float
    blur_sigma: tuple[float, float]
    randaugment_ops: int = 0  # before the colour jitter; 0 is none
    randaugment_magnitude: int = 9


class PilGaussianBlur:
    """Gaussian blur by Pillow with sigma drawn uniformly from a range, as in MoCo v2."""

    def __init__(self, sigma: tuple[float, float]) -> None:
        self.sigma = sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(torch.empty(()).uniform_(*self.sigma).item()))


def build_view_transform(settings: ViewSettings) -> Callable[[Image.Image], Image.Image]:
    """The chain of torchvision on RGB Pillow images, which defines what a view is."""
    bilinear = T.InterpolationMode.BILINEAR
    steps: list[Callable] = [
        T.RandomResizedCrop(settings.size, settings.scale, RATIO, interpolation=bilinear),
        T.RandomHorizontalFlip(settings.flip_prob),
    ]
    if settings.randaugment_ops:
        steps.append(T.RandAugment(settings.randaugment_ops, settings.randaugment_magnitude))
    steps += [
        T.RandomApply([T.ColorJitter(*settings.color_jitter)], p=settings.color_jitter_prob),
        T.RandomGrayscale(settings.grayscale_prob),
        T.RandomApply([PilGaussianBlur(settings.blur_sigma)], p=settings.blur_prob),
    ]
    return T.Compose(steps)


def _happens(probability: float) -> bool:
    return torch.rand(1).item() < probability


class ViewDraw:
    """Draws what :func:`build_view_transform` draws from the same state of torch's generator."""

    def __init__(self, settings: ViewSettings) -> None:
        self.settings = settings
        self.jitter = T.ColorJitter(*settings.color_jitter)
        self.randaugment = T.RandAugment(settings.randaugment_ops, settings.randaugment_magnitude)

    def crop(self, pyramid: "Pyramid") -> np.ndarray:
        """Crop, flip and RandAugment, of shape (size, size, 3)."""
        settings = self.settings
        box = T.RandomResizedCrop.get_params(pyramid.image, list(settings.scale), list(RATIO))
        view = pyramid.crop(box, settings.size)
        if _happens(settings.flip_prob):
            view = cv2.flip(view, 1)
        if settings.randaugment_ops:
            view = np.asarray(self.randaugment(Image.fromarray(view)))
        return view

    def photometric(self) -> Photometric:
        """The rest of the chain's draws, to be called after the crop."""
        settings, jitter = self.settings, ()
        if _happens(settings.color_jitter_prob):
            order, *factors = T.ColorJitter.get_params(
                self.jitter.brightness,
                self.jitter.contrast,
                self.jitter.saturation,
                self.jitter.hue,
            )
            named = list(zip(("brightness", "contrast", "saturation", "hue"), factors))
            jitter = tuple(named[i] for i in order.tolist() if named[i][1] is not None)
        grayscale = _happens(settings.grayscale_prob)
        blurred = _happens(settings.blur_prob)
        sigma = torch.empty(()).uniform_(*settings.blur_sigma).item() if blurred else 0.0
        return Photometric(jitter, grayscale, sigma)


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


def safe_reduction(width: int, height: int, settings: list[ViewSettings]) -> int:
    """The power of two by which an image may be decoded smaller unseen.

    Every crop that the settings allow keeps at least as many pixels a side as its view has.
    """
    reduction = 8  # what JPEG offers at most
    for view in settings:
        shortest = math.sqrt(view.scale[0] * width * height * RATIO[0])
        shortest = min(shortest, width, height)
        while reduction > 1 and shortest / reduction < view.size:
            reduction //= 2
    return reduction

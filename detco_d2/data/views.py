"""The random transforms of the global and the local view (paper section 3.4, MoCo v2)."""

from collections.abc import Callable

import torch
from PIL import Image, ImageFilter
from torchvision import transforms as T


class PilGaussianBlur:
    """Gaussian blur by Pillow with sigma drawn uniformly from a range, as in MoCo v2."""

    def __init__(self, sigma: tuple[float, float]) -> None:
        self.sigma = sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        sigma = torch.empty(()).uniform_(*self.sigma).item()
        return image.filter(ImageFilter.GaussianBlur(radius=sigma))


def build_view_transform(
    *,
    size: int,
    scale: tuple[float, float],
    flip_prob: float,
    color_jitter: tuple[float, float, float, float],
    color_jitter_prob: float,
    grayscale_prob: float,
    blur_prob: float,
    blur_sigma: tuple[float, float],
    randaugment_ops: int = 0,
    randaugment_magnitude: int = 9,
) -> Callable[[Image.Image], Image.Image]:
    """The chain that makes one square view of an image; all draws come from torch's generator.

    Args:
        size: side of the result in pixels.
        scale: share of the image's area that the random crop covers.
        flip_prob, color_jitter, color_jitter_prob, grayscale_prob, blur_prob, blur_sigma: the
            photometric set of MoCo v2 (jitter as brightness, contrast, saturation, hue).
        randaugment_ops, randaugment_magnitude: RandAugment before the colour jitter; 0 is none.

    Returns:
        a function from an RGB image to an RGB image of size x size pixels.
    """
    steps: list[Callable] = [
        T.RandomResizedCrop(size, scale=scale, interpolation=T.InterpolationMode.BILINEAR),
        T.RandomHorizontalFlip(flip_prob),
    ]
    if randaugment_ops:
        steps.append(T.RandAugment(randaugment_ops, randaugment_magnitude))
    steps += [
        T.RandomApply([T.ColorJitter(*color_jitter)], p=color_jitter_prob),
        T.RandomGrayscale(grayscale_prob),
        T.RandomApply([PilGaussianBlur(blur_sigma)], p=blur_prob),
    ]
    return T.Compose(steps)

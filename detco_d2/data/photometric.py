"""The photometric set of MoCo v2 on a drawn set of factors, image by image or batched.

The colour operations of a view are folded into one 3x3 matrix and an offset: brightness, contrast,
saturation, a turn about the grey axis for the hue, and grayscale are all linear in the pixel p and
the view's mean colour m, so that the result is A p + U m. Unlike the chain of torchvision, which
defines a view, this does not clip between the operations, and the turn keeps the mean of the
channels where HSV keeps the largest.
"""

# Shape shorthand in this module:
#   N: images, S: side of a view in pixels

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F

_TO_GRAY = np.tile([0.299, 0.587, 0.114], (3, 1))
_GREY_AXIS = np.full((3, 3), 1 / 3)  # the projection on it
_ABOUT_GREY = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)  # the cross product


@dataclass(frozen=True)
class Photometric:
    """What was drawn for one view: colours, then blur."""

    colours: tuple[tuple[str, float], ...] = ()  # torchvision's operations and factors, in order
    sigma: float = 0.0  # of the Gaussian blur, in pixels; 0 for none


def colour_matrices(drawn: Photometric) -> tuple[np.ndarray, np.ndarray]:
    """A and U, both (3, 3): what becomes of a pixel p in a view of mean colour m is A p + U m."""
    pixel, mean = np.eye(3), np.zeros((3, 3))
    for operation, factor in drawn.colours:
        if operation == "contrast":  # towards the grey of the mean, which is now (A + U) m
            towards = (1 - factor) * _TO_GRAY @ (pixel + mean)
            pixel, mean = factor * pixel, factor * mean + towards
            continue
        if operation == "brightness":
            matrix = factor * np.eye(3)
        elif operation == "hue":
            angle = 2 * math.pi * factor
            matrix = math.cos(angle) * (np.eye(3) - _GREY_AXIS) + _GREY_AXIS  # Rodrigues' formula
            matrix = matrix + math.sin(angle) * _ABOUT_GREY
        else:  # saturation, or grayscale, which is none of it
            matrix = factor * np.eye(3) + (1 - factor) * _TO_GRAY
        pixel, mean = matrix @ pixel, matrix @ mean
    return pixel, mean


def apply_fast(array: np.ndarray, drawn: Photometric) -> np.ndarray:
    """One pass of OpenCV for all colours and one for the blur; RGB, of shape (S, S, 3), uint8."""
    if drawn.colours:
        pixel, mean = colour_matrices(drawn)
        offset = mean @ cv2.mean(array)[:3] if mean.any() else np.zeros(3)
        array = cv2.transform(array, np.column_stack([pixel, offset]).astype(np.float32))
    if drawn.sigma:
        array = cv2.GaussianBlur(array, (0, 0), drawn.sigma, borderType=cv2.BORDER_REPLICATE)
    return array


def pack(drawn: Photometric) -> torch.Tensor:
    """The factors as :func:`apply_batched` wants them: A, U and sigma, of shape (19,)."""
    pixel, mean = colour_matrices(drawn)
    return torch.from_numpy(np.concatenate([pixel.ravel(), mean.ravel(), [drawn.sigma]])).float()


def apply_batched(images: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """A batch of RGB views of shape (N, 3, S, S), uint8, on any device, as is the result.

    `packed`, from :func:`pack`, of shape (N, 19), is on the CPU, so that nothing waits for a GPU.
    """
    device = images.device
    matrices = packed[:, :18].view(-1, 2, 3, 3).to(device, non_blocking=True)
    pixels = images.flatten(2).float()
    offset = matrices[:, 1] @ pixels.mean(dim=2, keepdim=True)
    # the clip is the one that 8 bits make before the blur
    pixels = torch.baddbmm(offset, matrices[:, 0], pixels).clamp_(0, 255).view_as(images)
    sigma = packed[:, 18]
    chosen = sigma.nonzero()[:, 0]
    if len(chosen):
        rows = chosen.to(device, non_blocking=True)
        pixels[rows] = _gaussian_blur(pixels[rows], sigma[chosen])
    return pixels.round_().to(torch.uint8)


def _gaussian_blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Separable blur of (N, 3, S, S), floats, with a sigma for each image (on the CPU)."""
    count, channels, height, width = images.shape
    radius = math.ceil(3 * sigma.max().item())
    taps = torch.arange(-radius, radius + 1)
    kernels = torch.exp(-((taps / sigma[:, None]) ** 2) / 2)
    kernels = (kernels / kernels.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    kernels = kernels.to(images.device, non_blocking=True)
    images = images.reshape(1, count * channels, height, width)
    for shape, pad in (((1, -1), (radius, radius, 0, 0)), ((-1, 1), (0, 0, radius, radius))):
        weight = kernels.view(count * channels, 1, *shape)
        images = F.conv2d(F.pad(images, pad, mode="replicate"), weight, groups=count * channels)
    return images.view(count, channels, height, width)

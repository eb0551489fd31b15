"""The photometric set of MoCo v2 on a drawn set of factors, three times: exact, fast, batched.

The exact one equals Pillow and torchvision within one grey level. The other two fold the colour
operations of a view into one 3x3 matrix and an offset: brightness, contrast, saturation, a turn
about the grey axis for the hue, and grayscale are all linear in the pixel p and the view's mean
colour m, so that the result is A p + U m. They do not clip between the operations, and the turn
keeps the mean of the channels where HSV keeps the largest.
"""

# Shape shorthand in this module:
#   N: images, S: side of a view in pixels

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance

_TO_GRAY = np.tile([0.299, 0.587, 0.114], (3, 1))
_GREY_AXIS = np.full((3, 3), 1 / 3)  # the projection on it
_ABOUT_GREY = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)  # the cross product
_RAMP = Image.frombytes("L", (256, 1), bytes(range(256)))


@dataclass(frozen=True)
class Photometric:
    """What was drawn for one view.

    Attributes:
        jitter: (operation, factor) in the order in which they apply; the operations are
            torchvision's brightness, contrast, saturation and hue.
        grayscale: whether the colours go, after the jitter.
        sigma: of the Gaussian blur that comes last, in pixels; 0 for none.
    """

    jitter: tuple[tuple[str, float], ...] = ()
    grayscale: bool = False
    sigma: float = 0.0


def apply_exact(image: Image.Image, drawn: Photometric) -> np.ndarray:
    """The chain of torchvision on Pillow images, faster.

    Args:
        image: RGB.
        drawn: the factors.

    Returns:
        of shape (height, width, 3), uint8, within one grey level of torchvision's result.
    """
    array = np.asarray(image)
    for operation, factor in drawn.jitter:
        if operation == "saturation":
            array = np.asarray(ImageEnhance.Color(Image.fromarray(array)).enhance(factor))
        elif operation == "hue":
            array = _turn_hue(array, factor)
        else:
            level = 0 if operation == "brightness" else _mean_level(array)
            array = cv2.LUT(array, _blend_table(level, factor))
    if drawn.grayscale:
        array = np.asarray(Image.fromarray(array).convert("L").convert("RGB"))
    return _box_blur(array, drawn.sigma) if drawn.sigma else array


def _mean_level(array: np.ndarray) -> int:
    gray = np.asarray(Image.fromarray(array).convert("L"))
    return int(gray.mean() + 0.5)  # as Pillow's contrast rounds it


def _blend_table(level: int, factor: float) -> np.ndarray:
    """What Pillow's blend of a constant with each of the 256 grey levels gives."""
    return np.asarray(Image.blend(Image.new("L", (256, 1), level), _RAMP, factor))


@functools.cache
def _hsv_tables() -> tuple[np.ndarray, np.ndarray]:
    """Pillow's own saturation and hue of every colour, small enough to look up.

    Returns:
        saturation by 256 max + min, of shape (65536,); hue by 65536 order + 256 (max - min) +
        (max - median), of shape (524288,), where order has bit 0 for r >= g, 1 for g >= b, 2 for
        r >= b.
    """
    first, second = (level.astype(np.uint8) for level in np.divmod(np.arange(65536), 256))

    def hsv(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(np.stack([red, green, blue], 1)[None]).convert("HSV"))[0]

    saturation = hsv(first, np.minimum(first, second), np.minimum(first, second))[:, 1]
    high, middle, low = np.full_like(first, 255), 255 - np.minimum(first, second), 255 - first
    orders = {
        7: (high, middle, low),
        5: (high, low, middle),
        1: (middle, low, high),
        6: (middle, high, low),
        2: (low, high, middle),
        0: (low, middle, high),
    }
    hue = np.zeros((8, 65536), dtype=np.uint8)
    for order, channels in orders.items():
        hue[order] = hsv(*channels)[:, 0]
    return saturation, hue.ravel()


def _turn_hue(array: np.ndarray, factor: float) -> np.ndarray:
    """Pillow's way to HSV and back with a turn of the hue between, in 8 bits like Pillow's."""
    saturation_table, hue_table = _hsv_tables()
    red, green, blue = cv2.split(array)
    high, low = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    middle = cv2.max(cv2.min(red, green), cv2.min(cv2.max(red, green), blue))
    order: np.ndarray = np.zeros_like(red)
    for bit, (first, second) in enumerate(((red, green), (green, blue), (red, blue))):
        order |= (first >= second).view(np.uint8) << bit
    saturation = saturation_table[cv2.merge([low, high]).view(np.uint16)[..., 0]]
    index = cv2.merge([high - middle, high - low, order, np.zeros_like(order)]).view(np.uint32)
    hue = hue_table[index[..., 0]] + np.uint8(int(factor * 255) % 256)

    # Each channel is v (1 - s g), with g a trapezoid of the hue: 0, rising, 1, 1, falling, 0.
    sector = np.arange(256) * 6 / 255
    value = high.astype(np.float64)
    scaled = cv2.multiply(high, saturation, None, 1 / 255, cv2.CV_64F)
    channels = []
    for shift in (0, 4, 2):
        part = (sector + shift) % 6
        gap = np.clip(np.minimum(part - 1, 5 - part), 0, 1)
        drop = cv2.multiply(scaled, cv2.LUT(hue, gap))
        channels.append(cv2.subtract(value, drop, dtype=cv2.CV_8U))
    return cv2.merge(channels)


def _box_blur(array: np.ndarray, sigma: float, passes: int = 3) -> np.ndarray:
    """Pillow's Gaussian blur: box filters of a fractional radius, rounded after each.

    For sigmas such as 1 or 2, where sums end in halves everywhere, two grey levels may lie between
    the two. The radius is that of Gwosdek et al., "Theoretical foundations of Gaussian convolution
    by extended box filtering", 2011.
    """
    variance = sigma * sigma / passes
    whole = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    fraction = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    fraction /= 6 * (variance - (whole + 1) ** 2)
    weight = 1 / (2 * (whole + fraction) + 1)
    edge = (1 - (2 * whole + 1) * weight) / 2
    kernel = np.array([[edge, *[weight] * (2 * whole + 1), edge]], dtype=np.float32)
    for direction in (kernel, kernel.T):
        for _ in range(passes):
            # Pillow truncates its weights to 24 bits, which rounds halves down
            array = cv2.filter2D(array, -1, direction, delta=-5e-6, borderType=cv2.BORDER_REPLICATE)
    return array


def colour_matrices(drawn: Photometric) -> tuple[np.ndarray, np.ndarray]:
    """A and U, both (3, 3): what becomes of a pixel p in a view of mean colour m is A p + U m."""
    pixel, mean = np.eye(3), np.zeros((3, 3))
    steps = list(drawn.jitter) + ([("grayscale", 0.0)] if drawn.grayscale else [])
    for operation, factor in steps:
        if operation == "contrast":  # towards the grey of the mean, which is now (A + U) m
            towards = (1 - factor) * _TO_GRAY @ (pixel + mean)
            pixel, mean = factor * pixel, factor * mean + towards
            continue
        if operation == "brightness":
            matrix = factor * np.eye(3)
        elif operation == "saturation":
            matrix = factor * np.eye(3) + (1 - factor) * _TO_GRAY
        elif operation == "hue":
            angle = 2 * math.pi * factor
            matrix = math.cos(angle) * (np.eye(3) - _GREY_AXIS) + _GREY_AXIS  # Rodrigues' formula
            matrix = matrix + math.sin(angle) * _ABOUT_GREY
        else:
            matrix = _TO_GRAY
        pixel, mean = matrix @ pixel, matrix @ mean
    return pixel, mean


def apply_fast(array: np.ndarray, drawn: Photometric) -> np.ndarray:
    """One pass of OpenCV for all colour operations, one for the blur.

    Args:
        array: RGB, of shape (height, width, 3), uint8.
        drawn: the factors.

    Returns:
        of the same shape, uint8.
    """
    if drawn.jitter or drawn.grayscale:
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
    """A batch of views on any device, each with its own factors.

    Args:
        images: RGB, of shape (N, 3, S, S), uint8.
        packed: from :func:`pack`, of shape (N, 19), on the CPU, so that nothing waits for a GPU.

    Returns:
        of shape (N, 3, S, S), uint8.
    """
    device = images.device
    matrices = packed[:, :18].view(-1, 2, 3, 3).to(device, non_blocking=True)
    pixels = images.flatten(2).float()
    offset = matrices[:, 1] @ pixels.mean(dim=2, keepdim=True)
    # the clip is the one that 8 bits make before the blur
    pixels = (
        torch.baddbmm(offset, matrices[:, 0], pixels).clamp_(0, 255).unflatten(2, images.shape[2:])
    )
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
        padded = F.pad(images, pad, mode="replicate")
        weight = kernels.view(count * channels, 1, *shape)
        images = F.conv2d(padded, weight, groups=count * channels)
    return images.view(count, channels, height, width)

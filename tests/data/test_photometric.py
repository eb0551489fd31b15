"""The photometric set as one matrix: that of torchvision where nothing clips, and batched."""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image

from detco_d2.data.photometric import Photometric, apply_batched, apply_fast, pack

JITTER = {
    "brightness": TF.adjust_brightness,
    "contrast": TF.adjust_contrast,
    "saturation": TF.adjust_saturation,
}


@pytest.fixture(scope="module")
def colours():
    """Every corner of the colour cube: noise, greys, saturated and dark colours."""
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    noise[:32] = noise[:32, :, :1]
    noise[32:64] //= 64
    noise[64:96] = noise[64:96] // 128 * 255
    return noise


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_one_matrix_does_what_the_operations_do_in_turn_where_nothing_clips(order):
    """Brightness, contrast and saturation are linear, whatever their order."""
    pixels = np.random.default_rng(1).integers(90, 140, (64, 64, 3), dtype=np.uint8)
    named = [("brightness", 1.2), ("contrast", 0.7), ("saturation", 1.3)]
    jitter = tuple(named[i] for i in order)
    image = Image.fromarray(pixels)
    for name, factor in jitter:
        image = JITTER[name](image, factor)
    difference = apply_fast(pixels, Photometric(jitter)) - np.asarray(image).astype(int)
    assert np.abs(difference).max() <= 3  # three roundings against one


def test_a_hue_of_a_third_of_the_circle_permutes_the_channels(colours):
    """A turn by 120 degrees about the grey axis, which red to green is in HSV as well."""
    turned = apply_fast(colours, Photometric((("hue", 1 / 3),)))
    assert np.array_equal(turned, np.roll(colours, 1, axis=2))


def test_grayscale_leaves_no_colour(colours):
    drawn = Photometric((("hue", 0.1), ("brightness", 0.9), ("grayscale", 0.0)))
    assert np.ptp(apply_fast(colours, drawn), axis=2).max() == 0


def test_every_image_of_a_batch_gets_its_own_factors(colours):
    draws = [
        Photometric((("contrast", 1.4), ("hue", 0.08)), sigma=1.3),
        Photometric(),
        Photometric((("brightness", 0.7), ("grayscale", 0.0)), sigma=0.4),
    ]
    images = torch.from_numpy(colours).permute(2, 0, 1).expand(3, -1, -1, -1)
    batched = apply_batched(images, torch.stack([pack(drawn) for drawn in draws]))
    assert torch.equal(batched[1], images[1])
    for result, drawn in zip(batched, draws):
        alone = apply_fast(colours, drawn).astype(int)
        assert np.abs(result.permute(1, 2, 0).numpy() - alone).max() <= 2

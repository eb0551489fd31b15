"""The photometric set: exact, as one matrix, and batched."""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image, ImageFilter

from detco_d2.data.photometric import (
    Photometric,
    apply_batched,
    apply_exact,
    apply_fast,
    pack,
)

JITTER = {
    "brightness": TF.adjust_brightness,
    "contrast": TF.adjust_contrast,
    "saturation": TF.adjust_saturation,
    "hue": TF.adjust_hue,
}


@pytest.fixture(scope="module")
def colours():
    """Every corner of the colour cube: noise, greys, saturated and dark colours."""
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    noise[:32] = noise[:32, :, :1]
    noise[32:64] //= 64
    noise[64:96] = noise[64:96] // 128 * 255
    return noise


@pytest.mark.parametrize("factor", [-0.5, -0.1, -0.003, 0.0, 0.07, 0.1, 0.5])
def test_exact_hue_is_pillows(colours, factor):
    expected = np.asarray(TF.adjust_hue(Image.fromarray(colours), factor))
    ours = apply_exact(Image.fromarray(colours), Photometric((("hue", factor),)))
    assert np.array_equal(ours, expected)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("factor", [0.0, 0.6, 0.913, 1.0, 1.4])
def test_exact_jitter_is_torchvisions(colours, name, factor):
    expected = np.asarray(JITTER[name](Image.fromarray(colours), factor))
    ours = apply_exact(Image.fromarray(colours), Photometric(((name, factor),)))
    assert np.array_equal(ours, expected)


@pytest.mark.parametrize("sigma", [0.1, 0.37, 0.81, 1.21, 1.7, 1.99])
def test_exact_blur_is_pillows_within_one_grey_level(colours, sigma):
    image = Image.fromarray(colours)
    expected = np.asarray(image.filter(ImageFilter.GaussianBlur(sigma))).astype(int)
    assert np.abs(apply_exact(image, Photometric(sigma=sigma)) - expected).max() <= 1


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_one_matrix_does_what_the_operations_do_in_turn_where_nothing_clips(order):
    """Brightness, contrast and saturation are linear, whatever their order."""
    pixels = np.random.default_rng(1).integers(90, 140, (64, 64, 3), dtype=np.uint8)
    named = [("brightness", 1.2), ("contrast", 0.7), ("saturation", 1.3)]
    drawn = Photometric(tuple(named[i] for i in order), grayscale=False)
    exact = apply_exact(Image.fromarray(pixels), drawn).astype(int)
    assert np.abs(apply_fast(pixels, drawn) - exact).max() <= 3  # three roundings against one


def test_a_hue_of_a_third_of_the_circle_permutes_the_channels(colours):
    """A turn by 120 degrees about the grey axis, which red to green is in HSV as well."""
    turned = apply_fast(colours, Photometric((("hue", 1 / 3),)))
    assert np.array_equal(turned, np.roll(colours, 1, axis=2))


def test_grayscale_leaves_no_colour_and_comes_after_the_jitter(colours):
    drawn = Photometric((("hue", 0.1), ("brightness", 0.9)), grayscale=True)
    for result in (apply_fast(colours, drawn), apply_exact(Image.fromarray(colours), drawn)):
        assert np.ptp(result, axis=2).max() == 0


def test_every_image_of_a_batch_gets_its_own_factors(colours):
    draws = [
        Photometric((("contrast", 1.4), ("hue", 0.08)), sigma=1.3),
        Photometric(),
        Photometric((("brightness", 0.7),), grayscale=True, sigma=0.4),
    ]
    images = torch.from_numpy(colours).permute(2, 0, 1).expand(3, -1, -1, -1)
    batched = apply_batched(images, torch.stack([pack(drawn) for drawn in draws]))
    assert torch.equal(batched[1], images[1])
    for result, drawn in zip(batched, draws):
        alone = apply_fast(colours, drawn).astype(int)
        assert np.abs(result.permute(1, 2, 0).numpy() - alone).max() <= 2

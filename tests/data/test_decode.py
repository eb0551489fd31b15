"""Every kind of image file to an upright RGB image of 8 bits, by the rules of the module."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from detco_d2.data.decode import UnreadableImage, _to_rgb, decode_image, upright_size

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encode(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photo(size=(160, 120), seed=0):
    """Blobs of colour."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.BICUBIC)


def decode(content, min_side=1, max_pixels=10**6, factor=1):
    reduction = {"reduction": lambda width, height: factor}
    return decode_image(io.BytesIO(content), min_side=min_side, max_pixels=max_pixels, **reduction)


def refuse(content, reason, **limits):
    with pytest.raises(UnreadableImage, match=reason) as caught:
        decode(content, **limits)
    return caught.value


def pixel(mode, value, **info):
    image = Image.new(mode, (4, 4), value)
    image.info.update(info)
    return image


def palette(*colours):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([channel for colour in colours for channel in colour])
    return image


def pnm(header, *values):
    return header + np.array(values * 16, ">u2").tobytes()


def by_opencv(*values):
    return cv2.imencode(".png", np.full((4, 4, len(values)), values[::-1], np.uint16))[1].tobytes()


def grey(value):
    return (value,) * 3


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GOLDEN = {
    "1-bit": (encode(pixel("1", 1)), WHITE),
    "L": (encode(pixel("L", 100)), grey(100)),
    "L, a transparent value": (encode(pixel("L", 100), transparency=100), WHITE),
    "L, another transparent value": (encode(pixel("L", 100), transparency=9), grey(100)),
    "LA": (encode(pixel("LA", (100, 51))), grey(224)),  # 255 - 155 * 51 / 255
    "P": (encode(palette(RED, BLUE)), BLUE),
    "P, a transparent colour": (encode(palette(RED, BLUE), transparency=1), WHITE),
    "P, partly transparent": (encode(palette(RED, BLUE), transparency=b"a\xcc"), (51, 51, 255)),
    "GIF, a transparent colour": (encode(palette(RED, BLUE), "GIF", transparency=1), WHITE),
    "RGB": (encode(pixel("RGB", RED)), RED),
    "RGB, a transparent colour": (encode(pixel("RGB", RED), transparency=RED), WHITE),
    "RGB of 16 bits": (by_opencv(65535, 0x8000, 255), (255, 128, 0)),
    "RGB with a profile": (encode(pixel("RGB", (200, 100, 9)), icc_profile=PROFILE), (200, 100, 9)),
    "RGBA": (encode(pixel("RGBA", (255, 0, 0, 51))), (255, 204, 204)),
    "RGBA of TIFF": (encode(pixel("RGBA", (255, 0, 0, 51)), "TIFF"), (255, 204, 204)),
    "RGBA of WebP": (encode(pixel("RGBA", (255, 0, 0, 0)), "WEBP"), WHITE),
    "CMYK": (encode(pixel("CMYK", (0, 255, 255, 0)), "TIFF"), RED),
    "CMYK of JPEG": (encode(pixel("CMYK", (0, 255, 255, 0)), "JPEG", quality=100), RED),
    "grey JPEG": (encode(pixel("L", 100), "JPEG", quality=100), grey(100)),
    "Lab": (encode(pixel("LAB", (255, 128, 128)), "TIFF"), (254, 255, 254)),
    "16-bit PNG, white": (encode(pixel("I;16", 65535)), WHITE),
    "16-bit PNG, grey": (encode(pixel("I;16", 32896)), grey(128)),
    "8 bits in 16": (encode(pixel("I;16", 200)), grey(200)),
    "10 bits in 16": (encode(pixel("I;16", 1023)), WHITE),
    "12 bits in 16": (encode(pixel("I;16", 2048)), grey(128)),
    "14 bits in 16": (encode(pixel("I;16", 8192), "TIFF"), grey(128)),
    "12 bits in 16, RGB": (by_opencv(4095, 2048, 0), (255, 136, 0)),  # Pillow keeps 4 of them
    "16-bit TIFF": (encode(pixel("I;16", 32896), "TIFF"), grey(128)),
    "16-bit TIFF, big-endian": (encode(pixel("I;16B", 32896), "TIFF"), grey(128)),
    "16-bit PGM": (pnm(b"P5 4 4 65535\n", 32896), grey(128)),
    "12-bit PGM": (pnm(b"P5 4 4 4095\n", 4095), WHITE),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_every_mode_becomes_rgb_by_its_rule(name):
    content, expected = GOLDEN[name]
    image = decode(content)
    assert image.mode == "RGB" and image.size == (4, 4)
    assert image.getcolors() == [(16, expected)]


@pytest.mark.parametrize(
    "mode, value, expected",
    [
        ("PA", 0, WHITE),
        ("La", (20, 51), grey(224)),
        ("RGBa", (51, 0, 0, 51), (255, 204, 204)),
        ("YCbCr", (100, 128, 128), grey(100)),  # Pillow 9.5 cannot read the TIFF that it writes
        ("HSV", (0, 255, 255), RED),
        ("I;16L", 65535, WHITE),
    ],
)
def test_modes_that_no_file_has_follow_the_same_rules(mode, value, expected):
    assert _to_rgb(pixel(mode, value)).getpixel((1, 1)) == expected


@pytest.mark.parametrize(
    "mode, value, reason",
    [("I", 70_000, "16 bits .70000 to 70000"), ("I", -1, "beyond 16 bits"), ("F", 0.5, "floating")],
)
def test_numbers_without_a_known_white_are_refused(mode, value, reason):
    refuse(encode(pixel(mode, value), "TIFF"), reason)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "kind, options",
    [
        ("JPEG", {"quality": 100, "subsampling": 0}),
        ("PNG", {}),
        ("PNG", {"pnginfo": None}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_an_image_of_any_orientation_comes_upright(kind, options, orientation):
    upright = photo((48, 32))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # ROTATE_90 and ROTATE_270 swap
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    if options == {"pnginfo": None}:  # as ImageMagick writes it
        profile = exif.tobytes()
        options = {"pnginfo": PngImagePlugin.PngInfo()}
        text = f"\nexif\n{len(profile):8}\n{profile.hex()}\n"
        options["pnginfo"].add_text("Raw profile type exif", text, zip=True)
        exif = b""
    content = encode(stored, kind, exif=exif, **options)
    decoded = decode(content)
    assert upright_size(io.BytesIO(content)) == decoded.size
    error = np.asarray(decoded).astype(int) - np.asarray(upright)
    assert np.abs(error).max() <= 8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_data_is_no_reason_to_refuse_the_pixels(kind):
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0II"):
        assert decode(encode(photo(), kind, exif=exif)).size == (160, 120)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [pixel("RGB", colour).resize((20, 20)) for colour in (BLUE, RED)]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(content)).n_frames == 2
    assert decode(content).getcolors() == [(400, BLUE)]

"""The bytes of an image file -> an upright RGB image of 8 bits, or a reason why not.

What becomes of each kind of file:

- Grey, palette, 1-bit, CMYK, YCbCr and Lab images as Pillow converts them, without ICC profiles.
- 16-bit grey is scaled, 65535 to 255; cameras that fill 8, 10, 12 or 14 of these bits are told by
  the largest value, and white is the most that so many bits hold. Integers beyond 16 bits and
  floating point are refused, as nothing says which of their values is white.
- Transparency (alpha, or a colour that means transparent) is laid over white.
- The orientation of the EXIF data is applied. Of an animation the first frame is taken.

A file that is cut is refused by Pillow. One whose end is zeros, as a full disk leaves it, may
decode, since zeros are valid compressed data; so a JPEG must reach its end mark, and a PNG's pixel
data must have its checksums. Other formats have nothing to check: zeros in a WebP, BMP, PPM or
TIFF, or single changed bytes within a JPEG, stay unseen where they decode.
"""

import contextlib
import importlib
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

Image.init()  # otherwise Pillow knows its rarer formats only after it has met an unknown one
for _extension in ("pillow_avif", "pillow_heif"):  # of Pillow, where they are installed
    with contextlib.suppress(ImportError):
        _module = importlib.import_module(_extension)
        getattr(_module, "register_heif_opener", lambda: None)()
# Not all of them: the reader of EPS, for one, runs another program. JPEG includes MPO.
_WANTED = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "HEIF", "AVIF")
FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)
# The endings of their names; .pfm has floating-point pixels.
EXTENSIONS = tuple(
    sorted(
        ending
        for ending, name in Image.registered_extensions().items()
        if name in (*FORMATS, "MPO") and ending != ".pfm"
    )
)

# Where no config says otherwise: the defaults of INPUT.DETCO (MAX_PIXELS is Pillow's own limit).
MIN_SIDE, MAX_PIXELS = 16, 89478485

_ORIENTATION = 0x0112  # the EXIF tag, and what undoes each of its values
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ACROSS = (5, 6, 7, 8)  # the values of it that exchange width and height
_ENDS = (b"\xff\xd9", b"IEND\xaeB`\x82")  # of a JPEG and a PNG
_STRAIGHT_ALPHA = {"La": "LA", "RGBa": "RGBA"}
# A JPEG marker, other than those within compressed data: stuffing, fill bytes and restarts.
_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]", re.DOTALL)


class UnreadableImage(RuntimeError):
    """An image file that cannot be used, for a reason in one sentence."""

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(f"Cannot read the image {path!r}: {reason}" if path else reason)
        self.reason = reason
        self.path = path


def decode_image(
    file: BinaryIO,
    *,
    min_side: int,
    max_pixels: int,
    reduction: Callable[[int, int], int] = lambda width, height: 1,
) -> Image.Image:
    """Decode strictly, whatever Pillow's global switches are set to.

    Args:
        file: nothing beyond the header is read before the size is known.
        min_side, max_pixels: INPUT.DETCO.MIN_SIDE and MAX_PIXELS.
        reduction: by what a JPEG of this width and height may be decoded smaller, at most.

    Raises:
        UnreadableImage: for whatever reason; no other exception leaves.
    """
    try:
        with strict(max_pixels):
            image = Image.open(file, "r", FORMATS)
            width, height = image.size
            if min(width, height) < min_side:
                reason = f"smaller than INPUT.DETCO.MIN_SIDE ({min_side}): {width} x {height}"
                raise UnreadableImage(reason)
            if width * height > max_pixels:
                raise Image.DecompressionBombError(f"{width} x {height}")
            _check_whole(image.format, file)
            is_deep = "'RGB;16" in str(image.tile)  # which Pillow cuts to 8 bits
            if (factor := reduction(width, height)) > 1:
                image.draft(image.mode, (width // factor, height // factor))
            image.load()
            pixels, turn = _to_rgb(image, is_deep), _UPRIGHT.get(_orientation(image))
            return pixels if turn is None else pixels.transpose(turn)
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        raise _explain(error, max_pixels) from error


def upright_size(file: BinaryIO) -> tuple[int, int]:
    """Width and height of what :func:`decode_image` returns, from the header.

    Pixels are not decoded, and the whole file is read only where its last bytes are no end. Several
    threads may call it within one :func:`strict`.

    Raises:
        UnreadableImage: no image, or one that is cut.
    """
    try:
        image = Image.open(file, "r", FORMATS)
        noted = {"exif", "Raw profile type exif"} & image.info.keys()
        # Pillow decodes all of a PNG to look for an orientation behind its pixels
        turned = (noted or image.format != "PNG") and _orientation(image) in _ACROSS
        if image.format == "TIFF":  # Pillow 9.5 turns it when it is decoded, others when opened
            stored = tuple(image.tag_v2.get(tag) for tag in (256, 257))  # width and height
            turned = image.tag_v2.get(_ORIENTATION) in _ACROSS and image.size == stored
        file.seek(-min(8, file.seek(0, os.SEEK_END)), os.SEEK_END)
        if not file.read().endswith(_ENDS):
            _check_whole(image.format, file)
    except Exception as error:  # as above
        raise _explain(error, MAX_PIXELS) from error
    return image.size[::-1] if turned else image.size


def _explain(error: Exception, max_pixels: int) -> UnreadableImage:
    if isinstance(error, UnreadableImage):
        return error
    if isinstance(error, Image.DecompressionBombError):
        reason = f"more pixels than INPUT.DETCO.MAX_PIXELS ({max_pixels}): {error}"
    elif isinstance(error, UnidentifiedImageError):  # its text holds an address in memory
        reason = f"no image, or none of {', '.join(FORMATS)}"
    else:
        reason = f"{type(error).__name__}: {error}"
    return UnreadableImage(reason)


@contextlib.contextmanager
def strict(max_pixels: int) -> Iterator[None]:
    """Pillow without the laxness that another library may have set, and without its warnings."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before


def _check_whole(kind: str | None, file: BinaryIO) -> None:
    """Refuse what Pillow would decode although its end is missing."""
    checks = {"JPEG": _jpeg_ends, "MPO": _jpeg_ends, "PNG": _png_sums}
    if check := checks.get(kind or ""):
        position = file.tell()
        file.seek(0)
        content = file.read()
        file.seek(position)
        if not check(content):
            raise UnreadableImage("damaged: the compressed pixels are incomplete or changed")


def _jpeg_ends(content: bytes) -> bool:
    """Whether the end mark comes before the bytes end, or the next image of the file begins."""
    position = 2
    while match := _MARKER.search(content, position):
        position = match.end()
        if match[0] in (b"\xff\xd8", b"\xff\xd9"):
            return match[0] == b"\xff\xd9"
        # Skipped as a whole, since a thumbnail in it has marks of its own.
        position += int.from_bytes(content[position : position + 2], "big")
    return False


def _png_sums(content: bytes) -> bool:
    """Whether the checksums of the pixel data are right, which Pillow does not look at."""
    position = 8
    while position + 12 <= len(content):
        size, name = struct.unpack_from(">I4s", content, position)
        end = position + 8 + size
        total = zlib.crc32(memoryview(content)[position + 4 : end])
        if name == b"IDAT" and total.to_bytes(4, "big") != content[end : end + 4]:
            return False
        position = end + 4
    return True


def _white(largest: int) -> int:
    """The most that 8, 10, 12, 14 or 16 bits hold, the fewest of these that hold a value."""
    return next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if largest < 2**bits)


def _to_rgb(image: Image.Image, is_deep: bool = False) -> Image.Image:
    """An image of any mode as one of mode RGB; `is_deep`: its colours had 16 bits."""
    if image.mode.startswith("I"):  # 16-bit PNG is "I" in Pillow 9.5, "I;16" in newer ones
        values = np.asarray(image).astype(np.int32)
        if values.min() < 0 or values.max() > 65535:
            raise UnreadableImage(f"integers beyond 16 bits ({values.min()} to {values.max()})")
        white = _white(values.max())
        scaled = (values * 255 + white // 2) // white
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if is_deep and image.mode == "RGB":
        white = _white(int(np.asarray(image).max()) * 256) // 256
        image = image.point(lambda value: value * 255 // max(white, 1))
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels, whose range is unknown")
    image = image.convert(_STRAIGHT_ALPHA.get(image.mode, image.mode))
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def _orientation(opened: Image.Image) -> int:
    """The value of the EXIF tag; 1, upright, where there is none that can be read."""
    if opened.format == "TIFF":
        return 1  # Pillow turns it itself, though 9.5 still says that it is to be turned
    try:
        return opened.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged notes are no damage to the pixels
        return 1

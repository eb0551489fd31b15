"""The image that a data-set dict means."""

import io
from typing import Any

from detectron2.utils.file_io import PathManager
from PIL import Image

from .decode import MAX_PIXELS, UnreadableImage, decode_image


def read_image(image: dict[str, Any], **limits: Any) -> Image.Image:
    """The image that a data-set dict means: of a path, a member of a tar file, or bytes.

    Args:
        limits: of :func:`decode_image`; by default it may have any size that Detectron2 reads.

    Raises:
        UnreadableImage: naming the file, and why it cannot be read; no other exception leaves.
    """
    path = image["file_name"]
    try:
        with _open(image) as file:
            return decode_image(file, **{"min_side": 1, "max_pixels": 2 * MAX_PIXELS, **limits})
    except UnreadableImage as error:
        raise UnreadableImage(error.reason, path) from error
    except (OSError, ValueError) as error:  # of opening; a path may not hold a zero byte
        raise UnreadableImage(f"{type(error).__name__}: {error}", path) from error


def _open(image: dict[str, Any]) -> Any:
    if "member" in image:
        from .tar import read_member  # a run on folders does not need it

        return io.BytesIO(read_member(*image["member"]))
    if "image_bytes" in image:
        return io.BytesIO(image["image_bytes"])
    return PathManager.open(image["file_name"], "rb")

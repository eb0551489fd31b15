"""A picture of the views that enter the network, painted while it trains."""

# Shape shorthand in this module:
#   N: images, S: side of a global view, p: side of a patch, in pixels

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from PIL import Image, ImageDraw
from torch.nn import functional as F
from torchvision.utils import make_grid

from ..data.jigsaw import GRID
from ..files import replacing

logger = logging.getLogger(__name__)

GAP = 2  # pixels between the patches of a set
MARGIN = 16  # pixels between the cells of the table
TITLE_HEIGHT = 34  # pixels, two lines
_IMAGES = 4  # rows, at most
_LEAST_SIDE = 180  # pixels; smaller views are enlarged by a whole factor


class ViewsHook(HookBase):
    """Paints the views of a step that has been made: OUTPUT_DIR/views/iteration_0000000.png.

    At the first step of the process, every `period` iterations (0: never), and at the next step
    after somebody has made a file `show_views` in OUTPUT_DIR, which is then removed.
    """

    def __init__(self, step: Any, folder: str, image_format: str, period: int) -> None:
        self.step = step
        self.folder = Path(folder, "views")
        self.image_format = image_format
        self.period = period
        self.request = Path(folder, "show_views")

    def before_step(self) -> None:
        is_first = self.trainer.iter == self.trainer.start_iter
        is_due = self.period > 0 and self.trainer.iter % self.period == 0
        self.step.keep_views = is_first or is_due or self.request.exists()

    def after_step(self) -> None:
        views, self.step.views = self.step.views, None
        if views is None:
            return
        picture = paint_views(views, self.image_format)
        self.trainer.storage.put_image("views", picture.transpose(2, 0, 1))
        file = self.folder / f"iteration_{self.trainer.iter:07d}.png"
        try:
            self.request.unlink(missing_ok=True)
            os.makedirs(self.folder, exist_ok=True)
            with replacing(file) as part:
                Image.fromarray(picture).save(part, format="PNG")
            logger.info("The views of iteration %d: %s", self.trainer.iter, file)
        except OSError as error:  # a full disk; training matters more
            logger.warning("Cannot write the views into %s: %s", file, error)


def paint_views(batch: dict[str, Any], image_format: str) -> np.ndarray:
    """Paint the views of the first images of a batch, one image a row, under titles.

    Global query and key, then the 3x3 sets of local query and key, each as it enters the network
    and with every patch at its place in the crop. Views that the batch lacks are left out.

    Args:
        batch: what :meth:`DetCoDatasetMapper.finish` returns.
        image_format: channel order of the views.

    Returns:
        an RGB picture, uint8, of shape (H, W, 3).
    """
    columns: dict[str, list[torch.Tensor]] = {}
    for view in ("global_query", "global_key", "local_query", "local_key"):
        if view not in batch:
            continue
        pixels = batch[view][:_IMAGES].cpu()
        if image_format == "BGR":
            pixels = pixels.flip(-3)
        title = view.replace("_", " ")
        if view.startswith("global"):
            columns[title] = [_enlarged(image) for image in pixels]
            continue
        columns[f"{title}\nas it enters"] = [_board(patches) for patches in pixels]
        places = batch[f"{view}/cells"].cpu().argsort()  # of one image: of the cells in their order
        columns[f"{title}\noriginal order"] = [_board(p[i]) for p, i in zip(pixels, places)]
    side = max(column[0].shape[-1] for column in columns.values())
    rows = zip(*columns.values())
    images = [F.pad(x, 2 * (0, side - x.shape[-1]), value=255) for row in rows for x in row]
    table = make_grid(images, nrow=len(columns), padding=MARGIN, pad_value=255)
    table = F.pad(table, (0, 0, TITLE_HEIGHT, 0), value=255)
    picture = Image.fromarray(table.permute(1, 2, 0).numpy())
    pen = ImageDraw.Draw(picture)
    for i, title in enumerate(columns):
        pen.multiline_text((MARGIN + i * (side + MARGIN), 2), title, fill="black")
    return np.asarray(picture)


def _board(patches: torch.Tensor) -> torch.Tensor:
    """Nine patches of shape (9, 3, p, p) as a white board with gaps, of shape (3, s, s)."""
    board = make_grid(patches, nrow=GRID, padding=GAP, pad_value=255)
    return _enlarged(board[:, GAP:-GAP, GAP:-GAP])


def _enlarged(image: torch.Tensor) -> torch.Tensor:
    """An image of shape (3, s, s), each pixel repeated if it is small."""
    factor = max(1, round(_LEAST_SIDE / image.shape[-1]))
    return image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)

"""What features look like: principal components and nearest patches, as pictures.

Features are compared by the cosine between grid cells, as the contrastive losses compare
embeddings, so that every cell is scaled to length one first.
"""

# Shape shorthand in this module:
#   N: images, C: channels, h, w: a stage's grid, S: side of a square picture in pixels
# Boxes are (left, top, right, bottom) as shares of a picture's sides.

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.patches import Rectangle
from PIL import Image
from torchvision.transforms import functional as TF

from ..data.decode import MAX_PIXELS, MIN_SIDE, UnreadableImage, decode_image
from .charts import panels, show_picture

Box = tuple[float, float, float, float]
_BATCH = 16  # images that pass a backbone together


def read_square(path: str, size: int) -> np.ndarray:
    """The middle square of an image file, of shape (size, size, 3), RGB, uint8.

    Raises:
        UnreadableImage: naming the file, and why it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            image = decode_image(file, min_side=MIN_SIDE, max_pixels=MAX_PIXELS)
    except (OSError, UnreadableImage) as error:
        raise UnreadableImage(str(error), path) from error
    side = min(image.size)
    return np.array(TF.center_crop(image, [side, side]).resize((size, size), Image.LANCZOS))


def embed(
    backbone: Callable[[torch.Tensor], dict[str, torch.Tensor]], pictures: Sequence[np.ndarray]
) -> dict[str, torch.Tensor]:
    """Computes features without what the zeros around an image do to them.

    A network pads each convolution with zeros, by which cells know how far the edge is: in deep
    stages that is most of what differs. Pictures are continued by their mirror image instead, and
    the cells of that are cut off again.

    Args:
        backbone: maps images of shape (N, 3, H, W) to maps of each stage.
        pictures: N of shape (S, S, 3), uint8, where S is a multiple of 32.

    Returns:
        of every stage, of shape (N, C, S / stride, S / stride).
    """
    size = len(pictures[0])
    margin = -(-size // 128) * 32  # a quarter or more
    features: dict[str, list[torch.Tensor]] = {}
    for start in range(0, len(pictures), _BATCH):
        batch = torch.from_numpy(np.stack(pictures[start : start + _BATCH]))
        padded = F.pad(batch.permute(0, 3, 1, 2).float(), [margin] * 4, "reflect")
        for stage, maps in backbone(padded).items():
            edge = margin * maps.shape[-1] // padded.shape[-1]
            features.setdefault(stage, []).append(maps[..., edge:-edge, edge:-edge])
    return {stage: torch.cat(maps) for stage, maps in features.items()}


def _unit(maps: torch.Tensor) -> torch.Tensor:
    return F.normalize(maps.float(), dim=-3)


def principal_colours(maps: torch.Tensor) -> np.ndarray:
    """The first three principal components of all cells, as red, green and blue.

    The components are shared by the images, so that one colour means one thing in all of them.
    Each is scaled from its 1st to its 99th percentile; its sign, which the data leave open, is the
    one that makes the largest of its coefficients positive.

    Args:
        maps: features of shape (N, C, h, w).

    Returns:
        of shape (N, h, w, 3), uint8; a component without variance is grey.
    """
    cells = _unit(maps).permute(0, 2, 3, 1).flatten(0, 2).double()
    cells = cells - cells.mean(0)
    axes = torch.linalg.eigh(cells.T @ cells).eigenvectors.flip(1)[:, :3]
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    scores = (cells @ (axes * largest.sign())).numpy()
    low, high = np.percentile(scores, [1, 99], axis=0)
    shares = np.where(high - low > 1e-6, (scores - low) / np.maximum(high - low, 1e-6), 0.5)
    n, _, h, w = maps.shape
    return (255 * shares.clip(0, 1)).round().astype(np.uint8).reshape(n, h, w, 3)


@dataclass(frozen=True)
class Patch:
    """The place in an image that is most similar to a query patch."""

    box: Box
    similarity: float  # cosine, from -1 to 1
    heat: np.ndarray  # the cosine of every cell with the query, of shape (h, w)


def snap(box: Box, h: int, w: int) -> Box:
    """The nearest box that consists of whole cells of a grid, at least one.

    >>> snap((0.25, 0.55, 0.7, 0.6), 4, 4)
    (0.25, 0.5, 0.75, 0.75)
    """
    left, right = _snap_side(box[0], box[2], w)
    top, bottom = _snap_side(box[1], box[3], h)
    return left / w, top / h, right / w, bottom / h


def _snap_side(low: float, high: float, cells: int) -> tuple[int, int]:
    length = min(max(1, round((high - low) * cells)), cells)
    first = min(max(0, round(low * cells)), cells - length)
    return first, first + length


def best_patches(query: torch.Tensor, box: Box, maps: torch.Tensor) -> list[Patch]:
    """Of every image the patch that is most similar to the query's, of the same size.

    A patch is the mean of its unit cells.

    Args:
        query: features of the query image, of shape (C, h, w).
        box: of the query patch; snapped to the grid.
        maps: features of the images to search, of shape (N, C, h, w).
    """
    h, w = query.shape[-2:]
    (left, right), (top, bottom) = _snap_side(box[0], box[2], w), _snap_side(box[1], box[3], h)
    rows, columns = bottom - top, right - left
    wanted = F.normalize(_unit(query)[:, top:bottom, left:right].mean((1, 2)), dim=0)
    cells = _unit(maps)
    heat = torch.einsum("c,nchw->nhw", wanted, cells)
    windows = _unit(F.avg_pool2d(cells, (rows, columns), stride=1))
    similarity = torch.einsum("c,nchw->nhw", wanted, windows).flatten(1)
    across = w - columns + 1
    patches = []
    for i, place in enumerate(similarity.argmax(1).tolist()):
        y, x = divmod(place, across)
        found = (x / w, y / h, (x + columns) / w, (y + rows) / h)
        patches.append(Patch(found, similarity[i, place].item(), heat[i].numpy()))
    return patches


def plot_components(
    path: Path, pictures: Sequence[np.ndarray], colours: dict[str, dict[str, np.ndarray]]
) -> None:
    """Writes a row for each image and weight file, a column for each stage.

    Args:
        path: the .png to write.
        pictures: N of shape (S, S, 3).
        colours: of every weight file's stages by name, each of shape (N, h, w, 3).
    """
    stages = list(dict.fromkeys(stage for maps in colours.values() for stage in maps))
    rows = len(pictures) * len(colours)
    with panels(path, rows, 1 + len(stages), (2.0, 2.0)) as (figure, axes):
        figure.suptitle("first three principal components as red, green and blue")
        for column, title in enumerate(["image", *stages]):
            axes[0, column].set_title(title)
        for i, picture in enumerate(pictures):
            for j, (name, maps) in enumerate(colours.items()):
                row = axes[i * len(colours) + j]
                show_picture(row[0], picture)
                row[0].set_ylabel(name)
                for axis, stage in zip(row[1:], stages):
                    show_picture(axis, maps[stage][i], interpolation="bicubic")


@dataclass(frozen=True)
class Neighbours:
    """A row of the picture of nearest patches."""

    title: str  # which weights and stage
    box: Box  # of the query patch, on the grid of this stage
    found: Sequence[tuple[np.ndarray, Patch]]  # pictures of shape (S, S, 3); most similar first


def plot_neighbours(path: Path, query: np.ndarray, rows: Sequence[Neighbours]) -> None:
    """Writes the query, and the images with the nearest patches, dark where they differ.

    Args:
        path: the .png to write.
        query: a picture of shape (S, S, 3).
        rows: one for each weight file and stage.
    """
    columns = 1 + max(len(row.found) for row in rows)
    with panels(path, len(rows), columns, (2.0, 2.25)) as (figure, axes):
        figure.suptitle("nearest patches: bright cells are similar to the query patch")
        for axis in axes.flat:
            axis.set_visible(False)
        for line, row in zip(axes, rows):
            _show_patch(line[0], query, row.box, "query")
            line[0].set_ylabel(row.title)
            heats = np.concatenate([patch.heat.ravel() for _, patch in row.found])
            low, high = np.percentile(heats, 5), heats.max()
            for axis, (picture, patch) in zip(line[1:], row.found):
                _show_patch(axis, picture, patch.box, f"cosine {patch.similarity:.3f}")
                share = ((patch.heat - low) / max(high - low, 1e-9)).clip(0, 1)
                shade = np.dstack([np.zeros((*share.shape, 3)), 0.7 * (1 - share)])
                show_picture(axis, shade, zorder=0.5)


def _show_patch(axis: Any, picture: np.ndarray, box: Box, title: str) -> None:
    axis.set_visible(True)
    show_picture(axis, picture)
    axis.set_title(title)
    left, top, right, bottom = box
    for width, colour in ((4, "black"), (2, "yellow")):
        frame = Rectangle((left, top), right - left, bottom - top, fill=False)
        frame.set(linewidth=width, edgecolor=colour)
        axis.add_patch(frame)

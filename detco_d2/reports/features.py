"""What features look like: principal components and nearest patches, as pictures.

Features are compared by the cosine between grid cells, as the contrastive losses compare
embeddings, so that every cell is scaled to length one first.
"""

# Shape shorthand in this module:
#   N: images, C: channels, h, w: a stage's grid, S: side of a square picture in pixels
# Boxes are (left, top, right, bottom) as shares of a picture's sides.

from collections.abc import Callable, Mapping, Sequence
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
    """Computes every stage's features, of shape (N, C, h, w), of N pictures of shape (S, S, 3).

    A network pads with zeros, by which cells know how far the edge is: in deep stages that is most
    of what differs. So pictures, whose S is a multiple of 32, are continued by their mirror image,
    and the cells of that are cut off again.
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


def principal_colours(maps: torch.Tensor) -> np.ndarray:
    """Shows the first three principal components of all cells as red, green and blue.

    One colour means one thing in all images. A component is scaled from its 1st to its 99th
    percentile, and grey if it has no variance. Its sign, which the data leave open, is the one that
    makes the largest of its coefficients positive.

    Args:
        maps: features of shape (N, C, h, w); the result is of shape (N, h, w, 3), uint8.
    """
    cells = F.normalize(maps.float(), dim=1).permute(0, 2, 3, 1).flatten(0, 2).double()
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


def snap(low: float, high: float, cells: int) -> tuple[int, int]:
    """The first of the cells, at least one, that are nearest to a part of a side, and the end.

    >>> snap(0.25, 0.7, 4), snap(0.55, 0.6, 4)
    ((1, 3), (2, 3))
    """
    length = min(max(1, round((high - low) * cells)), cells)
    first = min(max(0, round(low * cells)), cells - length)
    return first, first + length


def best_patches(query: torch.Tensor, box: Box, maps: torch.Tensor) -> list[Patch]:
    """Finds in every image the patch, a mean of unit cells, that is most similar to the query's.

    Args:
        query: features of the query image, of shape (C, h, w).
        box: of the query patch; snapped to the grid. All patches have its size.
        maps: features of the images to search, of shape (N, C, h, w).
    """
    h, w = query.shape[-2:]
    (left, right), (top, bottom) = snap(box[0], box[2], w), snap(box[1], box[3], h)
    rows, columns = bottom - top, right - left
    wanted = F.normalize(query.float(), dim=0)[:, top:bottom, left:right].mean((1, 2))
    wanted, cells = F.normalize(wanted, dim=0), F.normalize(maps.float(), dim=1)
    heat = torch.einsum("c,nchw->nhw", wanted, cells)
    windows = F.normalize(F.avg_pool2d(cells, (rows, columns), stride=1), dim=1)
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
    """Writes a row for each image and weight file, a column for each stage, to a .png.

    Args:
        path: of the .png.
        pictures: N of shape (S, S, 3).
        colours: of every weight file's stages by name, each of shape (N, h, w, 3).
    """
    stages = list(next(iter(colours.values())))
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


def plot_neighbours(
    path: Path, pictures: Sequence[np.ndarray], rows: Mapping[str, Sequence[tuple[int, Patch]]]
) -> None:
    """Writes the query, and the images with the nearest patches, dark where they differ.

    Args:
        path: of the .png.
        pictures: N of shape (S, S, 3).
        rows: of each weight file the number of a picture, and the patch in it: first the query.
    """
    columns = max(map(len, rows.values()))
    with panels(path, len(rows), columns, (2.0, 2.25)) as (figure, axes):
        figure.suptitle("nearest patches: bright cells are similar to the query patch")
        for line, (name, row) in zip(axes, rows.items()):
            line[0].set_ylabel(name)
            heats = np.concatenate([patch.heat.ravel() for _, patch in row[1:]])
            low, high = np.percentile(heats, 5), heats.max()
            for axis, (number, patch) in zip(line, row):
                _show_patch(axis, pictures[number], patch.box)
                axis.set_title(f"cosine {patch.similarity:.3f}")
                share = ((patch.heat - low) / max(high - low, 1e-9)).clip(0, 1)
                shade = np.dstack([np.zeros((*share.shape, 3)), 0.7 * (1 - share)])
                show_picture(axis, shade, zorder=0.5)
            line[0].set_title("query")


def _show_patch(axis: Any, picture: np.ndarray, box: Box) -> None:
    show_picture(axis, picture)
    left, top, right, bottom = box
    for width, colour in ((4, "black"), (2, "yellow")):
        frame = Rectangle((left, top), right - left, bottom - top, fill=False)
        frame.set(linewidth=width, edgecolor=colour)
        axis.add_patch(frame)

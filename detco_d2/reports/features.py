"""What features look like: principal components and nearest patches, as pictures.

Features are compared by the cosine between grid cells, as the contrastive losses compare
embeddings, so that every cell is scaled to length one first.
"""

# Shape shorthand in this module:
#   N: images, C: channels, h, w: a stage's grid, S: side of a square picture in pixels

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.patches import Rectangle
from PIL import Image
from torchvision.transforms import functional as TF

from ..data.images import read_image
from .charts import panels, show_picture

_BATCH = 16  # images that pass a backbone together


def read_square(path: str, size: int) -> np.ndarray:
    """The middle square of what :func:`read_image` reads, of shape (size, size, 3), RGB, uint8."""
    image = read_image({"file_name": path})
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
            features.setdefault(stage, []).append(maps[..., edge:-edge, edge:-edge].cpu())
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
class Patches:
    """The place in each of N images that is most similar to a patch of the first."""

    boxes: np.ndarray  # left, top, right, bottom as shares of the sides, of shape (N, 4)
    similarity: np.ndarray  # cosines, from -1 to 1, of shape (N,)
    heat: np.ndarray  # the cosine of every cell with the query, of shape (N, h, w)


def best_patches(maps: torch.Tensor, box: Sequence[float]) -> Patches:
    """Finds in every image the patch that is most similar to one of the first.

    A patch is the mean of its unit cells; all have the size of the query.

    Args:
        maps: features of shape (N, C, h, w).
        box: of the query: left, top, right and bottom as shares of the sides; it is moved to the
            edges of cells.
    """
    h, w = maps.shape[-2:]
    left, top = min(int(box[0] * w + 0.5), w - 1), min(int(box[1] * h + 0.5), h - 1)
    columns, rows = max(round(box[2] * w) - left, 1), max(round(box[3] * h) - top, 1)
    cells = F.normalize(maps.float(), dim=1)
    windows = F.normalize(F.avg_pool2d(cells, (rows, columns), stride=1), dim=1)
    query = windows[0, :, top, left]
    similarity, place = torch.einsum("c,nchw->nhw", query, windows).flatten(1).max(1)
    y, x = np.divmod(place.numpy(), windows.shape[-1])
    boxes = np.stack([x / w, y / h, (x + columns) / w, (y + rows) / h], axis=1)
    boxes[0] = [left / w, top / h, (left + columns) / w, (top + rows) / h]
    heat = torch.einsum("c,nchw->nhw", query, cells)
    return Patches(boxes, similarity.numpy(), heat.numpy())


def plot_components(
    path: Path, pictures: Sequence[np.ndarray], colours: dict[str, dict[str, np.ndarray]]
) -> None:
    """Writes a row for each image and weight file, a column for each stage, to a .png.

    Args:
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
    path: Path, pictures: Sequence[np.ndarray], patches: Mapping[str, Patches], count: int
) -> None:
    """Writes the query, and the images with the nearest patches, dark where they differ, to a .png.

    Args:
        pictures: N of shape (S, S, 3); the first is the query's.
        patches: of each weight file.
        count: how many of the others, the most similar ones, are shown.
    """
    columns = min(1 + count, len(pictures))
    with panels(path, len(patches), columns, (2.0, 2.25)) as (figure, axes):
        figure.suptitle("nearest patches: bright cells are similar to the query patch")
        for row, (name, found) in zip(axes, patches.items()):
            row[0].set_ylabel(name)
            low, high = np.percentile(found.heat[1:], 5), found.heat[1:].max()
            others = 1 + np.argsort(-found.similarity[1:], kind="stable")
            for axis, i in zip(row, [0, *others]):
                show_picture(axis, pictures[i])
                share = ((found.heat[i] - low) / max(high - low, 1e-9)).clip(0, 1)
                shade = np.dstack([np.zeros((*share.shape, 3)), 0.7 * (1 - share)])
                show_picture(axis, shade, zorder=0.5)
                left, top, right, bottom = found.boxes[i]
                size = right - left, bottom - top
                axis.add_patch(Rectangle((left, top), *size, fill=False, lw=3, ec="yellow"))
                axis.set_title(f"cosine {found.similarity[i]:.3f}" if i else "query")

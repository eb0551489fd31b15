"""Draw what :mod:`detco_d2.reports.features` computes, several weight files together."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.patches import ConnectionPatch, Rectangle

from ..files import replacing
from .features import Box, Patch

# Apart in every kind of colour blindness (Okabe and Ito).
_RIGHT, _WRONG, _MARK = "#009e73", "#d55e00", "#f0e442"


@contextmanager
def _figure(path: Path, rows: int, columns: int, cell: tuple[float, float]) -> Iterator[Any]:
    """Axes without ticks, of shape (rows, columns), saved when the block ends.

    Args:
        path: the .png to write.
        rows, columns: how many.
        cell: width and height of one, in inches.
    """
    size = (cell[0] * columns + 0.4, cell[1] * rows + 0.5)
    with plt.rc_context({"text.parse_math": False}):  # a file name may hold dollar signs
        figure, axes = plt.subplots(
            *(rows, columns), figsize=size, squeeze=False, layout="constrained"
        )
        try:
            for axis in axes.flat:
                axis.set(xticks=[], yticks=[])
                for spine in axis.spines.values():
                    spine.set_visible(False)
            yield figure, axes
            with replacing(path) as file:
                figure.savefig(file, dpi=100, format="png")
        finally:
            plt.close(figure)


def _show(axis: Any, picture: np.ndarray, **options: Any) -> None:
    axis.imshow(picture, extent=(0, 1, 1, 0), aspect="equal", **options)


def _mark(axis: Any, box: Box) -> None:
    left, top, right, bottom = box
    for width, colour in ((4, "black"), (2, _MARK)):
        frame = Rectangle((left, top), right - left, bottom - top, fill=False)
        frame.set(linewidth=width, edgecolor=colour)
        axis.add_patch(frame)


def draw_components(
    path: Path, pictures: Sequence[np.ndarray], colours: dict[str, dict[str, np.ndarray]]
) -> None:
    """A row for each image and weight file, a column for each stage.

    Args:
        path: the .png to write.
        pictures: N of shape (S, S, 3).
        colours: of every weight file's stages by name, each of shape (N, h, w, 3).
    """
    stages = list(dict.fromkeys(stage for maps in colours.values() for stage in maps))
    rows = len(pictures) * len(colours)
    with _figure(path, rows, 1 + len(stages), (2.0, 2.0)) as (figure, axes):
        figure.suptitle("first three principal components as red, green and blue")
        for column, title in enumerate(["image", *stages]):
            axes[0, column].set_title(title)
        for i, picture in enumerate(pictures):
            for j, (name, maps) in enumerate(colours.items()):
                row = axes[i * len(colours) + j]
                _show(row[0], picture)
                row[0].set_ylabel(name)
                for axis, stage in zip(row[1:], stages):
                    _show(axis, maps[stage][i], interpolation="bicubic")


@dataclass(frozen=True)
class Neighbours:
    """A row of the picture of nearest patches.

    Attributes:
        title: which weights and stage.
        box: of the query patch, on the grid of this stage.
        found: pictures of shape (S, S, 3), and the patch in each; the most similar first.
    """

    title: str
    box: Box
    found: Sequence[tuple[np.ndarray, Patch]]


def draw_neighbours(path: Path, query: np.ndarray, rows: Sequence[Neighbours]) -> None:
    """The query at the left, and the images with the nearest patches, dark where they differ.

    Args:
        path: the .png to write.
        query: a picture of shape (S, S, 3).
        rows: one for each weight file and stage.
    """
    columns = 1 + max(len(row.found) for row in rows)
    with _figure(path, len(rows), columns, (2.0, 2.25)) as (figure, axes):
        figure.suptitle("nearest patches: bright cells are similar to the query patch")
        for line, row in zip(axes, rows):
            _show(line[0], query)
            _mark(line[0], row.box)
            line[0].set_ylabel(row.title)
            line[0].set_title("query", fontsize=10)
            heats = np.concatenate([patch.heat.ravel() for _, patch in row.found])
            low, high = np.percentile(heats, 5), heats.max()
            for axis, (picture, patch) in zip(line[1:], row.found):
                share = ((patch.heat - low) / max(high - low, 1e-9)).clip(0, 1)
                light = _enlarge(0.3 + 0.7 * share, picture)
                _show(axis, (picture * light[..., None]).astype(np.uint8))
                _mark(axis, patch.box)
                axis.set_title(f"cosine {patch.similarity:.3f}", fontsize=10)


def _enlarge(grid: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """A grid's values at every pixel of a picture."""
    rows, columns = (np.arange(s) * g // s for s, g in zip(picture.shape, grid.shape))
    return grid[np.ix_(rows, columns)]


@dataclass(frozen=True)
class Matches:
    """A panel of the picture of correspondences.

    Attributes:
        title: which weights, and what came out.
        pictures: the two, of shape (S, S, 3).
        places: in the first and the second, each of shape (M, 2).
        right: of shape (M,), whether each is right; None where that is not known.
    """

    title: str
    pictures: tuple[np.ndarray, np.ndarray]
    places: tuple[np.ndarray, np.ndarray]
    right: np.ndarray | None


def draw_matches(path: Path, title: str, rows: Sequence[Sequence[Matches]]) -> None:
    """Pairs of pictures with lines between matching cells.

    Args:
        path: the .png to write.
        title: over all.
        rows: one for each pair, in it a panel for each weight file.
    """
    columns = len(rows[0])
    with _figure(path, len(rows), 2 * columns, (2.6, 2.9)) as (figure, axes):
        figure.suptitle(title)
        for line, row in zip(axes, rows):
            for j, panel in enumerate(row):
                left, right = line[2 * j : 2 * j + 2]
                _show(left, panel.pictures[0])
                _show(right, panel.pictures[1])
                left.set_title(panel.title, fontsize=10, loc="left")
                _connect(figure, (left, right), panel)


def _connect(figure: Any, axes: tuple[Any, Any], panel: Matches) -> None:
    count = len(panel.places[0])
    if panel.right is None:
        colours = list(plt.get_cmap("turbo")(np.linspace(0.05, 0.95, max(count, 1))))
    else:
        colours = [_RIGHT if ok else _WRONG for ok in panel.right]
    for a, b, colour in zip(*panel.places, colours):
        for width, edge in ((3.0, "white"), (1.6, colour)):
            line = ConnectionPatch(a, b, "data", "data", axesA=axes[0], axesB=axes[1])
            line.set(color=edge, linewidth=width, alpha=0.9)
            figure.add_artist(line)
        for axis, place in zip(axes, (a, b)):
            axis.plot(*place, "o", color=colour, markersize=5, markeredgecolor="white")

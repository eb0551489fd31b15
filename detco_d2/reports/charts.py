"""Charts and grids of pictures, by matplotlib."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure

from ..files import replacing

Points = Sequence[tuple[float, float]]  # x rising; y may be NaN or infinite, which leaves a gap
_TEXT = {
    "font.size": 9,
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a file name may hold dollar signs
}
_STYLE: list[str | dict[str, Any]] = ["tableau-colorblind10", _TEXT]
_MAX_POINTS = 300  # of a line; more are averaged, as no screen shows them


def line_chart(lines: Mapping[str, Points], guides: Mapping[str, float]) -> bytes:
    """Draws lines over iterations as an SVG; the legend gives the last value of each.

    Args:
        lines: points by name. A value that is no finite number is a gap, a lone point a dot.
        guides: heights of dotted lines by name, such as chance.
    """
    with style.context(_STYLE):
        figure = Figure(figsize=(4.2, 2.9))
        axis = figure.add_axes((0.15, 0.4, 0.83, 0.57))
        axis.set_xlabel("iteration")
        axis.grid(alpha=0.3)
        for name, points in lines.items():
            x, y = _thin(points).T
            present = np.pad(np.isfinite(y), 1)
            alone = present[1:-1] & ~present[:-2] & ~present[2:]
            label = f"{printable(name)} {points[-1][1]:.3g}"
            axis.plot(x, y, label=label, marker=".", markevery=alone)
        for name, height in guides.items():
            label = f"{printable(name)} {height:.3g}"
            axis.axhline(height, color="black", linestyle=":", linewidth=1, label=label)
        figure.legend(loc="lower center", ncols=2, frameon=False)
        content = io.BytesIO()
        figure.savefig(content, format="svg")
    return content.getvalue()


def printable(text: str) -> str:
    """The text with a question mark for what an SVG cannot hold."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _thin(points: Points) -> np.ndarray:
    """At most so many points, of shape (M, 2), each the mean of its share of the finite ones."""
    values = np.ma.masked_invalid(np.array(points, dtype=float))
    size = max(1, -(-len(values) // _MAX_POINTS))
    shares = [values[i : i + size].mean(axis=0) for i in range(0, len(values), size)]
    return np.ma.vstack(shares).filled(np.nan)


@contextmanager
def panels(
    path: Path, rows: int, columns: int, size: tuple[float, float]
) -> Iterator[tuple[Figure, np.ndarray]]:
    """Gives a figure and its axes, of shape (rows, columns), each of a size in inches.

    It is written to a .png when the block ends.
    """
    with style.context(_STYLE):
        whole = (size[0] * columns + 0.4, size[1] * rows + 0.5)
        figure = Figure(figsize=whole, layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False)
        with replacing(path) as file:
            figure.savefig(file, dpi=100, format="png")


def show_picture(axis: Any, picture: np.ndarray, **options: Any) -> None:
    """Shows a picture of shape (H, W, 3) without ticks; its sides run from 0 to 1."""
    axis.imshow(picture, extent=(0, 1, 1, 0), aspect=picture.shape[0] / picture.shape[1], **options)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)

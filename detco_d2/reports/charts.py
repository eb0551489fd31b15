"""Line charts as SVG that stands within an HTML page and takes its colours from it."""

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]  # x rising; y may be NaN or infinite, which leaves a gap
NUM_COLOURS = 6  # classes .c0 to .c5 of the page's style sheet
_WIDTH, _HEIGHT = 400, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 10, 32
_MAX_POINTS = 300  # of a line; more are averaged, as no screen shows them


def line_chart(
    title: str, lines: Mapping[str, Points], guides: Mapping[str, float] | None = None
) -> str:
    """A figure with its legend, which gives the last value of each line.

    Args:
        title: what is drawn over the iterations.
        lines: points by name.
        guides: heights of dotted lines by name, such as chance.

    Returns:
        HTML; every text in it is escaped.
    """
    guides = {name: y for name, y in (guides or {}).items() if math.isfinite(y)}
    thin = {name: _thin(points) for name, points in lines.items()}
    ends = {name: _ends(points) for name, points in lines.items()}
    finite = [p for points in thin.values() for p in points if math.isfinite(p[1])]
    spoken = ", ".join(f"{n} from {a:.3g} to {b:.3g}" for n, (a, b) in ends.items())
    if finite:
        x_ticks = _ticks(min(x for x, _ in finite), max(x for x, _ in finite))
        heights = [y for _, y in finite] + list(guides.values())
        y_ticks = _ticks(min(heights), max(heights))
        low = (min(x for x, _ in finite), min(y_ticks[0], *heights))
        high = (max(x for x, _ in finite), max(y_ticks[-1], *heights))
        body = _axes(x_ticks, y_ticks, low, high) + _guides(guides, low, high)
        body += "".join(_line(i, points, low, high) for i, points in enumerate(thin.values()))
    else:
        body = f'<text x="{_WIDTH / 2}" y="{_HEIGHT / 2}" class="middle">no finite value</text>'
    keys = [
        f'<li><span class="key c{i % NUM_COLOURS}"></span>{escape(name)} <b>{ends[name][1]:.3g}</b>'
        for i, name in enumerate(lines)
    ]
    keys += [f'<li><span class="key guide"></span>{escape(n)} {y:.3g}' for n, y in guides.items()]
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(title)} over iterations: {escape(spoken)}">{body}</svg>'
        f'<ul class="legend">{"".join(f"{key}</li>" for key in keys)}</ul></figure>'
    )


def _ends(points: Points) -> tuple[float, float]:
    return (points[0][1], points[-1][1]) if points else (math.nan, math.nan)


def _thin(points: Points) -> list[tuple[float, float]]:
    """At most so many points, each the mean of its share of the finite ones."""
    size = -(-len(points) // _MAX_POINTS)
    if size <= 1:
        return list(points)
    thin = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        finite = [y for _, y in part if math.isfinite(y)]
        middle = sum(x for x, _ in part) / len(part)
        thin.append((middle, sum(finite) / len(finite) if finite else math.nan))
    return thin


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers that enclose a range, four to eight of them.

    >>> _ticks(0.3, 5.2)
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    """
    spread = high - low if high > low else abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(spread / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if spread / (step * factor) <= 5.5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def _place(
    point: tuple[float, float], low: tuple[float, float], high: tuple[float, float]
) -> tuple[float, float]:
    """A point's place in the drawing, in its units."""
    x, y = ((p - a) / ((b - a) or 1.0) for p, a, b in zip(point, low, high))
    return (
        _LEFT + x * (_WIDTH - _LEFT - _RIGHT),
        _HEIGHT - _BOTTOM - y * (_HEIGHT - _TOP - _BOTTOM),
    )


def _axes(
    x_ticks: list[float],
    y_ticks: list[float],
    low: tuple[float, float],
    high: tuple[float, float],
) -> str:
    parts = []
    for tick in y_ticks:
        _, y = _place((low[0], tick), low, high)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 5}" y="{y + 4:.1f}">{_number(tick)}</text>')
    for tick in x_ticks:
        if low[0] <= tick <= high[0]:
            x, _ = _place((tick, low[1]), low, high)
            text = f'x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 15}">{_number(tick)}'
            parts.append(f'<text class="middle" {text}</text>')
    middle = (_WIDTH + _LEFT - _RIGHT) / 2
    parts.append(f'<text class="middle" x="{middle}" y="{_HEIGHT - 3}">iteration</text>')
    return "".join(parts)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _guides(
    guides: Mapping[str, float], low: tuple[float, float], high: tuple[float, float]
) -> str:
    heights = [_place((low[0], y), low, high)[1] for y in guides.values()]
    return "".join(f'<path class="guide" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>' for y in heights)


def _line(i: int, points: Points, low: tuple[float, float], high: tuple[float, float]) -> str:
    """A line that is broken where there is no finite value; a lone point is a dot."""
    steps, lonely, drawn = [], [], 0
    for point in [*points, (math.nan, math.nan)]:
        if math.isfinite(point[1]):
            x, y = _place(point, low, high)
            steps.append(f"{'L' if drawn else 'M'}{x:.1f} {y:.1f}")
            drawn += 1
            continue
        if drawn == 1:
            lonely.append(steps.pop()[1:].split())
        drawn = 0
    dots = "".join(
        f'<circle class="c{i % NUM_COLOURS}" cx="{x}" cy="{y}" r="3"/>' for x, y in lonely
    )
    return f'<path class="line c{i % NUM_COLOURS}" d="{"".join(steps)}"/>{dots}'

"""Line charts: what is in the data is in the drawing."""

import math
import re
from xml.etree import ElementTree

import pytest

from detco_d2.reports.charts import line_chart

NAN = math.nan
SVG = "{http://www.w3.org/2000/svg}"


def draw(lines, guides=None):
    return ElementTree.fromstring(line_chart(lines, guides or {}))


def path_of(chart, colour="#006ba4") -> str:
    """What is drawn of the line of a colour within the axes."""
    paths = [p for p in chart.iter(f"{SVG}path") if "clip-path" in p.attrib]
    (path,) = [p for p in paths if colour in p.attrib["style"]]
    return path.attrib["d"]


def places(path: str) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split())) for pair in re.split("[ML]", path)[1:]]


def test_a_line_goes_through_its_points_to_scale():
    (x0, y0), (x1, y1), (x2, y2) = places(path_of(draw({"a": [(0, 4.0), (100, 2.0), (200, 3.0)]})))
    assert x1 - x0 == pytest.approx(x2 - x1) and x0 < x1
    assert y0 < y2 < y1  # downwards on a screen
    assert y1 - y0 == pytest.approx(2 * (y1 - y2))


def test_the_legend_has_the_end_of_each_line_and_the_guides():
    chart = draw({"res4": [(0, 5.0), (9, 4.25)], "res5": [(0, 6.0)]}, {"chance": 5.5})
    texts = {"".join(text.itertext()) for text in chart.iter(f"{SVG}text")}
    assert {"res4 4.25", "res5 6", "chance 5.5", "iteration"} <= texts


def test_what_is_no_number_is_a_gap_and_a_lone_point_a_dot():
    points = [(0, 1.0), (1, 2.0), (2, NAN), (3, 1.0), (4, math.inf), (5, 1.0), (6, 2.0)]
    chart = draw({"a": points})
    path = path_of(chart)
    assert path.count("M") == 3 and path.count("L") == 2 and "nan" not in path
    dots = [dot for dot in chart.iter(f"{SVG}use") if "#006ba4" in dot.attrib["style"]]
    assert len(dots) == 2  # the second is the legend's


@pytest.mark.parametrize("points", [[(0, NAN)], [(0, 0.0)], [(0, 7.0), (9, 7.0)], [(0, 1e300)]])
def test_little_data_is_a_chart(points):
    assert draw({"a": points}).tag == f"{SVG}svg"


def test_long_lines_are_thinned_and_keep_their_mean():
    path = path_of(draw({"a": [(i, float(i % 2)) for i in range(90_000)], "b": [(0, 0.0)]}))
    heights = [y for _, y in places(path)]
    assert len(heights) <= 300 and max(heights) - min(heights) < 2


def test_names_cannot_bring_markup():
    names = ('"><script>', "<b onload=x>\ud800\x00$x$")
    chart = draw({names[0]: [(0, 1.0)]}, {names[1]: 1.0})
    assert not [e for e in chart.iter() if e.tag.removeprefix(SVG) in ("script", "b")]
    assert f"{names[0]} 1" in {"".join(text.itertext()) for text in chart.iter(f"{SVG}text")}

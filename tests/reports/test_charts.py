"""Line charts: what is in the data is in the drawing."""

import doctest
import math
import re

import pytest

from detco_d2.reports import charts
from detco_d2.reports.charts import line_chart


def places(chart: str, colour: int = 0) -> list[tuple[float, float]]:
    path = re.search(rf'<path class="line c{colour}" d="([^"]*)"', chart)[1]
    return [tuple(map(float, pair.split())) for pair in re.split("[ML]", path)[1:]]


def test_the_examples_in_docstrings_hold():
    assert doctest.testmod(charts).failed == 0


def test_a_line_goes_through_its_points_to_scale():
    chart = line_chart("loss", {"res5": [(0, 4.0), (100, 2.0), (200, 3.0)]})
    (x0, y0), (x1, y1), (x2, y2) = places(chart)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and x0 < x1
    assert y0 < y2 < y1  # downwards on a screen
    assert y1 - y0 == pytest.approx(2 * (y1 - y2), abs=0.2)


def test_the_legend_and_the_spoken_text_have_the_ends_of_each_line_and_the_guides():
    chart = line_chart("loss", {"res4": [(0, 5.0), (9, 4.25)], "res5": [(0, 6.0)]}, {"chance": 5.5})
    assert "</span>res4 <b>4.25</b>" in chart and "</span>res5 <b>6</b>" in chart
    assert "</span>chance 5.5<" in chart and 'class="guide"' in chart
    assert 'aria-label="loss over iterations: res4 from 5 to 4.25, res5 from 6 to 6"' in chart


def test_what_is_no_number_is_a_gap_and_a_lone_point_a_dot():
    nan = math.nan
    points = [(0, 1.0), (1, 2.0), (2, nan), (3, 1.0), (4, math.inf), (5, 1.0), (6, 2.0)]
    chart = line_chart("loss", {"a": points})
    assert chart.count("<circle") == 1 and "nan" not in re.sub("aria-label=.*?>", "", chart)
    path = re.search(r'class="line c0" d="([^"]*)"', chart)[1]
    assert path.count("M") == 2 and path.count("L") == 2


@pytest.mark.parametrize("points", [[], [(0, math.nan)], [(0, 0.0)], [(0, 7.0), (9, 7.0)]])
def test_little_data_is_drawn_or_said_to_be_missing(points):
    chart = line_chart("loss", {"a": points})
    finite = [y for _, y in points if math.isfinite(y)]
    assert ("no finite value" in chart) == (not finite)
    assert all(math.isfinite(v) for v in map(float, re.findall(r"[\d.]+(?=[ \"])", chart)))


def test_long_lines_are_thinned_and_keep_their_mean():
    chart = line_chart("loss", {"a": [(i, float(i % 2)) for i in range(100_000)]})
    heights = [y for _, y in places(chart)]
    assert 100 < len(heights) <= 300 and max(heights) - min(heights) < 2


def test_names_cannot_bring_markup():
    chart = line_chart('"><script>', {"<b onload=x>": [(0, 1.0)]}, {"<i>": 1.0})
    assert "<script" not in chart and "<b onload" not in chart and "<i>" not in chart

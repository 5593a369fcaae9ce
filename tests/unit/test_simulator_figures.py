"""Quantiles, intervals, sizes of fleets, and the picture."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from grange.simulator.figures import Figures, interval, measure, quantile
from grange.simulator.plot import Point, svg
from grange.simulator.policies import right_size
from grange.simulator.trace import Build
from tests.unit.simulated import POOL, simulated


def test_a_quantile_is_the_least_that_enough_are_not_above() -> None:
    assert [quantile([1, 2, 3, 4], share) for share in (0.0, 0.25, 0.5, 0.51, 1.0)] == [
        1,
        1,
        2,
        3,
        4,
    ]
    assert quantile([], 0.5) == 0.0


def figures(dollars: float) -> Figures:
    world = simulated([Build(ready_at=0, duration=1)])
    return replace(measure("p", world), dollars_week=dollars)


def test_intervals_are_of_students_t() -> None:
    found = interval([figures(x) for x in (1.0, 2.0, 3.0)], lambda each: each.dollars_week)
    assert found.mean == 2.0
    assert found.half == pytest.approx(4.303 * 1.0 / 3**0.5)
    assert found.text(1) == "2.0 ±2.5"
    assert interval([figures(1.0)], lambda each: each.dollars_week).text(1) == "1.0"


def test_the_right_size_is_the_smallest_whose_p95_wait_is_short_enough() -> None:
    builds = [Build(ready_at=0, duration=100)] * 40
    # By 10 places the last ten begin after 300 s; by 13 only one does.
    assert right_size(builds, POOL, 300.0) == 10
    assert right_size(builds, POOL, 299.0) == 13
    assert right_size(builds, POOL, 0.0) == 38  # two in forty may wait
    assert right_size(builds, replace(POOL, capacity=2), 300.0) == 5


def test_the_picture_is_svg_with_every_policy_and_the_front_joined() -> None:
    points = [
        Point("cheap & slow", 400, 20, 5, 1, 15),
        Point("dear", 10, 300, least=30),
        Point("beaten", 420, 320),
        Point("none", 0, 0),
    ]
    root = ElementTree.fromstring(svg(points, "a < b"))
    space = "{http://www.w3.org/2000/svg}"
    texts = {each.text for each in root.iter(f"{space}text")}
    assert {"cheap & slow", "dear", "beaten", "a < b"} <= texts
    assert len(list(root.iter(f"{space}circle"))) == 4
    for each in root.iter(f"{space}circle"):
        assert 0 < float(each.attrib["cx"]) < 900
        assert 0 < float(each.attrib["cy"]) < 560


def test_the_front_leaves_out_what_is_beaten_in_both() -> None:
    points = [Point("a", 1, 30), Point("b", 2, 40), Point("c", 3, 10)]
    (front,) = ElementTree.fromstring(svg(points, "")).iter("{http://www.w3.org/2000/svg}polyline")
    assert len(front.attrib["points"].split()) == 2

"""Cost against wait, one point a policy, as SVG. Points that none beats in both are joined.

Costs differ by the ten and the hundred, so theirs is a logarithmic scale.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

WIDTH: Final = 900
HEIGHT: Final = 560
LEFT, RIGHT, TOP, BOTTOM = 70, 30, 50, 60
CHAR: Final = 6.6  # a letter's width at 12 px
STEPS: Final = (1, 2, 5)
HALO: Final = 'paint-order="stroke" stroke="#ffffff" stroke-width="3"'  # over lines it is read


@dataclass(frozen=True, slots=True)
class Point:
    """A policy. `x` is its wait in seconds, `y` its dollars a week; with half intervals."""

    name: str
    x: float
    y: float
    half_x: float = 0.0
    half_y: float = 0.0
    least: float = 0.0  # the oracle's dollars, for the same waits


def svg(points: Sequence[Point], title: str) -> str:
    """A picture that stands by itself."""
    right = _nice(max(p.x + p.half_x for p in points) or 1.0)
    paid = [cost for p in points for cost in (p.y - p.half_y, p.y + p.half_y, p.least) if cost > 0]
    plane = _Plane(right, *_decades(min(paid, default=1.0), max(paid, default=1.0)))
    parts = [_axes(plane), _front(plane, points)]
    parts += [_mark(plane, point) for point in points]
    parts += _labels(plane, points)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
        f'<text x="{LEFT}" y="26" font-size="15" font-weight="bold">{escape(title)}</text>'
        + "".join(parts)
        + "</svg>\n"
    )


@dataclass(frozen=True, slots=True)
class _Plane:
    right: float
    bottom: float
    top: float

    def x(self, value: float) -> float:
        return LEFT + value / self.right * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """What costs nothing lies on the axis."""
        share = math.log(max(value, self.bottom) / self.bottom) / math.log(self.top / self.bottom)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _decades(least: float, most: float) -> tuple[float, float]:
    """The ticks around both."""
    ticks = _ticks(least / 10, most * 10)
    below = max(tick for tick in ticks if tick < least)
    return below, min(tick for tick in ticks if tick > most)


def _ticks(least: float, most: float) -> list[float]:
    first, last = math.floor(math.log10(least)), math.ceil(math.log10(most))
    return [step * 10.0**power for power in range(first, last + 1) for step in STEPS]


def _nice(most: float) -> float:
    """The end of an axis: a little beyond the greatest value, at a tick."""
    step = _step(most)
    return math.ceil(most * 1.04 / step) * step


def _step(most: float) -> float:
    power = 10.0 ** math.floor(math.log10(most / 4))
    return next((s * power for s in STEPS if most / (s * power) <= 8), 10 * power)


def _axes(plane: _Plane) -> str:
    parts = []
    step = _step(plane.right)
    for n in range(round(plane.right / step) + 1):
        x = plane.x(n * step)
        parts.append(_line(x, HEIGHT - BOTTOM, x, TOP, "#e4e4e4"))
        parts.append(_text(x, HEIGHT - BOTTOM + 18, f"{n * step:g}", "middle"))
    for tick in _ticks(plane.bottom, plane.top):
        if plane.bottom <= tick <= plane.top:
            y = plane.y(tick)
            parts.append(_line(plane.x(0), y, plane.x(plane.right), y, "#e4e4e4"))
            parts.append(_text(LEFT - 8, y + 4, f"{tick:g}", "end"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(_text(middle, HEIGHT - 18, "p95 wait for a place, seconds", "middle"))
    turned = f'transform="rotate(-90 18 {HEIGHT / 2})"'
    parts.append(_text(18, HEIGHT / 2, "dollars a week", "middle", turned))
    return "".join(parts)


def _front(plane: _Plane, points: Sequence[Point]) -> str:
    """The policies that none beats in both, joined."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, p.y)):
        if not front or point.y < front[-1].y:
            front.append(point)
    path = " ".join(f"{plane.x(p.x):.1f},{plane.y(p.y):.1f}" for p in front)
    return f'<polyline points="{path}" fill="none" stroke="#2a78b8" stroke-dasharray="5 4"/>'


def _mark(plane: _Plane, point: Point) -> str:
    x, y = plane.x(point.x), plane.y(point.y)
    parts = [
        _line(plane.x(point.x - point.half_x), y, plane.x(point.x + point.half_x), y, "#555"),
        _line(x, plane.y(point.y - point.half_y), x, plane.y(point.y + point.half_y), "#555"),
    ]
    if point.least:
        least = plane.y(point.least)
        parts.append(_line(x, y, x, least, "#e0a080"))
        parts.append(_line(x - 5, least, x + 5, least, "#c04010"))
    said = f"{point.name}: ${point.y:.2f} a week, p95 {point.x:.0f} s, oracle ${point.least:.2f}"
    parts.append(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="#2a78b8"><title>{escape(said)}</title>'
        "</circle>"
    )
    return "".join(parts)


def _labels(plane: _Plane, points: Sequence[Point]) -> list[str]:
    """Names beside their points, moved until they lie on no other."""
    taken = [(plane.x(p.x) - 6, plane.y(p.y) - 6, 12.0, 12.0) for p in points]
    parts = []
    for point in sorted(points, key=lambda p: p.y):
        x, y, wide = plane.x(point.x), plane.y(point.y), CHAR * len(point.name)
        at = next(
            (a for a in _spots(x, y, wide) if not any(_meet(a, other) for other in taken)),
            (x + 9, y - 7, wide, 14.0),
        )
        taken.append(at)
        if abs(at[1] + 7 - y) > 10:
            end = at[0] if at[0] > x else at[0] + wide
            parts.append(_line(x, y, end, at[1] + 7, "#bbb"))
        parts.append(_text(at[0], at[1] + 11, point.name, "start", HALO))
    return parts


def _spots(x: float, y: float, wide: float) -> list[tuple[float, float, float, float]]:
    spots = []
    for away in range(0, 200, 8):
        for up in (-away, away):
            for left in (x + 9 + away / 4, x - 9 - wide - away / 4):
                if left > LEFT and left + wide < WIDTH - 4 and TOP < y + up < HEIGHT - BOTTOM:
                    spots.append((left, y + up - 7, wide, 14.0))
    return spots


def _meet(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def _line(x1: float, y1: float, x2: float, y2: float, color: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"/>'


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'

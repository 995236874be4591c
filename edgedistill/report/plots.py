"""Two drawings as inline SVG: lines over steps, and bubbles over two axes.

Positions are percentages and sizes are pixels, so that a plot is as wide as its page and its text stays as large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgedistill.report.page import e

_NARROW, _HIGH = 290, 240  # px of a plot on a phone, where numbers must not meet
_LARGEST, _SMALLEST = 24, 9  # px, a bubble's radius


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high`, its title with the unit."""

    title: str
    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where `value` stands, 0 to 100."""
        low, high, value = (math.log(x) for x in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return round(100 * (value - low) / (high - low), 2)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values, at most `most`."""
        if self.log:
            for steps in ((1, 2, 5), (1, 3), (1,)):
                decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
                found = [m * 10.0**d for d in decades for m in steps if self.low <= m * 10.0**d <= self.high]
                if 2 <= len(found) <= most:
                    return found
        width = self.high - self.low
        for step in (m * 10.0**d for d in range(-9, 12) for m in (1, 2, 5)):
            if width / step < most:
                first = math.ceil(self.low / step - 1e-9)
                return [round(i * step, 9) for i in range(first, math.floor(self.high / step + 1e-9) + 1)]
        return [self.low]


@dataclass(frozen=True)
class Bubble:
    """A point of `bubbles`; `size` is proportional to its area."""

    x: float
    y: float
    low: float
    high: float
    size: float
    colour: int
    chosen: bool = False


def lines(words: str, x: Axis, y: Axis, series: list[tuple[int, list[tuple[float, float]]]], dots: bool = False) -> str:
    """Polylines (colour, points). `words` is the text alternative."""
    drawn = []
    for colour, points in series:
        places = [(x.at(a), 100 - y.at(b)) for a, b in points]
        drawn += [f"<line class=\"line c{colour}\" {_ends(*pair)}/>" for pair in zip(places, places[1:], strict=False)]
        if dots or len(places) == 1:
            drawn += [f"<circle class=\"dot c{colour}\" cx=\"{a}%\" cy=\"{b}%\" r=\"4\"/>" for a, b in places]
    return _svg(words, x, y, "".join(drawn))


def bubbles(words: str, x: Axis, y: Axis, points: list[Bubble], front: list[int]) -> str:
    """Numbered bubbles (1 is the first) with whiskers along y; the bubbles at the places `front` are joined."""
    places = [(x.at(point.x), 100 - y.at(point.y)) for point in points]
    largest = max(point.size for point in points) or 1
    radii = [max(_SMALLEST, _LARGEST * math.sqrt(point.size / largest)) for point in points]
    joined = [places[i] for i in front]
    drawn = [f"<line class=\"front\" {_ends(*pair)}/>" for pair in zip(joined, joined[1:], strict=False)]
    for i in sorted(range(len(points)), key=lambda i: -radii[i]):  # a small one is not hidden by a large one
        (a, b), point = places[i], points[i]
        drawn.append(f"<line class=\"whisker c{point.colour}\" "
                     f"{_ends((a, 100 - y.at(point.low)), (a, 100 - y.at(point.high)))}/>")
        drawn.append(f"<circle class=\"bubble c{point.colour}{' chosen' if point.chosen else ''}\" cx=\"{a}%\" cy=\"{b}%\" "
                     f"r=\"{radii[i]:.1f}\"/>")
    for i, shift in enumerate(_shifts(places, radii)):
        drawn.append(f"<text class=\"mark\" x=\"{places[i][0]}%\" y=\"{places[i][1]}%\" dy=\"{shift + 4.5:.1f}\" "
                     f"text-anchor=\"middle\">{i + 1}</text>")
    return _svg(words, x, y, "".join(drawn))


def _shifts(places: list[tuple[float, float]], radii: list[float]) -> list[float]:
    """How far, in px, each number moves up or down from its bubble's middle so that no two meet on a narrow page.

    Only along y, where px do not depend on the width: on a wider page numbers only move apart.
    """
    taken: list[tuple[float, float]] = []
    shifts = []
    for (x, y), radius in zip(places, radii, strict=True):
        px, py = x * _NARROW / 100, y * _HIGH / 100
        tries = [0.0, *(sign * (radius + 9 + 15 * i) for i in range(len(places)) for sign in (-1, 1))]
        shift = next((t for t in tries if all(abs(px - a) > 17 or abs(py + t - b) > 14 for a, b in taken)), 0.0)
        taken.append((px, py + shift))
        shifts.append(shift)
    return shifts


def _ends(start: tuple[float, float], end: tuple[float, float]) -> str:
    return f"x1=\"{start[0]}%\" y1=\"{start[1]}%\" x2=\"{end[0]}%\" y2=\"{end[1]}%\""


def _svg(words: str, x: Axis, y: Axis, marks: str) -> str:
    drawn = [f"<text x=\"0\" y=\"0\" dx=\"-34\" dy=\"-14\">{e(y.title)}</text>",
             f"<text x=\"100%\" y=\"100%\" dy=\"38\" text-anchor=\"end\">{e(x.title)}</text>"]
    for value in y.ticks():
        at = round(100 - y.at(value), 2)
        drawn.append(f"<line class=\"grid\" {_ends((0, at), (100, at))}/>"
                     f"<text x=\"0\" y=\"{at}%\" dx=\"-7\" dy=\"4\" text-anchor=\"end\">{value:g}</text>")
    for value in x.ticks():
        at = x.at(value)
        drawn.append(f"<line class=\"grid\" {_ends((at, 0), (at, 100))}/>"
                     f"<text x=\"{at}%\" y=\"100%\" dy=\"18\" text-anchor=\"middle\">{value:g}</text>")
    return f"<svg role=\"img\" aria-label=\"{e(words)}\">{''.join(drawn)}{marks}</svg>"

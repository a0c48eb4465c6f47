"""The comparison as pictures: one SVG with what a table shows badly.

    requests per second against connections, GET and PUT, both servers
    the distribution of latencies at 64 connections: what part of the answers took longer than that
    time per request against the number of keys in the store

Drawn here, in a hundred lines, because a plotting library would be the largest dependency by far.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from html import escape
from statistics import median
from typing import TYPE_CHECKING

from bench.compare.catalogue import CONNECTIONS
from bench.compare.rows import OURS, THEIRS
from bench.load.closed_loop import PERCENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.compare.rows import Result

WIDTH, HEIGHT = 460, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 62, 44
COLORS = {OURS: "#1b6ca8", THEIRS: "#c8553d"}
DASHES = {"GET": "", "PUT": "6 4"}

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: a server, what it does, and its points."""

    server: str
    work: str
    points: list[Point]


@dataclass(frozen=True, slots=True)
class Chart:
    """One picture; both axes are logarithmic."""

    title: str
    x: str
    y: str
    lines: list[Line]


def svg(results: Sequence[Result]) -> str:
    """Return all charts that there are figures for, side by side."""
    by_name = {result.row.name: result for result in results if result.rounds}
    charts = [c for c in (rates(by_name), tails(by_name), sizes(by_name)) if c.lines]
    width = max(len(charts), 1) * WIDTH
    drawn = "".join(
        f'<g transform="translate({n * WIDTH} 0)">{draw(chart)}</g>'
        for n, chart in enumerate(charts)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT}" '
        f'viewBox="0 0 {width} {HEIGHT}" font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="white"/>{drawn}</svg>\n'
    )


def rates(by_name: dict[str, Result]) -> Chart:
    """Requests per second against connections."""
    lines = []
    for work in ("GET", "PUT"):
        for server in (OURS, THEIRS):
            points = [
                (float(n), rate)
                for n in CONNECTIONS
                if (result := by_name.get(f"{work.lower()}-{n}"))
                and (rate := result.median(server, "rate"))
            ]
            if points:
                lines.append(Line(server, work, points))
    return Chart("Requests per second", "connections", "requests/s", lines)


def tails(by_name: dict[str, Result]) -> Chart:
    """Share of the answers that took longer."""
    lines = []
    for work in ("GET", "PUT"):
        result = by_name.get(f"{work.lower()}-64")
        for server in (OURS, THEIRS) if result else ():
            assert result is not None
            found = [r[server].latencies_us for r in result.rounds if server in r]
            points = [
                (median(latencies) / 1000, 100 - percent)
                for percent, latencies in zip(PERCENTS, zip(*found, strict=True), strict=False)
                if min(latencies) > 0
            ]
            if points:
                lines.append(Line(server, work, points))
    title = "Latency, 64 connections"
    return Chart(title, "ms", "% of answers that took longer", lines)


def sizes(by_name: dict[str, Result]) -> Chart:
    """Time per request against the size of the store."""
    lines = []
    for work in ("GET", "PUT"):
        result = by_name.get(f"size-{work.lower()}")
        if result is None:
            continue
        points = [
            (float(found[1]), us)
            for name in result.rounds[0][OURS].figures
            if (found := re.fullmatch(r"us_at_(\d+)", name)) and (us := result.median(OURS, name))
        ]
        lines.append(Line(OURS, work, points))
    title = "Cost against store size, 64 connections"
    return Chart(title, "keys in the store", "us per request", lines)


def number(value: float) -> str:
    """Return a number as an axis shows it."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def draw(chart: Chart) -> str:
    """Return a chart's elements."""
    xs = [x for line in chart.lines for x, _ in line.points]
    ys = [y for line in chart.lines for _, y in line.points]
    few_places = len(set(xs)) <= 4  # as with connections: the grid shows just those
    x_ticks = sorted(set(xs)) if few_places else ticks(xs)
    to_x = scale(x_ticks, LEFT, WIDTH - RIGHT)
    to_y = scale(ticks(ys), HEIGHT - BOTTOM, TOP)
    parts = [text(WIDTH / 2, 18, chart.title, "middle", bold=True)]
    parts.append(text(WIDTH / 2, HEIGHT - 8, chart.x, "middle"))
    parts.append(text(8, TOP - 8, chart.y, "start"))
    for tick in x_ticks:
        parts.append(rule(to_x(tick), TOP, to_x(tick), HEIGHT - BOTTOM))
        parts.append(text(to_x(tick), HEIGHT - BOTTOM + 14, number(tick), "middle"))
    for tick in ticks(ys):
        parts.append(rule(LEFT, to_y(tick), WIDTH - RIGHT, to_y(tick)))
        parts.append(text(LEFT - 6, to_y(tick) + 4, number(tick), "end"))
    for n, line in enumerate(chart.lines):
        parts += curve(line, to_x, to_y)
        parts.append(legend(line, n))
    return "".join(parts)


def scale(marks: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    """Return what places a value between two coordinates, by its logarithm.

    The first and the last mark of the axis stand at the coordinates.
    """
    low, high = math.log(marks[0]), math.log(marks[-1])
    return lambda value: start + (end - start) * (math.log(value) - low) / ((high - low) or 1)


def ticks(values: Sequence[float]) -> list[float]:
    """Return round numbers from below the least to above the largest value: 1, 2, 5, 10, ..."""
    exponents = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    steps = (1, 2, 5) if len(exponents) <= 3 else (1,)
    marks = [step * 10.0**exponent for exponent in exponents for step in steps]
    first = max((n for n, mark in enumerate(marks) if mark <= min(values) * 1.001), default=0)
    last = min((n for n, mark in enumerate(marks) if mark >= max(values) * 0.999), default=-1)
    return marks[first:] if last <= first else marks[first : last + 1]


def curve(line: Line, to_x: Callable[[float], float], to_y: Callable[[float], float]) -> list[str]:
    """Return a line through its points, and the points."""
    color = COLORS[line.server]
    places = [(to_x(x), to_y(y)) for x, y in sorted(line.points)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dash = f' stroke-dasharray="{DASHES[line.work]}"' if DASHES[line.work] else ""
    return [
        f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"{dash}/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in places),
    ]


def legend(line: Line, n: int) -> str:
    """Return the entry of a line in the legend."""
    x, y = LEFT + 92 * n, TOP - 24
    color, dash = COLORS[line.server], DASHES[line.work]
    return (
        f'<line x1="{x + 4}" y1="{y - 4}" x2="{x + 22}" y2="{y - 4}" stroke="{color}" '
        f'stroke-width="2" stroke-dasharray="{dash or "none"}"/>'
        + text(x + 26, y, f"{line.server} {line.work}", "start")
    )


def rule(x1: float, y1: float, x2: float, y2: float) -> str:
    """Return a line of the grid."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def text(x: float, y: float, words: str, anchor: str, *, bold: bool = False) -> str:
    """Return words at a place."""
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{escape(words)}</text>'

"""Plots and distributions as SVG, in the colours of the page around them."""

from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby
from math import ceil, floor, log10
from statistics import median

_WIDTH, _HEIGHT = 640, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 150, 12, 44
_LINES_MAX = 4
_STRIP_WIDTH, _STRIP_HEIGHT = 240, 24
_DOTS_MAX = 250
ENOUGH_FOR_A_BOX, ENOUGH_FOR_P99 = 4, 100
"""Of fewer measurements, quartiles and the 99th percentile say nothing."""

# Labels of lines are this far apart, at least.
_LABEL_APART = 16

Point = tuple[float, float] | list[float]


def plot(title: str, x_name: str, y_name: str, lines: dict[str, list[Point]]) -> str:
    """Return a plot of up to four lines, through the medians of what was measured at each x."""
    lines = dict(list(lines.items())[:_LINES_MAX])
    points = [point for line in lines.values() for point in line]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    right, base = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    x_ticks, x_at = _axis(xs, _LEFT, right)
    y_ticks, y_at = _axis(ys, base, _TOP, from_zero=True)
    parts = [
        f'<path class="grid" d="M{_LEFT} {y_at(y):.1f}H{right}"/>'
        f'<text x="{_LEFT - 8}" y="{y_at(y) + 4:.1f}" text-anchor="end">{_number(y)}</text>'
        for y in y_ticks
    ]
    parts += [
        f'<path class="tick" d="M{x_at(x):.1f} {base}v4"/>'
        f'<text x="{x_at(x):.1f}" y="{base + 18}" text-anchor="middle">{_number(x)}</text>'
        for x in x_ticks
    ]
    parts.append(f'<path class="axis" d="M{_LEFT} {base}H{right}"/>')
    parts.append(
        f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">'
        f"{escape(x_name)}</text>"
    )
    parts += [_line(number, line, x_at, y_at) for number, line in enumerate(lines.values(), 1)]
    parts += _labels(lines, y_at, right)
    return (
        f"<figure><figcaption><b>{escape(title)}</b><span>{escape(y_name)}</span></figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}: '
        f'{escape(y_name)}, by {escape(x_name)}">{"".join(parts)}</svg>'
        f"{_table(x_name, lines)}</figure>"
    )


def strip(values: Sequence[float]) -> str:
    """Return the shape of a distribution: each value, the middle half as a box, the median."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    logarithmic = low > 0 and high / low > 20
    turn: Callable[[float], float] = log10 if logarithmic else float
    span = (turn(high) - turn(low)) or 1.0

    def at(value: float) -> float:
        if high == low:
            return _STRIP_WIDTH / 2
        return 4 + (turn(value) - turn(low)) / span * (_STRIP_WIDTH - 8)

    step = max(1, len(ordered) // _DOTS_MAX)
    middle = _STRIP_HEIGHT / 2
    dots = "".join(
        # Three rows, so that equal values are seen to be several.
        f'<circle cx="{at(value):.1f}" cy="{middle + (place % 3 - 1) * 5:.0f}" r="1.5"/>'
        for place, value in enumerate(ordered[::step])
    )
    first, third = quantile(ordered, 0.25), quantile(ordered, 0.75)
    half, box = median(ordered), max(1.0, at(third) - at(first))
    rect = (
        f'<rect x="{at(first):.1f}" y="4" width="{box:.1f}" height="{_STRIP_HEIGHT - 8}" rx="2"/>'
        if len(ordered) >= ENOUGH_FOR_A_BOX
        else ""
    )
    return (
        f'<svg class="strip" viewBox="0 0 {_STRIP_WIDTH} {_STRIP_HEIGHT}" aria-hidden="true">'
        f'<path class="axis" d="M{at(low):.1f} {middle}H{at(high):.1f}"/>{dots}{rect}'
        f'<path class="median" d="M{at(half):.1f} 2V{_STRIP_HEIGHT - 2}"/></svg>'
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which a share of the sorted values lies; one that was measured."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _line(
    number: int,
    line: Sequence[Point],
    x_at: Callable[[float], float],
    y_at: Callable[[float], float],
) -> str:
    medians = _medians(line)
    path = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in medians)
    dots = "".join(
        f'<circle cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="2.5">'
        f"<title>{x:g}: {y:g}</title></circle>"
        for x, y in line
    )
    return f'<g class="line line-{number}"><polyline points="{path}"/>{dots}</g>'


def _medians(line: Sequence[Point]) -> list[tuple[float, float]]:
    ordered = sorted(line)
    return [
        (x, median(y for _, y in group)) for x, group in groupby(ordered, lambda point: point[0])
    ]


def _labels(
    lines: dict[str, list[Point]], y_at: Callable[[float], float], right: float
) -> list[str]:
    """Return the names of the lines at their ends, moved apart where they would overlap."""
    ends = sorted(
        (y_at(_medians(line)[-1][1]), number, name)
        for number, (name, line) in enumerate(lines.items(), 1)
    )
    labels, above = [], -float(_LABEL_APART)
    for end, number, name in ends:
        above = max(end, above + _LABEL_APART)
        labels.append(
            f'<text class="label label-{number}" x="{right + 10}" y="{above + 4:.1f}">'
            f"{escape(name)}</text>"
        )
    return labels


def _table(x_name: str, lines: dict[str, list[Point]]) -> str:
    heads = "".join(f"<th>{escape(name)}" for name in lines)
    columns = [
        {x: sorted(point[1] for point in points) for x, points in _groups(line)}
        for line in lines.values()
    ]
    rows = []
    for x in sorted({x for column in columns for x in column}):
        cells = "".join(f"<td>{_range(column.get(x, []))}" for column in columns)
        rows.append(f"<tr><td>{x:,g}{cells}</tr>")
    return (
        "<details><summary>The numbers</summary><table><thead><tr>"
        f"<th>{escape(x_name)}{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></details>"
    )


def _groups(line: Sequence[Point]) -> list[tuple[float, list[Point]]]:
    return [(x, list(group)) for x, group in groupby(sorted(line), lambda point: point[0])]


def _range(values: Sequence[float]) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:,.4g}"
    low, high = values[0], values[-1]
    return f"{median(values):,.4g} <small>({low:,.4g} to {high:,.4g}, n = {len(values)})</small>"


def _axis(
    values: Sequence[float], first: float, last: float, *, from_zero: bool = False
) -> tuple[list[float], Callable[[float], float]]:
    """Return the ticks of an axis, and where a value is; logarithmic if it spans decades."""
    low, high = min(values), max(values)
    if low > 0 and high / low > 50:
        bottom, top = floor(log10(low)), ceil(log10(high))
        span = (top - bottom) or 1
        ticks = [10.0**n for n in range(bottom, top + 1)]
        return ticks, lambda value: first + (log10(value) - bottom) / span * (last - first)
    low = min(0.0, low) if from_zero or low < high / 2 else low
    step = _step((high - low) or abs(high) or 1.0)
    begin = floor(low / step)
    end = max(ceil(high / step), begin + 1)
    length = (end - begin) * step
    ticks = [n * step for n in range(begin, end + 1)]
    return ticks, lambda value: first + (value - begin * step) / length * (last - first)


def _step(span: float) -> float:
    """Return a round distance, of which there are three to seven in a span."""
    unit = 10.0 ** floor(log10(span))
    return next(unit * part for part in (0.2, 0.25, 0.5, 1.0, 2.0) if span / (unit * part) <= 6)


def _number(value: float) -> str:
    return f"{value:,.10g}"

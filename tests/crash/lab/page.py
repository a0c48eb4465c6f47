"""The report: one page of HTML that needs nothing else, plots included."""

from collections.abc import Callable, Iterable, Sequence
from html import escape
from math import log10
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem;
       color: #1d2730; background: #fff }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem;
         border-bottom: 1px solid #dde3e8 }
.held, .caught { color: #17693a; font-weight: 600 }
.broken, .missed { color: #b3261e; font-weight: 600 }
.skipped { color: #7a6a00; font-weight: 600 }
small, figcaption { color: #55636f } figure { margin: 1rem 0 }
svg text { font: 12px system-ui, sans-serif; fill: #55636f }
"""
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 620, 260, 64, 40

Point = tuple[float, float]


def page(reports: Sequence[dict[str, Any]]) -> str:
    """Return the report on some experiments, each as `--json` has it."""
    rows = "".join(_row(report) for report in reports)
    plots = "".join(
        _plot(name, points)
        for report in reports
        for name, points in report["series"].items()
        if len(points) > 1
    )
    broken = sum(report["verdict"] in ("broken", "missed") for report in reports)
    summary = f"{len(reports)} experiments, {broken} of them not as they should be"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>kvd: crash recovery</title>'
        f"<style>{_STYLE}</style><h1>Experiments in crash recovery</h1><p>{summary}.</p>"
        "<table><tr><th>Experiment<th>What must hold<th>Outcome<th>Figures</tr>"
        f"{rows}</table><h2>Plots</h2>{plots or '<p>There are none.</p>'}</html>\n"
    )


def _row(report: dict[str, Any]) -> str:
    name = escape(report["name"])
    if report["mutant"]:
        name += f"<br><small>with the bug {escape(report['mutant'])}</small>"
    figures = "<br>".join(f"{escape(k)}: {escape(str(v))}" for k, v in report["figures"].items())
    detail = f"<br><small>{escape(report['detail'][:400])}</small>" if report["detail"] else ""
    return (
        f'<tr><td>{name}<td>{escape(report["promise"])}<td><span class="{report["verdict"]}">'
        f"{report['verdict']}</span>{detail}<td>{figures}<br><small>seed {report['seed']}, "
        f"{report['rounds']} {escape(report['unit'])}, {report['seconds']} s</small></tr>"
    )


def _plot(name: str, points: Sequence[Point]) -> str:
    """Return one plot; its name says `y / x`. An axis that spans decades is logarithmic."""
    y_name, _, x_name = name.rpartition(" / ")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_log, y_log = _spans_decades(xs), _spans_decades(ys)
    x_at = _scale(xs, _LEFT, _WIDTH - 16, x_log)
    y_at = _scale([*ys] if y_log else [0.0, *ys], _HEIGHT - _BOTTOM, 16, y_log)
    places = [(x_at(x), y_at(y)) for x, y in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="#1f6feb">'
        f"<title>{px:g}: {py:g}</title></circle>"
        for (x, y), (px, py) in zip(places, points, strict=True)
    )
    base = _HEIGHT - _BOTTOM
    x_ticks = "".join(
        f'<text x="{x_at(x):.1f}" y="{base + 16}" text-anchor="middle">{x:g}</text>'
        for x in _apart(xs, x_at, 48)
    )
    y_ticks = "".join(
        f'<text x="{_LEFT - 8}" y="{y_at(y) + 4:.1f}" text-anchor="end">{y:g}</text>'
        f'<path d="M{_LEFT} {y_at(y):.1f}H{_WIDTH - 16}" stroke="#eef1f4"/>'
        for y in _apart(ys, y_at, 16)
    )
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" '
        f'aria-label="{escape(y_name)} against {escape(x_name)}">{y_ticks}{x_ticks}'
        f'<path d="M{_LEFT} 16V{base}H{_WIDTH - 16}" fill="none" stroke="#9aa7b2"/>'
        f'<polyline points="{line}" fill="none" stroke="#1f6feb" stroke-width="2"/>{dots}'
        f'<text x="{_WIDTH - 16}" y="{_HEIGHT - 6}" text-anchor="end">{escape(x_name)}</text></svg>'
        f"<figcaption>{escape(y_name)}</figcaption></figure>"
    )


def _spans_decades(values: Sequence[float]) -> bool:
    positive = [value for value in values if value > 0]
    return bool(positive) and max(positive) / min(positive) > 50


def _scale(
    values: Iterable[float], first: float, last: float, logarithmic: bool
) -> Callable[[float], float]:
    values = list(values)
    # A zero stands where the logarithm of one would, all else a little further on.
    shift = 0.0 if min(values) > 0 else 1.0

    def turn(value: float) -> float:
        return log10(value + shift) if logarithmic else value

    low, high = turn(min(values)), turn(max(values))
    span = (high - low) or 1.0
    return lambda value: first + (turn(value) - low) / span * (last - first)


def _apart(values: Sequence[float], at: Callable[[float], float], gap: float) -> list[float]:
    """Return those of the values, from the largest down, that have room at an axis."""
    kept: list[float] = []
    for value in sorted(set(values), reverse=True):
        if not kept or abs(at(value) - at(kept[-1])) >= gap:
            kept.append(value)
    return kept

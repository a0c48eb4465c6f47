"""The page: one file of HTML that needs nothing else, with plots, light and dark.

Its colours are those of kvd's own page, whose style sheet is read for them.
"""

import re
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from tests.crash.lab.experiment import counted
from tests.crash.lab.report.document import Document
from tests.crash.lab.report.plots import ENOUGH_FOR_A_BOX, ENOUGH_FOR_P99, plot, quantile, strip
from tests.support.server import ROOT

_TOKENS = ROOT / "kvd" / "ui" / "app.css"
_DETAIL = 1000  # characters
_VERDICTS = {
    "held": "the promise held",
    "broken": "a promise is broken",
    "caught": "the bug was caught",
    "missed": "the bug was missed",
    "skipped": "not tried on this machine",
    "stopped": "stopped early",
}
_HEADS = ("n", "least", "p25", "median", "p75", "p99", "most")


def page(documents: Sequence[Document]) -> str:
    """Return the report on the experiments of one or several runs."""
    runs = [
        (number, document["conditions"], report)
        for number, document in enumerate(documents, 1)
        for report in document["experiments"]
    ]
    sections = "".join(
        _section(place, report, number if len(documents) > 1 else 0)
        for place, (number, _, report) in enumerate(runs, 1)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>kvd: experiments in crash recovery</title><style>{_style()}</style></head>"
        f"<body><main>{_head(documents, runs)}{_conditions(documents)}{_overview(runs)}"
        f"<h2>Experiments</h2>{sections}{_foot()}</main></body></html>\n"
    )


def _style() -> str:
    css = _TOKENS.read_text()
    tokens = {
        theme: re.search(rf'\[data-theme="{theme}"\] \{{(.*?)\}}', css, re.DOTALL)
        for theme in ("light", "dark")
    }
    light, dark = (found[1] if found else "" for found in tokens.values())
    own = Path(__file__).with_name("page.css").read_text()
    return f":root {{{light}}}@media (prefers-color-scheme: dark) {{:root {{{dark}}}}}{own}"


def _head(documents: Sequence[Document], runs: Sequence[tuple[int, Any, Any]]) -> str:
    counts = Counter(report["verdict"] for _, _, report in runs)
    sums = "".join(
        f'<li><b>{counts[verdict]}</b><span class="tag {verdict}">{verdict}</span></li>'
        for verdict in _VERDICTS
        if counts[verdict]
    )
    for name, without in (("acknowledged writes", False), ("lost", True)):
        total = sum(report["figures"].get(name, 0) for _, _, report in runs)
        if total or (without and any(name in report["figures"] for _, _, report in runs)):
            sums += f"<li><b>{total:,}</b><span>{name}</span></li>"
    return (
        "<h1>Experiments in crash recovery</h1>"
        '<p class="lead">Each experiment ends or damages a private kvd server in one way, starts '
        "it again, and compares what clients had received with what is there. It says what it "
        "promises, what it found, and the command that repeats it.</p>"
        f'<ul class="sums">{sums}</ul>{_citation(documents)}'
    )


def _citation(documents: Sequence[Document]) -> str:
    texts = []
    for document in documents:
        found = document["conditions"]
        names = sorted({report["name"] for report in document["experiments"]})
        texts.append(
            f"kvd {found['kvd']['version']}, commit {_commit(found)}: crash recovery experiments "
            f"({', '.join(names)}), {found['started'][:10]}, {found['system']['kernel']}, "
            f"{found['file_system']['type']}, Python {found['python']['version']}."
        )
    return f"<h2>How to cite</h2><pre>{escape(chr(10).join(texts))}</pre>"


def _commit(conditions: Any) -> str:
    commit = conditions["kvd"]["commit"] or "unknown"
    return f"{commit} with changes" if conditions["kvd"]["changed"] else str(commit)


def _conditions(documents: Sequence[Document]) -> str:
    found = []
    for number, document in enumerate(documents, 1):
        name = f"Conditions of run {number}" if len(documents) > 1 else "Conditions"
        rows = "".join(
            f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>"
            for term, text in _facts(document["conditions"]).items()
        )
        found.append(f'<h2 id="run-{number}">{name}</h2><dl class="facts">{rows}</dl>')
    return "".join(found)


def _facts(found: Any) -> dict[str, str]:
    machine, python, disk = found["machine"], found["python"], found["file_system"]
    memory = f"{machine['memory_bytes'] / (1 << 30):.1f} GiB"
    build = "optimized" if python["optimized"] else "not optimized"
    processor = machine["processor"] or machine["architecture"]
    return {
        "kvd": f"{found['kvd']['version']}, commit {_commit(found)}",
        "Started": found["started"].replace("T", " ").replace("+00:00", " UTC"),
        "Machine": f"{processor}, {machine['cpus']} CPUs, {memory}, {machine['architecture']}",
        "System": f"{found['system']['name']}, {found['system']['kernel']}",
        "File system": f"{disk['type']} ({disk['options']})",
        "Python": f"{python['implementation']} {python['version']} ({build}), {python['loop']}",
    }


def _overview(runs: Sequence[tuple[int, Any, Any]]) -> str:
    rows = "".join(
        f'<tr><td><a href="#e{place}"><code>{escape(report["name"])}</code></a>{_bug(report)}'
        f"<td>{_tag(report)}"
        f'<td class="number">{escape(counted(report["rounds"], report["unit"]))}'
        f'<td class="number">{_seconds(report["seconds"])}</tr>'
        for place, (_, _, report) in enumerate(runs, 1)
    )
    return (
        '<h2>Outcome</h2><div class="scroll"><table><thead><tr><th>Experiment<th>Outcome'
        f'<th class="number">Rounds<th class="number">Time</tr></thead><tbody>{rows}</tbody>'
        "</table></div>"
    )


def _section(place: int, report: Any, run: int) -> str:
    of_run = f' <a class="quiet" href="#run-{run}">run {run}</a>' if run else ""
    detail = report["detail"][:_DETAIL]
    return (
        f'<article id="e{place}"><header><h3>{escape(report["name"])}</h3>{_tag(report)}'
        f'{_bug(report)}{of_run}</header><p class="promise">{_sentence(report["promise"])}</p>'
        + (f'<p class="detail">{escape(detail)}</p>' if detail else "")
        + _figures(report["figures"])
        + _distributions(report["distributions"])
        + "".join(
            plot(title, found["x"], found["y"], found["lines"])
            for title, found in report["plots"].items()
            if any(len(line) > 1 for line in found["lines"].values())
        )
        + '<dl class="facts"><dt>Command</dt>'
        f"<dd><code>{escape(report['command'])}</code></dd><dt>Extent</dt>"
        f"<dd>{escape(counted(report['rounds'], report['unit']))} in "
        f"{_seconds(report['seconds'])}, "
        f"seed {report['seed']}, load {report['load'][0]:g} to {report['load'][1]:g}</dd></dl>"
        "</article>"
    )


def _sentence(text: str) -> str:
    return escape(f"{text[:1].upper()}{text[1:]}.")


def _tag(report: Any) -> str:
    verdict = report["verdict"]
    return f'<span class="tag {verdict}" title="{_VERDICTS[verdict]}">{verdict}</span>'


def _bug(report: Any) -> str:
    return f" <small>with the bug {escape(report['mutant'])}</small>" if report["mutant"] else ""


def _figures(figures: dict[str, Any]) -> str:
    if not figures:
        return ""
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(_figure(value))}</dd></div>"
        for name, value in figures.items()
    )
    return f'<dl class="figures">{cells}</dl>'


def _figure(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)


def _distributions(found: dict[str, Any]) -> str:
    rows = []
    for name, shape in found.items():
        ordered, unit = sorted(shape["values"]), shape["unit"]
        if not ordered:
            continue
        box, tail = len(ordered) >= ENOUGH_FOR_A_BOX, len(ordered) >= ENOUGH_FOR_P99
        cells = (
            ordered[0],
            quantile(ordered, 0.25) if box else None,
            median(ordered),
            quantile(ordered, 0.75) if box else None,
            quantile(ordered, 0.99) if tail else None,
            ordered[-1],
        )
        numbers = "".join(f'<td class="number">{_measure(value, unit)}' for value in cells)
        rows.append(
            f'<tr><td>{escape(name)}<td class="number">{len(ordered):,}{numbers}'
            f"<td>{strip(ordered)}</tr>"
        )
    if not rows:
        return ""
    heads = "".join(f'<th class="number">{name}' for name in _HEADS)
    return (
        f'<div class="scroll shapes"><table><thead><tr><th>Measured{heads}<th>Distribution</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _measure(value: float | None, unit: str) -> str:
    if value is None:
        return "–"  # noqa: RUF001 -- a dash in a table
    match unit:
        case "s" if value < 0.001:
            return f"{value * 1e6:.0f} µs"
        case "s" if value < 1:
            return f"{value * 1000:.3g} ms"
        case "s":
            return f"{value:.3g} s"
        case "bytes":
            return f"{value / 1e6:,.3g} MB"
    return f"{value:,.6g}"


def _seconds(value: float) -> str:
    return f"{value:,.1f} s" if value < 600 else f"{value / 60:,.1f} min"


def _foot() -> str:
    return (
        "<footer><p><small>A box is the middle half of the measurements, its bar the median; the "
        "scale of each runs from the least to the most, logarithmically where these are more than "
        "20 times apart. p99: 99 of 100 were below; it needs 100 measurements. Lines go through "
        "medians. Load: runnable processes of the machine over a minute, at the start and at the "
        "end.</small></p></footer>"
    )

"""The comparison as text: a table in Markdown, and everything measured in JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from bench.compare import conditions
from bench.compare.rows import FIGURES, OURS, THEIRS, Demand, Result
from bench.load import servers
from bench.load.closed_loop import PERCENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.compare.fleet import Scale

HEAD = (
    "work", "figure", "kvd", "etcd", "kvd / etcd: median (min to max)", "target", "reached",
    "p50 / p99, ms: kvd", "etcd", "server CPU, us per request: kvd", "etcd",
)  # fmt: skip
RIGHT = {2, 3, 4, 5, 7, 8, 9, 10}


def markdown(results: Sequence[Result]) -> str:
    """Return the table of all results: a line for each demand, or one where there is none."""
    lines = ["| " + " | ".join(HEAD) + " |"]
    lines.append("|" + "|".join("---:" if n in RIGHT else "---" for n in range(len(HEAD))) + "|")
    for result in results:
        for n, demand in enumerate(result.row.demands or (result.row.shown,)):
            lines.append("| " + " | ".join(cells(result, demand, is_first=n == 0)) + " |")
    if any(result.row.reduced for result in results):
        lines += ["", "(In brackets: measured at a smaller size than the target speaks of.)"]
    lines += [f"\n{r.row.title}: **failed**: {r.failed}" for r in results if r.failed]
    lines += [f"\n{r.row.title}: **not measured**: {r.doubt}" for r in results if r.doubt]
    return "\n".join(lines)


def cells(result: Result, demand: Demand, *, is_first: bool) -> list[str]:
    """Return one line of the table."""
    name, form = FIGURES[demand.figure]
    line = [result.row.title if is_first else "", name]
    line += [show(result.median(server, demand.figure), form) for server in (OURS, THEIRS)]
    line.append(show_values(result.values(demand), form if demand.own else ".2f"))
    line += (
        ["-", "-"] if demand not in result.row.demands else [demand.text, verdict(result, demand)]
    )
    for server in (OURS, THEIRS):
        p50, p99 = (show(result.median(server, f), ".2f") for f in ("p50_ms", "p99_ms"))
        line.append(f"{p50} / {p99}" if is_first and p50 != "-" else "-")
    for server in (OURS, THEIRS):
        line.append(show(result.median(server, "server_cpu_us") if is_first else None, ".1f"))
    return line


def others(results: Sequence[Result]) -> str:
    """Return what else the machine did in the rounds, in words."""
    known = [each for result in results for each in result.conditions]
    if not known:
        return "what else it did is unknown"
    busy = sum(each.is_busy for each in known)
    middle = conditions.Conditions(
        median(each.seconds for each in known),
        median(each.others for each in known),
        median(each.stolen for each in known),
    )
    left_out = f", {busy} of {len(known)} rounds do not count" if busy else ""
    return f"in the rounds {middle.text} (medians{left_out})"


def verdict(result: Result, demand: Demand) -> str:
    """Return whether a demand is reached, in a word."""
    if result.doubt and not result.failed:
        return "not measured"
    reached = result.reached(demand)
    if reached is None:
        return "-"
    word = "yes" if reached else "**no**"
    return f"({word})" if result.row.reduced else word


def show(figure: float | None, form: str) -> str:
    """Return a figure as text; a dash for what was not measured."""
    return "-" if figure is None else format(figure, form)


def show_values(values: Sequence[float], form: str) -> str:
    """Return the median of what is bounded, and its range."""
    if not values:
        return "-"
    low, high = format(min(values), form), format(max(values), form)
    return f"**{median(values):{form}}** ({low} to {high})"


def as_json(results: Sequence[Result], machine: dict[str, object], scale: Scale) -> str:
    """Return everything measured, each round of each server."""
    content = {
        "machine": machine,
        "scale": asdict(scale),
        "percents": PERCENTS,
        "rows": [result.as_json() for result in results],
    }
    return json.dumps(content, indent=1)


def describe_machine(directory: Path) -> dict[str, object]:
    """Return what a reader must know to compare figures with those of another machine."""
    processors = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=servers.CHECKOUT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processors[0] if processors else platform.machine(),
        "cores": os.cpu_count(),
        "memory_mb": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 10**6,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "python_build": conditions.python_build(),
        "event_loop": conditions.event_loop(),
        "etcd": servers.etcd_version() or None,
        "commit": commit.stdout.strip() or None,
        "file_system": servers.file_system(directory),
        "load_average": os.getloadavg()[0],
    }


def describe_run(machine: dict[str, object], scale: Scale, results: Sequence[Result]) -> str:
    """Return the sentence above the table."""
    found = {m.generator for result in results for r in result.rounds for m in r.values()}
    generators = " and ".join(sorted(found - {""})) or "none"
    rounds = sorted({len(r.rounds) for r in results if not r.row.once} or {0})
    turns = f"{rounds[0]} to {rounds[-1]}" if len(rounds) > 1 else f"{rounds[0]}"
    return (
        f"{machine['date']}, kvd {machine['commit']}: {machine['processor']}, "
        f"{machine['cores']} cores, {machine['system']}, {machine['file_system']}, "
        f"Python {machine['python']} ({machine['python_build']}), {machine['event_loop']}, "
        f"etcd {machine['etcd']}; load average at the start "
        f"{machine['load_average']:.1f}, {others(results)}; rounds: {turns} of {scale.seconds} s, "
        f"interleaved; medians over the rounds; 1,000 keys and values of {scale.value_bytes} bytes "
        f"where nothing else is said; generator: {generators}; all verified"
    )

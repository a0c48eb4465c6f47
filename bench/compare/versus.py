"""kvd against etcd 3.4 on this machine, in one run: `scripts/versus-etcd`.

Both servers keep their data on the same disk and take turns under the same load: a ratio is made of
two measurements that follow each other, so that what else the machine does meets both. Each run is
verified. A row that fails (a wrong answer, a refused request, a server that ended) is marked in
the table, and the exit status is 1; the others go on.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from dataclasses import fields, replace
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from bench.compare import catalogue, conditions, plot, report
from bench.compare.fleet import QUICK, Fleet, Scale
from bench.compare.rows import FIGURES, Result
from bench.load import servers
from bench.load.__main__ import GENERATORS
from bench.load.wire import LoadError
from bench.load.workloads import WrongAnswer

if TYPE_CHECKING:
    from collections.abc import Sequence

OUT = servers.CHECKOUT / "build" / "versus-etcd"


FAILURES = (LoadError, WrongAnswer, OSError)


def run(results: Sequence[Result], fleet: Fleet, out: Written) -> None:
    """Fill the results with rounds, group by group, and tell each round on stderr."""
    started_s = time.monotonic()
    done = 0
    for _, members in groupby(results, key=lambda result: result.row.group):
        group = list(members)
        for result in group:
            done += 1
            # Each row has its share of the time that there is.
            end_s = started_s + fleet.scale.limit_s * done / len(results)
            fill(result, fleet, end_s, f"[{done}/{len(results)}]")
            out.write()
        try:
            fleet.leave()
        except FAILURES as error:
            for result in group:
                result.failed = result.failed or str(error)
            progress(str(error))


def fill(result: Result, fleet: Fleet, end_s: float, place: str) -> None:
    """Measure a row, at least once; a failure ends it, and its servers."""
    row = result.row
    try:
        for turn in range(1 if row.once else fleet.scale.rounds):
            if turn and time.monotonic() > end_s:
                break
            before = conditions.look()
            result.rounds.append(row.measure(fleet, turn))
            after = conditions.look()
            result.conditions.append(
                conditions.Conditions.between(before, after, os.cpu_count() or 1)
            )
            progress(f"{place} {row.name}, {line_of(result, turn)}")
    except FAILURES as error:
        result.failed = str(error)
        progress("\n".join([f"{row.name}: {error}", *getattr(error, "__notes__", [])]))
        fleet.close()


def line_of(result: Result, turn: int) -> str:
    """Return the newest round in one line."""
    measured = result.rounds[-1]
    words = []
    for demand in result.row.demands or (result.row.shown,):
        name, form = FIGURES[demand.figure]
        figures = [f"{server} {m.figures[demand.figure]:{form}}" for server, m in measured.items()]
        latest, values = demand.of(measured), result.values(demand)
        is_shown = latest is not None and not demand.own
        ratio = f" (ratio {latest:.2f}, median {median(values):.2f})" if is_shown else ""
        words.append(f"{name}: {', '.join(figures)}" + ratio)
    if result.conditions[turn].is_busy:
        words.append(f"does not count, {result.conditions[turn].text}")
    return f"round {turn + 1}: " + "; ".join(words)


class Written:
    """The files of a run: written after each row, so that an interrupted run leaves what it has."""

    def __init__(self, directory: Path, results: Sequence[Result], scale: Scale) -> None:
        self.directory = directory
        self.results = results
        self.scale = scale
        self.machine: dict[str, object] = {}

    def text(self) -> str:
        """Return the report in Markdown."""
        measured = [r for r in self.results if r.rounds or r.failed]
        heading = report.describe_run(self.machine, self.scale, measured)
        return f"{heading}\n\n{report.markdown(measured)}\n"

    def write(self) -> None:
        """Write the table, every round, and the plots."""
        measured = [r for r in self.results if r.rounds or r.failed]
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "table.md").write_text(self.text())
        rounds = report.as_json(measured, self.machine, self.scale)
        (self.directory / "rounds.json").write_text(rounds + "\n")
        (self.directory / "plots.svg").write_text(plot.svg(measured))


def progress(line: str) -> None:
    """Tell how far the run has come."""
    print(line, file=sys.stderr, flush=True)


def parse_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, Scale]:
    """Parse the command line; return the options and the scale."""
    full = Scale()
    parser = argument_parser(full)
    options = parser.parse_args(arguments)
    given = {f.name: getattr(options, f.name, None) for f in fields(Scale)}
    changes = {name: value for name, value in given.items() if value is not None}
    if "sizes" in changes:
        changes["sizes"] = tuple(sorted(changes["sizes"]))
    scale = replace(QUICK if options.quick else full, **changes)
    try:
        options.rows = catalogue.choose(catalogue.rows(scale), options.only)
    except ValueError as error:
        parser.error(str(error))
    return options, scale


def argument_parser(full: Scale) -> argparse.ArgumentParser:
    """Return the parser of the command line, whose help names the full scale."""
    parser = argparse.ArgumentParser(
        prog="versus-etcd",
        description="Compare kvd with etcd 3.4 under the same load.",
        argument_default=None,
    )
    names = ", ".join(row.name for row in catalogue.rows(full))
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK.rounds} rounds of {QUICK.seconds} s, and smaller stores: some minutes",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="ROW",
        default=[],
        help=f"only these rows, or all whose name begins so, or a group of rows: {names}",
    )
    _add_sizes(parser, full)
    parser.add_argument(
        "--dir",
        type=Path,
        default=servers.SCRATCH,
        help=f"directory for both servers' data, on a disk (default: {servers.SCRATCH})",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=OUT,
        help="directory for table.md, rounds.json and plots.svg (default: build/versus-etcd)",
    )
    return parser


def _add_sizes(parser: argparse.ArgumentParser, full: Scale) -> None:
    """Add the arguments of how much is measured."""
    parser.add_argument("--rounds", type=int, help=f"turns for each row (default: {full.rounds})")
    parser.add_argument("--seconds", type=int, help=f"of each load (default: {full.seconds})")
    parser.add_argument("--value-bytes", type=int, help=f"(default: {full.value_bytes})")
    parser.add_argument("--seed", type=int, help=f"of the first round (default: {full.seed})")
    parser.add_argument("--generator", choices=GENERATORS, help="(default: auto)")
    parser.add_argument("--million", type=int, metavar="KEYS", help="(default: 1000000)")
    parser.add_argument("--watchers", type=int, help=f"(default: {full.watchers})")
    parser.add_argument(
        "--sizes", type=int, nargs="+", metavar="KEYS", help="of stores (default: 1e4, 1e6, 1e7)"
    )
    parser.add_argument("--snapshot-count", type=int, help=f"(default: {full.snapshot_count})")
    parser.add_argument("--snapshot-s", type=int, help=f"of writing (default: {full.snapshot_s})")


def main() -> int:
    """Measure, write the files, print the table."""
    # Without this the servers would outlive a `kill` of the comparison.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options, scale = parse_arguments(sys.argv[1:])
    results = [Result(row) for row in options.rows]
    out = Written(options.out, results, scale)
    try:
        out.machine = report.describe_machine(servers.disk_directory(options.dir))
    except (LoadError, OSError) as error:
        progress(str(error))
        return 1
    fleet = Fleet(options.dir, scale, progress)
    if servers.why_no_etcd():
        progress(f"Only kvd is measured: {servers.why_no_etcd()}")
    try:
        run(results, fleet, out)
    finally:
        fleet.close()
    out.write()
    print(out.text())
    progress(f"table.md, rounds.json and plots.svg are in {options.out}")
    return 1 if any(result.failed for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())

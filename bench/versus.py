"""kvd against etcd 3.4 on this machine, in one run: `scripts/versus-etcd`.

Both servers run all the time, each on an empty data directory of its own on the same disk, and take
turns under the same load: a ratio is made of two measurements that follow each other, so that what
else the machine does meets both. Each run is verified; the first wrong answer ends everything with
exit status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from bench import servers
from bench.load import GENERATORS, Load, measure
from bench.wire import LoadError
from bench.workloads import WrongAnswer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.engine import Figures
    from bench.servers import Server

OURS, THEIRS = "kvd", "etcd"
QUICK_ROUNDS, QUICK_SECONDS = 3, 1


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: a workload, a number of connections, what each round measured."""

    workload: str
    connections: int
    title: str
    rounds: list[dict[str, Figures]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What `--only` calls it."""
        return f"{self.workload}-{self.connections}"

    def ratios(self) -> list[float]:
        """Return our rate divided by theirs, round by round."""
        return [r[OURS].rate / r[THEIRS].rate for r in self.rounds if THEIRS in r]

    def median(self, server: str, of: Callable[[Figures], float]) -> float | None:
        """Return the median of one figure over the rounds; None where that server did not run."""
        values = [of(figures[server]) for figures in self.rounds if server in figures]
        return median(values) if values else None


def rows() -> list[Row]:
    """Return all lines of the table, not measured yet."""
    return [
        *(Row("get", n, "GET") for n in (1, 16, 64, 256)),
        *(Row("put", n, "PUT") for n in (1, 16, 64, 256)),
        Row("cas", 64, "compare-and-swap"),
        Row("post", 64, "in-order POST"),
        Row("delete", 64, "DELETE and PUT by turns"),
        Row("refresh", 64, "TTL refresh"),
        Row("mixed", 64, "90 % GET, 10 % PUT"),
        *(Row("list", n, "listing 1,000 keys") for n in (1, 16)),
    ]


def run_rows(chosen: Sequence[Row], running: Sequence[Server], options: argparse.Namespace) -> None:
    """Fill the rows with measurements, turn by turn, and tell each round on stderr.

    Raises:
        LoadError, WrongAnswer, OSError: as `measured`.
    """
    for position, row in enumerate(chosen, 1):
        for turn in range(options.rounds):
            load = Load(
                workload=row.workload,
                connections=row.connections,
                seconds=options.seconds,
                value_bytes=options.value_bytes,
                seed=options.seed + turn,
                generator=options.generator,
            )
            figures = {server.name: measured(server, load) for server in running}
            row.rounds.append(figures)
            told = ", ".join(f"{name} {each.rate:,.0f}/s" for name, each in figures.items())
            ratio = f", ratio {row.ratios()[-1]:.2f}" if THEIRS in figures else ""
            progress(
                f"[{position}/{len(chosen)}] {row.title}, connections: {row.connections}, "
                f"round {turn + 1}/{options.rounds}: {told}{ratio}"
            )


def measured(server: Server, load: Load) -> Figures:
    """Measure one server once.

    Raises:
        LoadError, WrongAnswer, OSError: as `bench.load.measure`, or when any request was refused; a
            note on the error names the server and holds the end of its log.
    """
    try:
        figures = measure(server.address, load, server.cpu_s)
        figures.refuse_errors()
    except (LoadError, WrongAnswer, OSError) as error:
        error.add_note(f"while {server.name} was under {load}; its log ends with:\n{server.log()}")
        raise
    return figures


def markdown(chosen: Sequence[Row]) -> str:
    """Return the table of all measured rows."""
    lines = [
        "| work | connections | requests/s: kvd | etcd | ratio: median (min to max) "
        "| p50 / p99 in ms: kvd | etcd | server CPU in us per request: kvd | etcd |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in chosen:
        cells = [row.title, str(row.connections)]
        cells += [show(row.median(server, rate), ",.0f") for server in (OURS, THEIRS)]
        cells.append(show_ratios(row.ratios()))
        for server in (OURS, THEIRS):
            p50_ms = show(row.median(server, lambda figures: figures.p50_us / 1000), ".2f")
            p99_ms = show(row.median(server, lambda figures: figures.p99_us / 1000), ".2f")
            cells.append(f"{p50_ms} / {p99_ms}")
        cells += [show(row.median(server, server_cpu_us), ".1f") for server in (OURS, THEIRS)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rate(figures: Figures) -> float:
    """Return requests per second."""
    return figures.rate


def server_cpu_us(figures: Figures) -> float:
    """Return the server's CPU time per request in microseconds."""
    return figures.server_cpu_us


def show(figure: float | None, form: str) -> str:
    """Return a figure as text; a dash for what was not measured."""
    return "-" if figure is None else format(figure, form)


def show_ratios(ratios: Sequence[float]) -> str:
    """Return the median ratio and its range as text."""
    if not ratios:
        return "-"
    return f"**{median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"


def as_json(chosen: Sequence[Row], machine: dict[str, object], options: dict[str, object]) -> str:
    """Return everything measured, each round of each server."""
    return json.dumps(
        {
            "machine": machine,
            "options": options,
            "rows": [
                {
                    "workload": row.workload,
                    "connections": row.connections,
                    "ratios": row.ratios(),
                    "rounds": [
                        {
                            name: asdict(figures) | {"rate": figures.rate}
                            for name, figures in r.items()
                        }
                        for r in row.rounds
                    ],
                }
                for row in chosen
            ],
        },
        indent=2,
        default=str,
    )


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
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "etcd": servers.etcd_version() or None,
        "commit": commit.stdout.strip() or None,
        "file_system": servers.file_system(directory),
        "load_average": os.getloadavg()[0],
    }


def describe_run(
    machine: dict[str, object], options: argparse.Namespace, chosen: Sequence[Row]
) -> str:
    """Return the sentence that stands above the table."""
    generators = {figures.generator for row in chosen for r in row.rounds for figures in r.values()}
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, "
        f"{machine['file_system']}, Python {machine['python']}, etcd {machine['etcd']}; "
        f"rounds: {options.rounds} of {options.seconds} s, interleaved; medians; 1,000 keys; "
        f"values: {options.value_bytes} bytes; generator: {' and '.join(sorted(generators))}"
    )


def progress(line: str) -> None:
    """Tell how far the run has come."""
    print(line, file=sys.stderr, flush=True)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="versus-etcd", description="Compare kvd with etcd 3.4 under the same load."
    )
    names = [row.name for row in rows()]
    parser.add_argument("--rounds", type=int, default=5, help="turns for each row (default: 5)")
    parser.add_argument("--seconds", type=int, default=2, help="length of each run (default: 2)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK_ROUNDS} rounds of {QUICK_SECONDS} s, whatever else is said",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="ROW",
        default=[],
        help=f"only these rows, or all rows of a workload: {', '.join(names)}",
    )
    parser.add_argument("--generator", choices=GENERATORS, default="auto")
    parser.add_argument("--value-bytes", type=int, default=100, help="(default: 100)")
    parser.add_argument("--seed", type=int, default=1, help="of the first round (default: 1)")
    parser.add_argument(
        "--dir",
        type=Path,
        default=servers.SCRATCH,
        help=f"directory for both servers' data, on a disk (default: {servers.SCRATCH})",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round to FILE")
    options = parser.parse_args(arguments)
    unknown = set(options.only) - set(names) - {row.workload for row in rows()}
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if options.quick:
        options.rounds, options.seconds = QUICK_ROUNDS, QUICK_SECONDS
    return options


def main() -> int:
    """Measure, print the table, write the file."""
    # Without this the servers would outlive a `kill` of the comparison.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options = parse_arguments(sys.argv[1:])
    only = set(options.only)
    chosen = [row for row in rows() if not only or only & {row.name, row.workload}]
    try:
        machine = describe_machine(servers.disk_directory(options.dir))
        with ExitStack() as stack:
            running = [stack.enter_context(servers.kvd(options.dir))]
            if servers.why_no_etcd():
                progress(f"Only kvd is measured: {servers.why_no_etcd()}")
            else:
                running.append(stack.enter_context(servers.etcd(options.dir)))
            run_rows(chosen, running, options)
    except (LoadError, WrongAnswer, OSError) as error:
        progress("\n".join([str(error), *getattr(error, "__notes__", [])]))
        return 1
    print(f"{describe_run(machine, options, chosen)}\n\n{markdown(chosen)}")
    if options.json:
        options.json.write_text(as_json(chosen, machine, vars(options)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Replicas under load: kvd with `--replicate`, etcd's v2 API on three members, a kvd alone.

All run at once and are measured by turns, so that what else the machine does meets each of them.
Figures of clusters on one machine say little alone; their ratios do.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from bench.load import servers
from bench.load.__main__ import Load, measure
from bench.load.wire import LoadError
from bench.load.workloads import WrongAnswer
from bench.replicas import clusters

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.load.closed_loop import Figures
    from bench.load.servers import Server
    from bench.replicas.clusters import Cluster

ALONE = "kvd alone"


class Row(NamedTuple):
    """A workload at a place: `leader`, `follower`, or both; alone there is one place only."""

    title: str
    workload: str
    place: str
    connections: int


ROWS = (
    *(Row(f"PUT leader, connections: {n}", "put", "leader", n) for n in (1, 16, 64)),
    *(Row(f"PUT follower, connections: {n}", "put", "follower", n) for n in (1, 16, 64)),
    *(Row(f"quorum GET follower, connections: {n}", "quorum", "follower", n) for n in (1, 64)),
    Row("quorum GET leader, connections: 64", "quorum", "leader", 64),
    Row("GET follower, connections: 64", "get", "follower", 64),
)

Measured = dict[str, dict[str, list["Figures"]]]
"""Figures of each round, by row and system."""


def measured(
    found: Sequence[Cluster], alone: Server, options: argparse.Namespace, say: Callable[[str], None]
) -> Measured:
    """Measure all rows by turns.

    Raises:
        LoadError, WrongAnswer: see `bench.load`.
    """
    results: Measured = {}
    for turn in range(options.rounds):
        for row in ROWS:
            load = Load(
                workload=row.workload,
                connections=row.connections,
                seconds=options.seconds,
                seed=turn + 1,
            )
            for cluster in found:
                server = cluster.leader() if row.place == "leader" else cluster.follower()
                figures = measure(server.address, load, cluster.cpu_s)
                figures.refuse_errors()
                results.setdefault(row.title, {}).setdefault(cluster.name, []).append(figures)
            figures = measure(alone.address, load, alone.cpu_s)
            figures.refuse_errors()
            results.setdefault(row.title, {}).setdefault(ALONE, []).append(figures)
        say(f"round {turn + 1} of {options.rounds}")
    return results


def table(results: Measured, names: Sequence[str]) -> str:
    """Return medians of all rows, in Markdown; ratios are of the same round."""
    shown = [*names, ALONE]
    heads = [f"{name}: requests/s, p50 / p99 ms, CPU us" for name in shown]
    lines = ["| " + " | ".join(["work", *heads, "kvd / etcd", "kvd / alone"]) + " |"]
    lines.append("|---|" + "---:|" * (len(shown) + 2))
    for title, by_name in results.items():
        cells = [
            f"{median(one.rate for one in rounds):,.0f} · "
            f"{median(one.p50_us for one in rounds) / 1e3:.2f} / "
            f"{median(one.p99_us for one in rounds) / 1e3:.1f} · "
            f"{median(one.server_cpu_us for one in rounds):.0f}"
            for rounds in (by_name[name] for name in shown)
        ]
        ratios = [_ratio(by_name, "kvd", other) for other in ("etcd", ALONE)]
        lines.append("| " + " | ".join([title, *cells, *ratios]) + " |")
    return "\n".join(lines)


def _ratio(by_name: dict[str, list[Figures]], one: str, other: str) -> str:
    if one not in by_name or other not in by_name:
        return "-"
    pairs = zip(by_name[one], by_name[other], strict=True)
    return f"{median(a.rate / b.rate for a, b in pairs):.2f}"


def main() -> int:
    """Measure, and print the table; the exit status says whether to believe it."""
    parser = argparse.ArgumentParser(prog="python -m bench.replicas", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--dir", type=Path, default=servers.SCRATCH, help="on a disk")
    parser.add_argument("--only", choices=("kvd", "etcd"), help="one of the two clusters")
    parser.add_argument("--json", type=Path, help="where all figures go as well")
    options = parser.parse_args()
    makers = {"kvd": clusters.kvd, "etcd": clusters.etcd}
    names = [name for name in makers if options.only in (None, name)]
    try:
        scratch = Path(tempfile.mkdtemp(dir=servers.disk_directory(options.dir)))
        with ExitStack() as stack:
            stack.callback(scratch.rmdir)
            found = [stack.enter_context(makers[name](scratch)) for name in names]
            alone = stack.enter_context(servers.kvd(scratch))
            results = measured(found, alone, options, lambda text: print(text, file=sys.stderr))
    except (LoadError, WrongAnswer, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    print(table(results, names))
    if options.json:
        figures = {
            row: {name: [one.rate for one in rounds] for name, rounds in by_name.items()}
            for row, by_name in results.items()
        }
        options.json.write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

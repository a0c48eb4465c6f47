"""Ten thousand connections for minutes, half of them watchers: errors, memory over time, p99.

    .venv/bin/python -m bench.soak                          ten thousand for five minutes
    .venv/bin/python -m bench.soak --connections 1000 --seconds 30

The load comes from a process of its own (`bench.soak drive`), so that what it costs is
not taken from the server's interpreter, nor counted as its memory. It is an open load: so many
requests a second are due, however long the answers take, and their times count from when they
were due.

Half of the connections ask: nine reads of a key of their own, then a write of it, and each answer
must hold what was written last. Some of them publish instead: they write numbers that grow to a key
that others watch. The other half watches those keys: a third each long polls, recursive long polls
and streams. Every watcher must receive every number once, in order. Anything else is an error, and
ends the run with status 1.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.load import servers
from bench.load.wire import Client
from bench.soak.load import Load

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def drive(options: argparse.Namespace) -> int:
    """Be the process that makes the load."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    load = Load(options)
    load.connect()
    load.report(final=False)
    load.run()
    load.report(final=True)
    return 0


def soak(options: argparse.Namespace) -> int:
    """Run a server, load it, and print what came of it; 1 if there was any error."""
    scratch = servers.disk_directory(Path(options.dir))
    server = servers.kvd(scratch)
    server.start("--event-history-limit", "1000000", *options.flag)
    try:
        errors = watch_over(server, options)
    finally:
        server.stop()
    return 1 if errors else 0


def watch_over(server: servers.Server, options: argparse.Namespace) -> dict[str, int]:
    """Start the driver, and tell how it and the server's memory are; return the errors."""
    arguments = ["--host", servers.HOST, "--port", str(server.port)]
    for name in ("connections", "seconds", "rate", "seed"):
        arguments += [f"--{name}", str(getattr(options, name))]
    print(f"idle: {server.anonymous_bytes() / 1e6:.1f} MB")
    started = time.monotonic()
    memory: list[tuple[float, float]] = []
    with subprocess.Popen(
        [*servers.die_with_parent(), sys.executable, "-m", "bench.soak", "drive", *arguments],
        cwd=servers.CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
    ) as driver:
        said: dict = {}
        for said in lines(driver):
            at, used = time.monotonic() - started, server.anonymous_bytes() / 1e6
            memory.append((at, used))
            print(
                f"{at:6.0f} s  {used:7.1f} MB  {server.cpu_s():7.1f} s CPU  {said['open']} open  "
                f"{said['counts']}  {said['errors'] or 'no error'}"
            )
    for name, ms in said.get("ms", {}).items():
        figures = "  ".join(f"{key} {value:.1f} ms" for key, value in ms.items())
        print(f"{name:>6}: {said['counts'][name]:9} answered  {figures}")
    print(f"  disk: {syncs(server)}")
    warnings = [line for line in server.log().splitlines() if " WARNING " in line]
    print("\n".join(["warnings of the server:", *warnings] if warnings else ["no warning"]))
    errors: dict[str, int] = said.get("errors", {})
    if driver.returncode or not said.get("final"):
        errors = errors | {"the driver ended early": 1}
    loaded = [used for _, used in memory[1:]] or [0.0]
    print(f"memory under load: {loaded[0]:.1f} MB at first, {max(loaded):.1f} at most, "
          f"{loaded[-1]:.1f} at the end; errors: {errors or 'none'}")  # fmt: skip
    return errors


def syncs(server: servers.Server) -> str:
    """Return how long the server's syncs of its log took, as it has measured them."""
    with Client(server.address) as client:
        text = client.request("GET", "/metrics").body.decode()
    name = "kvd_wal_sync_duration_seconds"
    found = dict(re.findall(rf"^{name}_(sum|count) (\S+)$", text, re.MULTILINE))
    count, total_s = float(found["count"]), float(found["sum"])
    buckets = re.findall(rf'^{name}_bucket{{le="([^"]+)"}} (\S+)$', text, re.MULTILINE)
    p99 = next(bound for bound, below in buckets if float(below) >= 0.99 * count)
    return (
        f"{count:.0f} syncs of the log, {total_s / count * 1e3:.1f} ms on average, p99 <= {p99} s"
    )


def lines(driver: subprocess.Popen[str]) -> Iterator[dict]:
    """Yield what the driver says."""
    assert driver.stdout is not None
    for line in driver.stdout:
        yield json.loads(line)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("role", nargs="?", choices=("soak", "drive"), default="soak")
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--rate", type=float, default=2000.0, help="requests a second, in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dir", default="/var/tmp", help="where the server's data goes")
    parser.add_argument("--flag", action="append", default=[], help="a flag of kvd")
    parser.add_argument("--host", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> int:
    """Run the command."""
    options = parse(sys.argv[1:])
    return drive(options) if options.role == "drive" else soak(options)


if __name__ == "__main__":
    sys.exit(main())

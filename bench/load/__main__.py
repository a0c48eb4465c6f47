"""Load on one server: make keys, keep N connections busy, verify every key: `python -m bench.load`.

A run that does not verify has no figures: `measure` raises instead of returning them.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from itertools import compress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from bench.load import wrk
from bench.load.closed_loop import Samples, drive, percentile
from bench.load.keyspace import Keyspace
from bench.load.wire import LoadError
from bench.load.workloads import (
    WORKLOADS,
    Lane,
    WrongAnswer,
    clear,
    compare,
    preload_script,
    read_back_children_script,
    read_back_script,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.load.closed_loop import Figures
    from bench.load.wire import Address
    from bench.load.workloads import Expected, Script

SETUP_CONNECTIONS = 16
GENERATORS = ("auto", "wrk", "python")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A load: a workload, its number of connections, and its duration."""

    workload: str = "get"
    connections: int = 64
    seconds: float = 2.0
    keys: int = 1000
    value_bytes: int = 100
    seed: int = 1
    generator: str = "auto"

    def __post_init__(self) -> None:
        if self.keys < self.connections:
            raise LoadError(f"{self.keys} keys are too few for {self.connections} connections")

    @property
    def uses_wrk(self) -> bool:
        """Whether wrk runs this load: when told to, or where it is installed and can check it."""
        if self.generator != "auto":
            return self.generator == "wrk"
        return (
            wrk.is_installed()
            and self.workload in wrk.REQUESTS
            and self.keys >= wrk.KEYS_PER_CONNECTION * self.connections
        )


def measure(
    address: Address, load: Load, server_cpu_s: Callable[[], float] = lambda: 0.0
) -> Figures:
    """Run a load and return its figures; the keys it made are gone afterwards, unless it failed.

    `server_cpu_s` tells the CPU time that the server has used so far, in seconds.

    Raises:
        WrongAnswer: the server lost or changed something that it acknowledged.
        LoadError: a connection broke, the server stalled, or it could not be set up.
        OSError: the server could not be reached.
    """
    workload = WORKLOADS[load.workload]
    space = Keyspace.make(
        load.workload, keys=load.keys, value_bytes=load.value_bytes, seed=load.seed,
        directories=workload.directories,
    )  # fmt: skip
    clear(address, space)
    expected: Expected = {}
    if workload.preload is not None:
        tail = workload.preload
        lanes = lanes_over(space, SETUP_CONNECTIONS, expected)
        drive(address, [preload_script(lane, tail) for lane in lanes])
    cpu_s = server_cpu_s()
    if load.uses_wrk:
        figures, issued = wrk.run(
            address, load.workload, space, connections=load.connections, seconds=load.seconds
        )
    else:
        lanes = lanes_over(space, load.connections, expected)
        scripts = [workload.script(lane) for lane in lanes]
        figures, issued = drive_and_sample(address, scripts, load.seconds), None
    cpu_us = (server_cpu_s() - cpu_s) * 1e6 / max(figures.requests, 1)
    found = read_back(address, space, load.workload)
    if issued is None:
        compare(found, expected)
    else:
        wrk.check(load.workload, space, found, issued, connections=load.connections)
    clear(address, space)
    return replace(figures, server_cpu_us=cpu_us)


def drive_and_sample(address: Address, scripts: list[Script], seconds: float) -> Figures:
    """Drive scripts for some seconds; return their figures with the p99 of reads alone."""
    samples = Samples()
    figures = drive(address, scripts, seconds=seconds, samples=samples)
    reads = sorted(compress(samples.latency_ns, samples.is_get))
    return replace(figures, get_p99_us=percentile(reads, 99) / 1e3)


def lanes_over(space: Keyspace, lanes: int, expected: Expected) -> list[Lane]:
    """Share the keys out among connections."""
    return [Lane(space, lane, lanes, expected) for lane in range(lanes)]


def read_back(address: Address, space: Keyspace, workload: str) -> Expected:
    """Return what the server holds now: values by key, or posted values by number."""
    script = read_back_children_script if workload == "post" else read_back_script
    found: Expected = {}
    drive(address, [script(lane) for lane in lanes_over(space, SETUP_CONNECTIONS, found)])
    return found


def parse_arguments(arguments: Sequence[str]) -> tuple[Address, Load]:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    default = Load()
    parser.add_argument("--url", default="http://127.0.0.1:2379")
    parser.add_argument("--workload", choices=WORKLOADS, default=default.workload)
    parser.add_argument("--connections", type=int, default=default.connections)
    parser.add_argument("--seconds", type=float, default=default.seconds)
    parser.add_argument("--keys", type=int, default=default.keys)
    parser.add_argument("--value-bytes", type=int, default=default.value_bytes)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--generator", choices=GENERATORS, default=default.generator)
    options = vars(parser.parse_args(arguments))
    url = urlsplit(options.pop("url"))
    return (url.hostname or "127.0.0.1", url.port or 2379), Load(**options)


def main() -> int:
    """Run one load and write one line of figures; the exit status tells whether to believe them."""
    try:
        address, load = parse_arguments(sys.argv[1:])
        figures = measure(address, load)
        figures.refuse_errors()
    except (LoadError, WrongAnswer, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(
        f"{load.workload} {load.connections} connections, {figures.generator}: "
        f"{figures.rate:.0f} requests/s, p50 {figures.p50_us / 1000:.2f} ms, "
        f"p99 {figures.p99_us / 1000:.2f} ms, {figures.requests} requests in "
        f"{figures.seconds:.2f} s, none refused, all verified; "
        f"the generator spent {figures.generator_cpu_us:.1f} us of CPU per request\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

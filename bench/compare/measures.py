"""Measures of rows: one function for each kind of row makes its measure."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING

from bench.compare.rows import OURS, Measured
from bench.load.__main__ import Load, measure
from bench.load.probe import Probe, overlapping
from bench.load.readers import KEY, Readers
from bench.load.watchers import WatchersProcess
from bench.load.wire import Client, LoadError
from bench.load.workloads import WrongAnswer

if TYPE_CHECKING:
    from bench.compare.fleet import Fleet
    from bench.compare.preloaded import Standing
    from bench.compare.rows import Round
    from bench.load.servers import Server


Measure = Callable[["Fleet", int], "Round"]
"""Measures every server of a row once; the number is the round's, from 0."""

WRITERS = 64
FEW_WRITERS = 8
NO_SNAPSHOT = 1_000_000_000
PROBED = "/v2/keys/bench/probe"
VERIFIED_AFTER_RESTART = 2_000


def load_row(
    workload: str,
    connections: int,
    *,
    keys: int = 1000,
    value_bytes: int | None = None,
    generator: str | None = None,
) -> Measure:
    """Keep connections busy with a workload."""

    def measured(fleet: Fleet, turn: int) -> Round:
        scale = fleet.scale
        load = Load(
            workload=workload,
            connections=connections,
            seconds=scale.seconds,
            keys=keys,
            value_bytes=value_bytes or scale.value_bytes,
            seed=scale.seed + turn,
            generator=generator or scale.generator,
        )
        return {server.name: under(server, load) for server in fleet.plain()}

    return measured


def beside_readers(readers: int) -> Measure:
    """Let a few write while others read without a pause.

    The figures are those of the writes, and `reads_rate` of the reads meanwhile.
    """

    def measured(fleet: Fleet, turn: int) -> Round:
        scale = fleet.scale
        load = Load(
            workload="put",
            connections=FEW_WRITERS,
            seconds=scale.seconds,
            value_bytes=scale.value_bytes,
            seed=scale.seed + turn,
            generator="python",
        )
        found = {}
        for server in fleet.plain():
            with Client(server.address) as client:
                client.request("PUT", KEY, b"value=" + b"v" * scale.value_bytes)
            with Readers(server.address, readers) as reading:
                clock = ReadsClock(reading, server.cpu_s)
                found[server.name] = under(server, load, clock.server_cpu_s)
            figures = found[server.name].figures
            figures["reads_rate"] = clock.rate
            # For each request, a read or a write.
            requests = figures["requests"] + clock.reads
            figures["server_cpu_us"] *= figures["requests"] / max(requests, 1)
        return found

    return measured


class ReadsClock:
    """Counts the reads during a load, between its two queries of the server's CPU time.

    Attributes:
        reads: how many answers there were.
        seconds: in what time.
    """

    def __init__(self, readers: Readers, server_cpu_s: Callable[[], float]) -> None:
        self._readers = readers
        self._server_cpu_s = server_cpu_s
        self._began: tuple[int, float] | None = None
        self.reads = 0
        self.seconds = 0.0

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.reads / max(self.seconds, 1e-9)

    def server_cpu_s(self) -> float:
        """Return the server's CPU time; called before and after the load."""
        at = self._readers.answered(), time.monotonic()
        began = self._began = self._began or at
        self.reads, self.seconds = at[0] - began[0], at[1] - began[1]
        return self._server_cpu_s()


def under(server: Server, load: Load, server_cpu_s: Callable[[], float] | None = None) -> Measured:
    """Measure one server under a load once; `server_cpu_s` in place of the server's own.

    Raises:
        LoadError, WrongAnswer, OSError: as `bench.load.measure`, or when any request was refused; a
            note on the error names the server and holds the end of its log.
    """
    try:
        figures = measure(server.address, load, server_cpu_s or server.cpu_s)
        figures.refuse_errors()
    except (LoadError, WrongAnswer, OSError) as error:
        error.add_note(f"while {server.name} was under {load}; its log ends with:\n{server.log()}")
        raise
    return Measured.of(figures)


def anywhere(workload: str) -> Measure:
    """Read or write any of very many keys."""

    def measured(fleet: Fleet, turn: int) -> Round:
        return {s.server.name: at_random(fleet, s, workload, turn) for s in fleet.million()}

    return measured


def at_random(fleet: Fleet, standing: Standing, workload: str, turn: int) -> Measured:
    """Measure one server that holds very many keys once."""
    scale, server = fleet.scale, standing.server
    cpu_s = server.cpu_s()
    ended_s = []

    figures = standing.measure(
        workload,
        connections=WRITERS,
        seconds=scale.seconds,
        seed=scale.seed + turn,
        use_wrk=fleet.use_wrk,
        loaded=lambda: ended_s.append(server.cpu_s()),
    )
    figures.refuse_errors()
    measured = Measured.of(figures)
    measured.figures["server_cpu_us"] = (ended_s[0] - cpu_s) * 1e6 / max(figures.requests, 1)
    return measured


def costs(workload: str) -> Measure:
    """Compare what a request costs in stores of several sizes; kvd alone."""

    def measured(fleet: Fleet, turn: int) -> Round:
        figures: dict[str, float] = {}
        times = []
        for standing in fleet.sizes():
            keys = standing.space.keys
            found = at_random(fleet, standing, workload, turn).figures
            times.append(1e6 / found["rate"])
            figures[f"us_at_{keys}"] = times[-1]
            figures[f"cpu_us_at_{keys}"] = found["server_cpu_us"]
            figures[f"anonymous_mb_at_{keys}"] = standing.server.anonymous_bytes() / 1e6
        figures["cost"] = times[-1] / times[0]
        return {OURS: Measured(figures)}

    return measured


def tails(workload: str) -> Measure:
    """Compare how long the slowest of a hundred requests takes in a large store and in a small one.

    kvd alone. The index of a large store takes longer to write the same number of changes to.
    """

    def measured(fleet: Fleet, turn: int) -> Round:
        figures: dict[str, float] = {}
        stores = fleet.sizes()[:2]
        for standing in stores:
            found = at_random(fleet, standing, workload, turn).figures
            figures[f"p99_ms_at_{standing.space.keys}"] = found["p99_ms"]
            figures[f"p50_ms_at_{standing.space.keys}"] = found["p50_ms"]
        p99_ms = [figures[f"p99_ms_at_{standing.space.keys}"] for standing in stores]
        figures["tail"] = p99_ms[-1] / max(p99_ms[0], 1e-9)
        return {OURS: Measured(figures)}

    return measured


def watching(*, stream: bool) -> Measure:
    """Write a key that very many watch, on a server that has done nothing before."""

    def measured(fleet: Fleet, _turn: int) -> Round:
        found = {}
        for make in fleet.makers:
            with make(fleet.scratch) as server:
                found[server.name] = watched(server, fleet, stream=stream)
        return found

    return measured


def watched(server: Server, fleet: Fleet, *, stream: bool) -> Measured:
    """Measure memory and delays of one server with many watchers."""
    count = fleet.scale.watchers
    with Client(server.address) as client:
        client.request("PUT", PROBED, b"value=probed")
    before = server.anonymous_bytes()
    with WatchersProcess(server.address, count, stream=stream) as watchers:
        watchers.register()
        taken = server.anonymous_bytes() - before
        spans = []
        with Probe(server.address, PROBED) as probe:
            for _ in range(fleet.scale.events):
                spans.append(watchers.spans())
                watchers.register()
            reads = probe.stop()
    waits = [max(overlapping(reads, *span), default=0.0) for span in spans]
    return Measured(
        {
            "told_ms": median((end - start) / 1e6 for start, end in spans),
            "get_max_ms": max(waits),
            "watcher_bytes": taken / count,
        }
    )


def memory(fleet: Fleet, _turn: int) -> Round:
    """Tell what the servers needed when all keys had just been written."""
    fleet.million()
    return dict(fleet.loaded)


def restart(fleet: Fleet, turn: int) -> Round:
    """Kill both servers right after writes, and start them again; kvd also without its index."""
    found = {}
    for standing in fleet.million():
        server = standing.server
        at_random(fleet, standing, "put", turn)
        server.kill()
        figures = {"ready_s": server.start()}
        figures["rebuilt_s"] = figures["ready_s"]
        if server.name == OURS:
            server.kill()
            figures["rebuilt_s"] = server.start("--rebuild-index")
        standing.verify_some(VERIFIED_AFTER_RESTART)
        found[server.name] = Measured(figures)
    return found

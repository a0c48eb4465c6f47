"""Delays of requests while a snapshot is taken."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from bench.compare.measures import NO_SNAPSHOT, PROBED, WRITERS
from bench.compare.rows import OURS, Measured
from bench.load.closed_loop import Samples, percentile
from bench.load.probe import Probe, overlapping
from bench.load.wire import Client, LoadError

if TYPE_CHECKING:
    from types import TracebackType

    from bench.compare.fleet import Fleet
    from bench.compare.preloaded import Standing
    from bench.compare.rows import Round
    from bench.load.probe import Sample
    from bench.load.servers import Server


class Delays(NamedTuple):
    """p99 of the answers to a lonely reader and to the writers, in ms, in `spans` of time."""

    get_p99_ms: float
    put_p99_ms: float
    spans: int
    seconds: float


def snapshots(fleet: Fleet, turn: int) -> Round:
    """Write with many connections, without a snapshot and while some are taken."""
    found = {}
    for standing in fleet.million():
        quiet = delays(fleet, standing, turn, snapshot_count=NO_SNAPSHOT)
        busy = delays(fleet, standing, turn + 1000, snapshot_count=fleet.scale.snapshot_count)
        found[standing.server.name] = Measured(
            {
                "get_p99_ms": busy.get_p99_ms,
                "get_p99_without_ms": quiet.get_p99_ms,
                "put_p99_ms": busy.put_p99_ms,
                "put_p99_without_ms": quiet.put_p99_ms,
                "put_excess_ms": busy.put_p99_ms - quiet.put_p99_ms,
                "snapshots": busy.spans,
                "snapshots_s": busy.seconds,
            }
        )
    return found


def delays(fleet: Fleet, standing: Standing, turn: int, *, snapshot_count: int) -> Delays:
    """Restart a server with another number of records to a snapshot, and measure under writers.

    With `NO_SNAPSHOT` all answers count, else those that were waited for during a snapshot.
    """
    server, scale = standing.server, fleet.scale
    server.kill()
    server.start(f"--snapshot-count={snapshot_count}")
    with Client(server.address) as client:
        client.request("PUT", PROBED, b"value=probed")
    samples = Samples()
    with Probe(server.address, PROBED) as probe, SnapshotClock(server) as clock:
        began_ns = time.perf_counter_ns()
        figures = standing.measure(
            "put",
            connections=WRITERS,
            seconds=scale.snapshot_s,
            seed=scale.seed + turn,
            use_wrk=False,
            samples=samples,
            loaded=probe.pause,
        )
        ended_ns = began_ns + int(figures.seconds * 1e9)
        reads = probe.stop()
    figures.refuse_errors()
    spans = [(began_ns, ended_ns)]
    if snapshot_count != NO_SNAPSHOT:
        spans = clock.spans(began_ns, ended_ns)
        if not spans:
            raise LoadError(f"{server.name} took no snapshot in {scale.snapshot_s} s")
    return during(spans, reads, samples)


def during(spans: list[tuple[int, int]], reads: list[Sample], samples: Samples) -> Delays:
    """Return the delays of what was waited for in some spans of time."""
    gets, puts = [], []
    for start_ns, end_ns in spans:
        gets += overlapping(reads, start_ns, end_ns)
        for latency_ns, answered_ns in zip(samples.latency_ns, samples.answered_ns, strict=True):
            if answered_ns >= start_ns and answered_ns - latency_ns <= end_ns:
                puts.append(latency_ns / 1e6)
    seconds = sum(end_ns - start_ns for start_ns, end_ns in spans) / 1e9
    return Delays(percentile(sorted(gets), 99), percentile(sorted(puts), 99), len(spans), seconds)


class SnapshotClock:
    """Notes when a server takes snapshots: kvd by its temporary files, etcd by what it says."""

    POLL_S = 0.002

    def __init__(self, server: Server) -> None:
        self._server = server
        self._seen: list[tuple[int, bool]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> SnapshotClock:
        if self._server.name == OURS:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        if self._server.name == OURS:
            self._thread.join()

    def spans(self, start_ns: int, end_ns: int) -> list[tuple[int, int]]:
        """Return from when to when snapshots were taken, as far as it was between two times."""
        seen = self._seen if self._server.name == OURS else self._reported()
        spans, began_ns = [], None
        for at_ns, is_taken in [*seen, (end_ns, False)]:
            if is_taken and began_ns is None:
                began_ns = at_ns
            elif not is_taken and began_ns is not None:
                spans.append((max(began_ns, start_ns), min(at_ns, end_ns)))
                began_ns = None
        return [(start, end) for start, end in spans if start < end]

    def _reported(self) -> list[tuple[int, bool]]:
        begin, end = (b"start to snapshot", b"triggering snapshot"), (b"saved snapshot",)
        return [
            (at_ns, any(words in line for words in begin))
            for at_ns, line in self._server.lines
            if any(words in line for words in begin + end)
        ]

    def _watch(self) -> None:
        files = [self._server.data / "snap" / name for name in ("scratch.tmp", "snapshot.tmp")]
        was_taken = False
        while not self._end.wait(self.POLL_S):
            is_taken = any(path.exists() for path in files)
            if is_taken != was_taken:
                self._seen.append((time.perf_counter_ns(), is_taken))
                was_taken = is_taken

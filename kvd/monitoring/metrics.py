"""`/metrics`: counters and gauges of the parts of a server, in Prometheus' text format.

The parts of the server count in plain numbers, and the collectors read these for each scrape: a
request pays for an addition, a batch for a few observations. What only the disk knows is measured
first (kvd/monitoring/disk_usage.py).

The names that begin with `etcd_` are etcd's (kvd/monitoring/etcd_metrics.py), `kvd_` kvd's own,
`process_` and `python_` those of the client library.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvd import __version__, logs
from kvd.monitoring.disk_usage import DiskMeter, measure
from kvd.monitoring.etcd_metrics import EtcdCollector
from kvd.monitoring.health import Health
from kvd.monitoring.prometheus import Parts, counter, gauge, histogram, labelled
from kvd.monitoring.replica_metrics import ReplicaCollector


class Metrics:
    """Registry of `/metrics`: the process from the start, the parts of a server once they exist."""

    def __init__(self, health: Health) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._registry.register(HealthCollector(health))
        self._registry.register(LogCollector())
        self._disk: DiskMeter | None = None

    def add(self, parts: Parts) -> None:
        """Add the parts of a server that is about to serve."""
        self._disk = DiskMeter(partial(measure, parts.store))
        self._registry.register(EtcdCollector(parts, self._disk))
        self._registry.register(KvdCollector(parts, self._disk))
        if parts.standing.engine is not None:
            self._registry.register(ReplicaCollector(parts.standing))

    async def render(self) -> bytes:
        """Return all metrics in Prometheus' text format.

        Raises:
            OSError: the disk does not say how much of it is used.
        """
        if self._disk is not None:
            await self._disk.refresh()
        return generate_latest(self._registry)


class HealthCollector(Collector):
    """Health checks."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def collect(self) -> Iterator[Metric]:
        """Yield a gauge of each check."""
        yield labelled(
            GaugeMetricFamily("kvd_check", "Whether a check of /readyz passes", labels=["check"]),
            {name: int(not problem) for name, problem in self._health.checks()},
        )


class LogCollector(Collector):
    """Outputs of the log."""

    def collect(self) -> Iterator[Metric]:
        """Yield the count of dropped lines of each output."""
        yield labelled(
            CounterMetricFamily(
                "kvd_log_lines_dropped", "Log lines that an output did not get", labels=["output"]
            ),
            logs.dropped(),
        )


class KvdCollector(Collector):
    """The names of kvd."""

    def __init__(self, parts: Parts, disk: DiskMeter) -> None:
        self._parts = parts
        self._disk = disk

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics named `kvd_`."""
        yield labelled(
            GaugeMetricFamily("kvd_build_info", "What runs", labels=["version", "python"]),
            {(__version__, sys.version.partition(" ")[0]): 1},
        )
        yield from self._state()
        yield from self._writing()
        yield from self._files()
        yield from self._clients()

    def _state(self) -> Iterable[Metric]:
        parts = self._parts
        applied = parts.store.applied
        yield gauge("kvd_etcd_index", "X-Etcd-Index", applied.index)
        yield gauge("kvd_raft_index", "X-Raft-Index: log records", applied.pos)
        yield gauge("kvd_raft_term", "X-Raft-Term: starts", applied.term)
        yield gauge(
            "kvd_history_oldest_index", "First index a watch can ask for", applied.oldest_event
        )
        yield labelled(
            GaugeMetricFamily(
                "kvd_recovery_seconds", "How long the start took to recover", labels=["source"]
            ),
            {parts.store.recovery.source.partition(" ")[0]: parts.recovery_s},
        )
        yield gauge("kvd_recovery_records", "Log records replayed", parts.store.recovery.records)
        yield gauge(
            "kvd_loop_stall_seconds", "How late the last timer of a second ran", parts.stall_s()
        )

    def _writing(self) -> Iterable[Metric]:
        parts = self._parts
        committer = parts.committer
        yield histogram("kvd_wal_sync_duration_seconds", "Syncs of the log", parts.syncs)
        yield histogram(
            "kvd_index_commit_duration_seconds", "Commits of the index", committer.flusher.flush_s
        )
        yield histogram(
            "kvd_batch_duration_seconds",
            "Batches, from the first command to the answers",
            committer.batch_s,
        )
        yield histogram("kvd_batch_records", "Log records by batch", committer.batch_records)
        yield counter(
            "kvd_slow_syncs", "Syncs of more than a second", parts.store.wal.writer.slow_syncs.count
        )
        yield counter(
            "kvd_slow_requests",
            "Requests answered late",
            committer.responses.slow + parts.keys.reads.large.slow,
        )

    def _files(self) -> Iterable[Metric]:
        parts, disk = self._parts, self._disk.last
        yield gauge("kvd_log_bytes", "What the log takes on the disk", disk.log)
        yield gauge("kvd_snapshot_bytes", "What the snapshots take", disk.snapshots)
        yield gauge("kvd_index_bytes", "What the index takes", disk.index_allocated)
        yield gauge("kvd_quarantine_bytes", "What recovery cut off", disk.quarantine)
        yield gauge("kvd_disk_free_bytes", "Free space of the file system", disk.free)
        yield counter(
            "kvd_log_appended_bytes", "Bytes appended since the start", parts.store.wal.log_bytes
        )
        yield histogram("kvd_snapshot_duration_seconds", "Snapshots", parts.housekeeping.snapshot_s)
        yield counter(
            "kvd_snapshots_failed",
            "Snapshots that could not be made",
            parts.housekeeping.snapshots_failed,
        )
        if disk.snapshot_ns is not None:
            now_ns = parts.clock.now_ns() + parts.store.applied.clock_offset_ns
            age_s = max(0.0, (now_ns - disk.snapshot_ns) / 1e9)
            yield gauge("kvd_snapshot_age_seconds", "Since the last snapshot", age_s)

    def _clients(self) -> Iterable[Metric]:
        http, hub = self._parts.http, self._parts.hub
        yield gauge("kvd_connections", "Open connections", len(http.connections))
        yield gauge("kvd_connections_max", "Their limit", http.limits.connections_max)
        yield counter("kvd_connections_accepted", "Connections there have been", http.accepted)
        yield counter(
            "kvd_connections_idle_closed", "Closed after --idle-timeout-s", http.idle_closed
        )
        yield counter(
            "kvd_connections_displaced",
            "Closed for a new one, with --max-connections open",
            http.crowd.displaced,
        )
        memory = http.memory
        yield gauge("kvd_buffered_request_bytes", "Unfinished requests", memory.requests)
        yield gauge("kvd_buffered_answer_bytes", "Unread large answers", memory.answers)
        yield gauge("kvd_buffered_bytes_max", "The limit of the two together", memory.bytes_max)
        yield gauge("kvd_watchers", "Open watches, replaying or live", hub.waiting)
        yield gauge("kvd_watch_backlog_bytes", "Events that wait to be sent", hub.backlog_bytes)
        yield labelled(
            CounterMetricFamily(
                "kvd_rejected_requests", "What was refused at a limit", labels=["reason"]
            ),
            _summed(http.rejected, self._parts.keys.responder.rejected),
        )


def _summed(*counts: Mapping[str, int]) -> dict[str, int]:
    reasons = dict.fromkeys(reason for each in counts for reason in each)
    return {reason: sum(each.get(reason, 0) for each in counts) for reason in reasons}

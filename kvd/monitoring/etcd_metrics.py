"""Metrics of etcd 3.4 that apply to a member with the v2 API.

Names, labels and bounds of buckets are etcd's, so that dashboards and alerts made for it work. The
metrics of gRPC and of heartbeats are there, too, with what is true here: zero.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    UnknownMetricFamily,
)
from prometheus_client.registry import Collector

from kvd.core.standing import Role
from kvd.handlers.info import ETCD_CLUSTER_VERSION, ETCD_SERVER_VERSION
from kvd.monitoring.disk_usage import DiskMeter
from kvd.monitoring.prometheus import Parts, counter, gauge, histogram, labelled


class EtcdCollector(Collector):
    """The names of etcd."""

    def __init__(self, parts: Parts, disk: DiskMeter) -> None:
        self._parts = parts
        self._disk_meter = disk

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics named `etcd_` and `os_`."""
        yield from self._member()
        yield from self._proposals()
        yield from self._operations()
        yield from self._requests()
        yield from self._disk()
        yield from self._sizes()
        yield from self._process()

    def _member(self) -> Iterable[Metric]:
        parts = self._parts
        for name, help_text, label, value in (
            ("etcd_server_version", "The API level served", "server_version", ETCD_SERVER_VERSION),
            (
                "etcd_cluster_version",
                "The same, as a cluster's",
                "cluster_version",
                ETCD_CLUSTER_VERSION.rpartition(".")[0],
            ),
            (
                "etcd_server_id",
                "The member's ID",
                "server_id",
                f"{parts.store.identity.member_id:x}",
            ),
        ):
            yield labelled(GaugeMetricFamily(name, help_text, labels=[label]), {value: 1})
        standing = parts.standing
        has_leader, leads = standing.leader is not None, standing.role is Role.LEADING
        yield gauge("etcd_server_has_leader", "Whether there is a leader", int(has_leader))
        yield gauge("etcd_server_is_leader", "Whether this member is the leader", int(leads))
        yield gauge("etcd_server_is_learner", "Whether this member only learns", 0)
        yield counter("etcd_server_leader_changes_seen", "Elections seen", standing.leader_changes)
        yield counter("etcd_server_heartbeat_send_failures", "There is nobody to send to", 0)
        yield UnknownMetricFamily(
            "etcd_server_health_success", "Times that /health said true", parts.health.successes
        )
        yield UnknownMetricFamily(
            "etcd_server_health_failures", "Times that /health said false", parts.health.failures
        )

    def _proposals(self) -> Iterable[Metric]:
        committer, applied = self._parts.committer, self._parts.store.applied
        for name in ("committed", "applied"):
            yield gauge(f"etcd_server_proposals_{name}_total", f"Log records {name}", applied.pos)
        yield gauge("etcd_server_proposals_pending", "Commands queued", committer.waiting)
        yield counter(
            "etcd_server_proposals_failed",
            "Batches that could not be logged",
            committer.responses.aborted,
        )
        yield counter("etcd_server_slow_apply", "Commands answered late", committer.responses.slow)
        yield counter(
            "etcd_server_slow_read_indexes",
            "Listings answered late",
            self._parts.keys.reads.large.slow,
        )
        yield counter("etcd_server_read_indexes_failed", "Reads ask nobody, so none fails", 0)

    def _operations(self) -> Iterable[Metric]:
        stats, hub = self._parts.stats, self._parts.hub
        counts = {name: sum(both) for name, both in stats.operations().items()}
        reads = counts.pop("gets")
        counts["set"] = counts.pop("sets")
        yield labelled(
            CounterMetricFamily(
                "etcd_debugging_store_writes", "Writes, by kind", labels=["action"]
            ),
            counts,
        )
        yield labelled(
            CounterMetricFamily("etcd_debugging_store_reads", "Reads, by kind", labels=["action"]),
            {"get": reads - stats.recursive_reads, "getRecursive": stats.recursive_reads},
        )
        yield counter("etcd_debugging_store_expires", "Keys expired", stats.expirations)
        yield counter("etcd_debugging_store_watch_requests", "Watches asked for", hub.requests)
        yield gauge("etcd_debugging_store_watchers", "Watchers registered", hub.count)

    def _requests(self) -> Iterable[Metric]:
        stats = self._parts.stats
        method = ["method"]
        yield labelled(
            CounterMetricFamily(
                "etcd_http_received", "Operations on keys asked for, but watches", labels=method
            ),
            stats.received(),
        )
        yield labelled(
            CounterMetricFamily(
                "etcd_http_failed", "Operations on keys that failed", labels=["method", "code"]
            ),
            {(name, str(status)): count for (name, status), count in stats.failed.items()},
        )
        durations = HistogramMetricFamily(
            "etcd_http_successful_duration_seconds",
            "How long successful operations on keys took: writes at most, by their batch; a read "
            "that is answered at once counts as the shortest",
            labels=method,
        )
        buckets = stats.listings_s.cumulative(0.0005, 2.048)
        at_once = stats.successes("GET") - buckets[-1][1]
        buckets = [(bound, count + at_once) for bound, count in buckets]
        durations.add_metric(["GET"], buckets, stats.listings_s.total)
        for name, observed in stats.writes_s.items():
            durations.add_metric([name], observed.cumulative(0.0005, 2.048), observed.total)
        yield durations

    def _disk(self) -> Iterable[Metric]:
        parts = self._parts
        yield histogram(
            "etcd_disk_wal_fsync_duration_seconds",
            "Syncs of the log",
            parts.syncs,
            lowest=0.001,
        )
        yield histogram(
            "etcd_disk_backend_commit_duration_seconds",
            "Commits of the index",
            parts.committer.flusher.flush_s,
            lowest=0.001,
        )
        yield gauge(
            "etcd_disk_wal_write_bytes_total",
            "Bytes appended to the log",
            parts.store.wal.log_bytes,
        )
        yield histogram(
            "etcd_debugging_snap_save_total_duration_seconds",
            "Snapshots",
            parts.housekeeping.snapshot_s,
            highest=8.192,
        )

    def _sizes(self) -> Iterable[Metric]:
        for name in (
            "etcd_mvcc_db_total_size_in_bytes",
            "etcd_debugging_mvcc_db_total_size_in_bytes",
        ):
            yield gauge(name, "Size of the index's file", self._disk_meter.last.index_length)
        yield gauge(
            "etcd_mvcc_db_total_size_in_use_in_bytes",
            "What the index uses of its file",
            self._parts.store.index.used_bytes,
        )

    def _process(self) -> Iterable[Metric]:
        for name, way in (("received", "from"), ("sent", "to")):
            yield counter(
                f"etcd_network_client_grpc_{name}_bytes", f"Bytes {way} clients of gRPC: none", 0
            )
        yield gauge(
            "os_fd_limit", "Limit of open files", resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        )
        yield gauge("os_fd_used", "Open files", sum(1 for _ in os.scandir("/proc/self/fd")) - 1)

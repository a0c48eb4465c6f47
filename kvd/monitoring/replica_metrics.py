"""Metrics of a replica; a server alone has none of them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvd.core.standing import Role, Standing
from kvd.monitoring.prometheus import counter, gauge, histogram, labelled


class ReplicaCollector(Collector):
    """Figures of a replica and of its engine."""

    def __init__(self, standing: Standing) -> None:
        self._standing = standing

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics named `kvd_replica_` and `kvd_engine_`."""
        standing, engine = self._standing, self._standing.engine
        assert engine is not None, "a replica has an engine"
        yield labelled(
            GaugeMetricFamily("kvd_replica_state", "1 for the present state", labels=["state"]),
            {str(role): int(role is standing.role) for role in Role},
        )
        yield gauge(
            "kvd_replica_behind_frames", "Frames that are not applied yet", standing.behind_frames
        )
        yield gauge(
            "kvd_replica_behind_seconds", "How long there have been such frames", standing.behind_s
        )
        yield counter(
            "kvd_replica_received_frames", "Frames of other leaders", standing.received.frames
        )
        yield counter("kvd_replica_sent_frames", "Frames sent as the leader", standing.sent.frames)
        yield histogram(
            "kvd_engine_append_seconds", "Appends to the log in the engine", engine.append_s
        )
        yield gauge("kvd_engine_silent_seconds", "Since its last answer", engine.silent_s)
        yield gauge("kvd_engine_bytes", "Size of the engine's file", engine.used_bytes)
        yield gauge("kvd_engine_quota_bytes", "Its limit", engine.quota_bytes)

"""Parts of a server that are measured, and the forms of their metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from kvd.core.background.housekeeping import Housekeeping
from kvd.core.clock import Clock
from kvd.core.committer import Committer
from kvd.core.histogram import Histogram
from kvd.core.standing import Standing
from kvd.core.stats import StoreStats
from kvd.core.watch.hub import Hub
from kvd.handlers.keys.key_space import KeySpace
from kvd.http.server import HttpServer
from kvd.monitoring.health import Health
from kvd.storage.store import Store


class Parts(NamedTuple):
    """The measured parts of one server."""

    store: Store
    committer: Committer
    hub: Hub
    keys: KeySpace
    stats: StoreStats
    http: HttpServer
    housekeeping: Housekeeping
    health: Health
    clock: Clock
    standing: Standing
    syncs: Histogram
    recovery_s: float
    stall_s: Callable[[], float]


def gauge(name: str, help_text: str, value: float) -> Metric:
    """Return a gauge without labels."""
    return GaugeMetricFamily(name, help_text, value)


def counter(name: str, help_text: str, value: float) -> Metric:
    """Return a counter without labels; its name ends in `_total`."""
    return CounterMetricFamily(name, help_text, value)


def labelled(
    family: CounterMetricFamily | GaugeMetricFamily,
    values: Mapping[str, float] | Mapping[tuple[str, str], float],
) -> Metric:
    """Return a family, made with the names of its labels, with a value for each of these."""
    for labels, value in values.items():
        family.add_metric([labels] if isinstance(labels, str) else labels, value)
    return family


def histogram(
    name: str,
    help_text: str,
    observed: Histogram,
    *,
    lowest: float = 0.0,
    highest: float = float("inf"),
) -> Metric:
    """Return a histogram without labels."""
    buckets = observed.cumulative(lowest, highest)
    return HistogramMetricFamily(name, help_text, buckets, observed.total)

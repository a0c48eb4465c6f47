"""Monitoring of one server: its health and its metrics, and listeners of their own for the two.

It serves from before the store is recovered until the store is closed, so that a probe in between
learns why the server is not ready.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from kvd.core.histogram import Noted
from kvd.handlers.info import make_application
from kvd.http.connection import Connection
from kvd.http.server import HttpServer, Limits
from kvd.limits.memory_budget import MemoryBudget
from kvd.monitoring.health import Health
from kvd.monitoring.metrics import Metrics
from kvd.monitoring.prometheus import Parts
from kvd.monitoring.routes import MONITORING, MonitoringRouter
from kvd.monitoring.samples import Samples
from kvd.net.acceptor import Acceptor
from kvd.net.listeners import Listener
from kvd.net.tls import Tls

# Probes connect now and then, or keep a connection: a few connections are enough.
_LIMITS = Limits(
    header_bytes_max=16 << 10,
    header_timeout_s=10.0,
    body_timeout_s=10.0,
    idle_timeout_s=300.0,
    connections_max=64,
)
_BUFFERED_BYTES_MAX = 1 << 20
_TICK_S = 1.0


class Monitoring:
    """Health and metrics.

    Attributes:
        syncs: How long the syncs of the log took.
        stall_s: By how much the loop was late when it was last asked to be punctual, which it is
            every second.
        samples: The last figures, for the page `/ui`; None until they are taken.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.health = Health()
        self.metrics = Metrics(self.health)
        self.syncs = Noted()
        self.stall_s = 0.0
        self.samples: Samples | None = None
        self._loop = loop
        self._acceptors: dict[Listener, Acceptor] = {}
        application = make_application(MONITORING, **self.settings)
        self._http = HttpServer(
            MonitoringRouter(application), _LIMITS, loop, MemoryBudget(_BUFFERED_BYTES_MAX)
        )
        self._connect: Callable[[], Connection] = partial(Connection, self._http)
        self._ticker = loop.call_soon(self._tick, loop.time())

    @property
    def settings(self) -> Mapping[str, object]:
        """Settings of the routes in kvd/monitoring/routes.py."""
        return {
            "health": self.health,
            "metrics": self.metrics,
            "samples": lambda: self.samples,
        }

    async def listen(self, listeners: Iterable[Listener], tls: Tls | None) -> None:
        """Serve those of the listeners that can be served now: with TLS, or without.

        Raises:
            AddressUnavailable: the system refuses.
        """
        for listener in listeners:
            if listener not in self._acceptors and (tls is not None or not listener.speaks_tls):
                acceptor = Acceptor(listener, self._http, self._connect, tls)
                await acceptor.start("serving metrics")
                self._acceptors[listener] = acceptor

    def add(self, parts: Parts, *, with_samples: bool) -> None:
        """The store is recovered, and is to be served by these parts."""
        self.metrics.add(parts)
        self.health.set_serving(parts.committer, parts.housekeeping)
        if parts.standing.engine is not None:
            self.health.set_standing(parts.standing)
        if with_samples:
            self.samples = Samples(parts)

    def stop(self) -> None:
        """Close all connections and listeners."""
        self._ticker.cancel()
        if self.samples is not None:
            self.samples.stop()
        for acceptor in self._acceptors.values():
            acceptor.close()
        for connection in list(self._http.connections):
            connection.abort()

    def _tick(self, due: float) -> None:
        now = self._loop.time()
        self.stall_s = max(0.0, now - due)
        # Before anything that could fail: there is a next tick in any case.
        self._ticker = self._loop.call_at(now + _TICK_S, self._tick, now + _TICK_S)
        self._http.tick()
        if self.samples is not None:
            self.samples.tick()

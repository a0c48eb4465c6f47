"""A server process in order: start, reload, stop, failure. Its parts are made in `kvd.wiring`.

KvdServer is an object with `start` and `stop`, so it can run inside a test. Start: bind the
addresses (a busy port is found before anything is logged), open the store, log the term, expire
what is overdue, listen. Stop: close the listeners, answer pending requests, end the watches, sync,
close.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvd import wiring
from kvd.config.load import Config
from kvd.config.urls import ListenUrl
from kvd.core.clock import Clock
from kvd.core.ticker import Ticker
from kvd.monitoring.prometheus import Parts
from kvd.monitoring.service import Monitoring
from kvd.net.acceptor import Acceptor
from kvd.net.fd_limit import Files, divide, raise_limit
from kvd.net.listeners import Listener, bind, handed_over, own_hosts
from kvd.net.systemd import Handed
from kvd.net.tls import Tls
from kvd.process import FreedMemory
from kvd.storage.errors import DirectoryLost
from kvd.storage.format.identity import NewIds
from kvd.storage.index.errors import BROKEN, IndexRefused
from kvd.storage.store import Store
from kvd.v2.documents.members import ids_of
from kvd.wiring import ServerParts

log = logging.getLogger(__name__)

EXIT_UNAVAILABLE = 69
EXIT_BUG = 70
EXIT_IO = 74
EXIT_TRY_AGAIN = 75

_FLUSH_S = 0.5
_LEAVE_S = 0.1
_COLLECT_AFTER = 50_000
_TICK_S = 1.0
# A crash sooner than that after a step of the clock, and its keys are off by the step.
_CLOCK_S = 0.25


class KvdServer:
    """One store, served.

    Sockets that were handed over are served in place of the addresses that the flags name. Before
    the index is opened, `watch_crashes` gets its directory, if there is such a function.
    """

    def __init__(
        self,
        config: Config,
        handed: Sequence[Handed] = (),
        watch_crashes: Callable[[Path], None] | None = None,
    ) -> None:
        self._config = config
        self._watch_crashes = watch_crashes
        self._handed = handed
        self.urls: list[str] = []
        """URLs that are served, with the ports that the system chose; empty before."""
        self._store: Store
        self._clock: Clock
        self._parts: ServerParts
        self._monitoring: Monitoring
        self._acceptors: list[Acceptor] = []
        self._tls: Tls | None = None
        self._tickers: list[Ticker] = []

    # Start

    async def start(self) -> None:
        """Recover the store and serve it.

        Raises:
            AddressUnavailable: an address is taken, or not this machine's.
            TlsUnusable: a certificate or a key cannot be served.
            StorageError: the data directory cannot be used, or is damaged.
        """
        config = self._config
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        files = divide(raise_limit(), config.max_connections)
        if self._handed:
            listeners = handed_over(self._handed, config.listen)
        else:
            listeners = bind(config.listen)
        listening = [url for listener in listeners for url in listener.urls]
        urls = list(map(str, listening))
        await self._recover(loop, listeners, urls, started)
        loop.set_exception_handler(self._uncaught)
        try:
            self._parts = wiring.build(self._context(loop, files, listening))
            self._monitoring.add(self._measured(recovery_s=time.monotonic() - started))
            await self._parts.committer.settle()
        except BROKEN as damage:
            self._fail(damage)
        self._begin(loop)
        for listener in listeners:
            acceptor = Acceptor(listener, self._parts.http, self._parts.connect, self._tls)
            await acceptor.start("listening")
            self._acceptors.append(acceptor)
        self.urls = urls

    async def _recover(
        self,
        loop: asyncio.AbstractEventLoop,
        listeners: Sequence[Listener],
        urls: Sequence[str],
        started: float,
    ) -> None:
        """Open the store, with monitoring served meanwhile; on failure close the listeners."""
        config = self._config
        monitoring = self._monitoring = Monitoring(loop)
        metrics: list[Listener] = []
        try:
            metrics = bind(config.listen_metrics)
            # What is missing is found before the store is opened; what is made is kept in it.
            self._load_tls(urls, self_signed=False)
            await monitoring.listen(metrics, self._tls)
            # On a thread, so that the loop serves health checks meanwhile.
            await asyncio.to_thread(self._open)
            self._load_tls(urls, self_signed=True)
            await monitoring.listen(metrics, self._tls)
        except BaseException:
            monitoring.stop()
            for listener in (*listeners, *metrics):
                listener.close()
            raise
        recovery = self._store.recovery
        log.info(
            "recovered index %d from %s in %s, %d log records replayed, in %.2f s",
            self._store.applied.index,
            recovery.source,
            config.data_dir,
            recovery.records,
            time.monotonic() - started,
        )

    def _load_tls(self, urls: Sequence[str], *, self_signed: bool) -> None:
        config = self._config
        if config.tls is not None and config.tls.is_self_signed == self_signed:
            hosts = own_hosts([*config.advertise, *urls])
            self._tls = Tls(config.tls, config.data_dir / "tls", hosts)

    def _open(self) -> None:
        config = self._config
        store = self._store = Store.open(
            config.data_dir,
            segment_bytes_max=config.wal_segment_bytes,
            snapshots_kept=config.snapshots_kept or sys.maxsize,
            rebuild_index=config.rebuild_index,
            allow_network_fs=config.allow_network_fs,
            new_ids=_new_ids(config),
            must_exist=config.must_exist,
            wal_dir=config.wal_dir,
            watch_crashes=self._watch_crashes,
        )
        self._clock = Clock(store.applied.time_ns, store.applied.clock_offset_ns)
        try:
            store.start_term(
                self._clock.now_ns(), config.event_history_limit, config.event_history_bytes
            )
        except BROKEN as damage:
            self._fail(damage)
        with suppress(OSError):  # without room there is nothing to keep free
            store.index.reserve()

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the background tasks."""
        self._parts.index_check.start()
        # All objects that exist now stay: the collector must not traverse them again.
        gc.freeze()
        # A request makes hardly any cycles: collecting as often as Python does cost 7 % (measured).
        gc.set_threshold(_COLLECT_AFTER)
        look_at_clock = self._parts.committer.look_at_clock
        self._tickers = [
            Ticker(loop, _TICK_S, self._ticked(), self._fail),
            Ticker(loop, _CLOCK_S, {"clock": look_at_clock}, self._fail),
        ]

    def _context(
        self, loop: asyncio.AbstractEventLoop, files: Files, listening: Sequence[ListenUrl]
    ) -> wiring.Context:
        return wiring.Context(
            config=self._config,
            loop=loop,
            store=self._store,
            clock=self._clock,
            files=files,
            listening=listening,
            settings=self._monitoring.settings,
            fail=self._fail,
        )

    def _measured(self, *, recovery_s: float) -> Parts:
        parts, monitoring = self._parts, self._monitoring
        return Parts(
            store=self._store,
            committer=parts.committer,
            hub=parts.hub,
            keys=parts.keys,
            stats=parts.stats,
            http=parts.http,
            housekeeping=parts.housekeeping,
            health=monitoring.health,
            clock=self._clock,
            syncs=monitoring.syncs,
            recovery_s=recovery_s,
            stall_s=lambda: monitoring.stall_s,
        )

    def _ticked(self) -> dict[str, Callable[[], object]]:
        """Return the tasks of each second, by name."""
        parts = self._parts
        return {
            "connections": parts.http.tick,
            "key space": parts.keys.tick,
            "committer": parts.committer.tick,
            "housekeeping": parts.housekeeping.tick,
            "figures": self._monitoring.syncs.fold,
            # Connections that came in a crowd leave as much behind as writes do.
            "freed memory": FreedMemory(lambda: self._store.applied.pos + parts.http.accepted).tick,
        }

    # Reload

    def reload(self) -> None:
        """Reload certificates and keys for new connections."""
        if self._tls is None:
            log.info("no certificates to reload")
        else:
            self._tls.reload()

    # Stop

    async def stop(self) -> None:
        """Answer pending requests, end every watch, and close the store cleanly."""
        parts = self._parts
        self._monitoring.health.set_stopping()
        parts.http.stop()
        for acceptor in self._acceptors:
            await acceptor.finish()
        await self._answer_all()
        await parts.http.finish()
        parts.committer.look_at_clock()  # the next start goes by what it finds
        await self._answer_all()
        await self._flush()
        parts.committer.stop()
        for ticker in self._tickers:
            ticker.stop()
        parts.housekeeping.stop()
        parts.index_check.stop()
        parts.credentials.close()
        parts.keys.watches.close()
        parts.sync.stop()
        parts.log_writer.close()
        self._store.close()
        self._monitoring.stop()
        log.info("stopped at index %d", self._store.applied.index)

    async def _answer_all(self) -> None:
        """Answer pending requests, and end every watch."""
        parts = self._parts
        await parts.authorizer.settle()
        await parts.committer.drain()
        parts.hub.end_all()
        await parts.keys.responder.finish()

    async def _flush(self) -> None:
        """Send the last responses, as far as clients read them, and close the connections."""
        connections = self._parts.http.connections
        began = time.monotonic()
        while connections and (waited_s := time.monotonic() - began) < _FLUSH_S:
            if waited_s > _LEAVE_S and not any(c.unsent_bytes for c in connections):
                break
            await asyncio.sleep(0.01)
        for connection in list(connections):
            connection.abort()

    # Failure

    def _uncaught(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle an exception that no callback or task has caught: damage ends the process."""
        error = context.get("exception")
        if isinstance(error, BROKEN):
            self._fail(error)
        loop.default_exception_handler(context)

    def _fail(self, error: BaseException) -> None:
        """End the process: what it holds in memory and what is on disk may differ now.

        No second attempt at a sync (it would succeed, and lie), no clean mark, no commit: the next
        start reads what the disk really holds.
        """
        status = EXIT_BUG
        if isinstance(error, BROKEN):
            status = EXIT_TRY_AGAIN
            log.critical("the index is damaged, stopping; the next start rebuilds it: %s", error)
        elif isinstance(error, IndexRefused):
            status = EXIT_IO
            log.critical(
                "the index could not be written though there is room, stopping; the log has all "
                "that was acknowledged, the next start rebuilds the index: %s",
                error,
            )
        elif isinstance(error, DirectoryLost):
            # The path may lead to another directory now: nothing there is touched.
            log.critical("%s; stopping at once, nothing more is acknowledged", error)
            logging.shutdown()
            os._exit(error.exit_status)
        elif isinstance(error, OSError):
            status = EXIT_IO
            log.critical("the disk failed, stopping at once: %s", error)
        else:
            log.critical("stopping at once", exc_info=error)
        with suppress(OSError):
            self._store.index.distrust()
        logging.shutdown()
        os._exit(status)


def _new_ids(config: Config) -> NewIds | None:
    token = config.cluster_token
    return None if token is None else NewIds(*ids_of(config.peer_urls, token))

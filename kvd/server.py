"""A server process in order: start, reload, stop, failure. Its parts are made in `kvd.wiring`.

KvdServer is an object with `start` and `stop`, so it can run inside a test. Start: bind the
addresses (a busy port is found before anything is logged), open the store, log the term, expire
what is overdue, listen. Stop: close the listeners, answer pending requests, end the watches, sync,
close.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvd import failures
from kvd.config.config import Config
from kvd.config.urls import ListenUrl
from kvd.core.clock import Clock
from kvd.core.ticker import Ticker
from kvd.monitoring.service import Monitoring
from kvd.net.acceptor import Acceptor
from kvd.net.fd_limit import Files, divide, open_files_max
from kvd.net.listeners import Listener, bind, handed_over
from kvd.net.systemd import Handed
from kvd.process import FreedMemory
from kvd.storage.errors import Behind, DirectoryLost
from kvd.storage.failpoints import Faults
from kvd.storage.index.errors import BROKEN
from kvd.storage.store import Store
from kvd.wiring.build import ServerParts, build, measured
from kvd.wiring.context import Context
from kvd.wiring.opening import Opening
from kvd.wiring.web import advertised_urls

if TYPE_CHECKING:
    from kvd.replicas.replication import Replication

log = logging.getLogger(__name__)

OnFatal = Callable[[BaseException, int], object]

_TICK_S = 1.0
# A crash sooner than that after a step of the clock, and its keys are off by the step.
_CLOCK_S = 0.25


def _go_on(_error: BaseException, _status: int) -> None:
    """Leave the process alone: it is another program's."""


class KvdServer:
    """One store, served.

    Args:
        config: the settings.
        handed: sockets that were handed over, served in place of the addresses of the flags.
        watch_crashes: gets the index's directory before that is opened.
        on_fatal: gets an error that ends the service, and its exit status. If it returns, all
            connections are closed and nothing more is written.
        open_files: how many files the process may open; by default, its present limit.
        clock: makes the clock, of the last time in the log and the clock's offset.
        faults: those that are to be made in this server's store.
        replicate: makes what lets this server be one of several with one store; gets the server.
    """

    def __init__(
        self,
        config: Config,
        handed: Sequence[Handed] = (),
        watch_crashes: Callable[[Path], None] | None = None,
        *,
        on_fatal: OnFatal = _go_on,
        open_files: int | None = None,
        clock: Callable[[int, int], Clock] = Clock,
        faults: Faults | None = None,
        replicate: Callable[[KvdServer], Replication] | None = None,
    ) -> None:
        self.failed: BaseException | None = None
        """What has ended the service, if anything has."""
        self._config = config
        self._on_fatal, self._open_files, self._handed = on_fatal, open_files, handed
        self._opening = Opening(
            config, watch_crashes=watch_crashes, faults=faults, new_clock=clock, fail=self.fail
        )
        self._replicate = replicate
        self._replication: Replication | None = None
        self.urls: list[str] = []
        """URLs that are served, with the ports that the system chose; empty before."""
        self._parts: ServerParts | None = None
        self._monitoring: Monitoring
        self._acceptors: list[Acceptor] = []
        self._tickers: list[Ticker] = []
        self._host_handler: Any = None

    @property
    def running(self) -> ServerParts:
        """The parts; a bug of the caller before there are any."""
        assert self._parts is not None
        return self._parts

    @property
    def store(self) -> Store:
        """The store, once it is open."""
        return self._opening.store

    @property
    def clock(self) -> Clock:
        """Its clock."""
        return self._opening.clock

    # Start

    async def start(self) -> None:
        """Recover the store and serve it.

        Raises:
            AddressUnavailable: an address is taken, or not this machine's.
            TlsUnusable: a certificate or a key cannot be served.
            StorageError: the data directory cannot be used, or is damaged.
        """
        config = self._config
        files = divide(self._open_files or open_files_max(), config.max_connections)
        if self._handed:
            listeners = handed_over(self._handed, config.listen)
        else:
            listeners = bind(config.listen)
        try:
            await self._serve(listeners, files)
        except BaseException:
            await self._give_up_start()
            for listener in listeners:
                listener.close()
            raise

    async def _serve(self, listeners: Sequence[Listener], files: Files) -> None:
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        listening = [url for listener in listeners for url in listener.urls]
        urls = list(map(str, listening))
        monitoring = self._monitoring = Monitoring(loop)
        self._replication = self._new_replication(listening)
        await self._opening.recover(monitoring, self._replication, urls, started)
        self._host_handler = loop.get_exception_handler()
        loop.set_exception_handler(self._uncaught)
        try:
            context = self._context(loop, files, listening)
            parts = self._parts = build(context)
            recovery_s = time.monotonic() - started
            figures = measured(context, parts, self._monitoring, recovery_s)
            self._monitoring.add(figures, with_samples=self._config.ui != "off")
            await parts.committer.settle()
        except BROKEN as damage:
            self.fail(damage)
            raise
        self._begin(loop)
        if self._replication is not None:
            await self._replication.start()
            if self.failed is not None:
                raise self.failed
        for listener in listeners:
            acceptor = Acceptor(listener, parts.http, parts.connect, self._opening.tls)
            await acceptor.start("listening")
            self._acceptors.append(acceptor)
        self.urls = urls

    def _new_replication(self, listening: Sequence[ListenUrl]) -> Replication | None:
        """Return what makes this server one of several, if it is one."""
        if self._replicate is not None:
            return self._replicate(self)
        if self._config.replicate is None:
            return None
        from kvd.wiring.replicas import replication_of  # noqa: PLC0415

        advertised = advertised_urls(self._config, listening)
        return replication_of(self._config, advertised, self.fail, self.rejoin)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the background tasks."""
        self.running.index_check.start()
        look_at_clock = self.running.committer.look_at_clock
        self._tickers = [
            Ticker(loop, _TICK_S, self._ticked(), self.fail),
            Ticker(loop, _CLOCK_S, {"clock": look_at_clock}, self.fail),
        ]

    def _context(
        self, loop: asyncio.AbstractEventLoop, files: Files, listening: Sequence[ListenUrl]
    ) -> Context:
        return Context(
            config=self._config,
            loop=loop,
            store=self.store,
            clock=self.clock,
            files=files,
            listening=listening,
            settings=self._monitoring.settings,
            fail=self.fail,
            standing=None if self._replication is None else self._replication.standing,
            replication=self._replication,
        )

    def _ticked(self) -> dict[str, Callable[[], object]]:
        """Return the tasks of each second, by name."""
        parts = self.running
        return {
            "connections": parts.http.tick,
            "key space": parts.keys.tick,
            "committer": parts.committer.tick,
            "housekeeping": parts.housekeeping.tick,
            "figures": self._monitoring.syncs.fold,
            # Connections that came in a crowd leave as much behind as writes do.
            "freed memory": FreedMemory(lambda: self.store.applied.pos + parts.http.accepted).tick,
        }

    def rejoin(self) -> None:
        """End the service: the log of all does not go on from this store any more.

        The next start installs a snapshot.
        """
        self.fail(Behind("the engine's log has been trimmed past this replica"))

    def interrupt(self) -> None:
        """End a start that waits for the engine of the log; it raises CancelledError."""
        if self._replication is not None:
            self._replication.interrupt()

    # Reload

    def reload(self) -> None:
        """Reload certificates and keys for new connections."""
        if self._opening.tls is None:
            log.info("no certificates to reload")
        else:
            self._opening.tls.reload()

    # Stop

    async def stop(self) -> None:
        """Answer pending requests, end every watch, and close the store cleanly.

        After a failure nothing is answered, and nothing is marked as clean.
        """
        if self.failed is not None:
            await self.abandon()
            return
        parts = self.running
        self._monitoring.health.set_stopping()
        parts.http.stop()
        for acceptor in self._acceptors:
            await acceptor.finish()
        if self._replication is not None:
            await self._replication.hand_over()
        await self._answer_all()
        await parts.http.finish()
        parts.committer.look_at_clock()  # the next start goes by what it finds
        await self._answer_all()
        await parts.http.flush()
        if self._replication is not None:
            await self._replication.stop()
        self._release()
        self.store.close()
        self._monitoring.stop()
        log.info("stopped at index %d", self.store.applied.index)

    async def _answer_all(self) -> None:
        """Answer pending requests, and end every watch."""
        parts = self.running
        await parts.authorizer.settle()
        await parts.committer.drain()
        parts.hub.end_all()
        await parts.keys.responder.finish()

    # Failure

    def _uncaught(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle an exception that no callback or task has caught: damage ends the process."""
        error = context.get("exception")
        if isinstance(error, BROKEN):
            self.fail(error)
        if self._host_handler is not None:
            self._host_handler(loop, context)
        else:
            loop.default_exception_handler(context)

    def fail(self, error: BaseException) -> None:
        """End all service: what is in memory and what is on disk may differ now.

        No second attempt at a sync (it would succeed, and lie), no clean mark, no commit: the next
        start reads what the disk really holds.
        """
        if self.failed is not None:
            return
        self.failed = error
        status = failures.report(error)
        if not isinstance(error, DirectoryLost):  # the path may lead to another one now
            with suppress(OSError):
                self.store.index.distrust()
        self._on_fatal(error, status)
        # As a guest of another program the process goes on, and no answer may leave any more.
        self._halt()

    def _halt(self) -> None:
        """Serve nothing any more, answer nothing, write nothing."""
        if self._parts is None:
            return
        self._monitoring.health.set_stopping()
        self.store.snapshots.stop()  # one of a damaged index would be taken for a good one
        for acceptor in self._acceptors:
            acceptor.close()
        for ticker in self._tickers:
            ticker.stop()
        self._parts.committer.stop()
        self._parts.index_check.stop()
        self._parts.http.stop()
        self._parts.http.abort()

    async def _give_up_start(self) -> None:
        """Let go of everything after a start that has failed."""
        if self._parts is not None:
            await self.abandon()
            return
        if self._replication is not None:
            await self._replication.stop()
        if self._opening.is_open:
            self.store.abandon()

    async def abandon(self) -> None:
        """End as `kill -9` does: nothing is answered, flushed or marked as clean."""
        self._halt()
        for acceptor in self._acceptors:
            await acceptor.settle()
        self.running.http.abort()
        await asyncio.sleep(0)  # connections end in the next turn of the loop
        if self._replication is not None:
            await self._replication.stop()
        self._release()
        self.store.abandon()
        self._monitoring.stop()

    def _release(self) -> None:
        """Stop the threads and timers, before the store is closed."""
        for ticker in self._tickers:
            ticker.stop()
        asyncio.get_running_loop().set_exception_handler(self._host_handler)
        self.running.release()

"""A running server: its parts, wired; how it starts, and how it ends.

It is an object with `start` and `stop`, so it can run inside a test. Start: bind the addresses (a
busy port is found before anything is logged), open the store, log the term, expire what is overdue,
listen. Stop: listen no more, finish what was asked, end the watches, sync, close.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from kvd.access import LoggedConnection
from kvd.app import ROUTES, Sources, make_application
from kvd.clock import Clock
from kvd.committer import Committer
from kvd.config import Config, ListenUrl
from kvd.front import Front
from kvd.housekeeping import Housekeeping
from kvd.http1 import Connection, Limits, Server
from kvd.keys import KeySpace
from kvd.listing import Listings
from kvd.measured import Parts
from kvd.members import Member, ids_of
from kvd.monitor import DEBUGGING, MONITORING, raft_status
from kvd.monitoring import Monitoring
from kvd.stats import SelfStats, StoreStats
from kvd.syncthread import SyncThread
from kvd.systemd import Handed
from kvd.watch import Hub
from storage.index import BROKEN
from storage.layout import NewIds
from storage.store import Store
from storage.wal import Position

log = logging.getLogger(__name__)

EXIT_UNAVAILABLE = 69
EXIT_BUG = 70
EXIT_IO = 74
EXIT_TRY_AGAIN = 75

# Files that are open beside the connections: the log, the index, the listeners, a snapshot.
_FILES_RESERVED = 64
_BACKLOG = 4096
_FLUSH_S = 0.5
_LEAVE_S = 0.1
_COLLECT_AFTER = 50_000
_CLOCK_S = 60


class AddressUnavailable(Exception):
    """An address cannot be listened on; the message says which and why."""


class KvdServer:
    """One store, served.

    Sockets that were handed over are served in place of the addresses that the flags name.
    """

    def __init__(self, config: Config, handed: Sequence[Handed] = ()) -> None:
        self._config = config
        self._handed = handed
        self.urls: list[str] = []
        """Where it listens, once it does, with the ports that the system chose."""
        self._store: Store
        self._listeners: list[asyncio.Server] = []
        self._sockets: list[socket.socket] = []
        self._ticks = 0
        self._ticker: asyncio.TimerHandle | None = None
        self._monitoring: Monitoring

    async def start(self) -> None:
        """Recover the store and serve it.

        Raises:
            AddressUnavailable: an address is taken, or not this machine's.
            StorageError: the data directory cannot be used, or is damaged.
        """
        config = self._config
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        files = _raise_file_limit()
        if self._handed:
            sockets = [handed.socket for handed in self._handed]
            urls = [url_of(bound) for bound in sockets]
        else:
            sockets = [_bind(url) for url in config.listen]
            urls = [_url(url, bound) for url, bound in zip(config.listen, sockets, strict=True)]
        monitoring = self._monitoring = Monitoring(loop)
        try:
            for address in config.listen_metrics:
                sockets.append(bound := _bind(address))
                url = _url(address, bound)
                await _listen(monitoring.listeners, url, bound, monitoring.connect)
                log.info("serving metrics on %s", url)
            # On a thread, so that whoever asks how it is gets an answer meanwhile.
            await asyncio.to_thread(self._open)
        except BaseException:
            monitoring.stop()
            for bound in sockets:
                bound.close()
            raise
        store = self._store
        recovery = store.recovery
        log.info(
            "recovered index %d from %s in %s, %d log records replayed, in %.2f s",
            store.applied.index,
            recovery.source,
            config.data_dir,
            recovery.records,
            time.monotonic() - started,
        )
        self._serve(loop, urls, connections_max=config.max_connections or files - _FILES_RESERVED)
        monitoring.add(self._parts(recovery_s=time.monotonic() - started))
        await self._committer.settle()
        for url, bound in zip(urls, sockets, strict=False):
            await _listen(self._listeners, url, bound, self._connect)
            self._sockets.append(bound)
        # What is alive now stays so: the collector need not look at it again and again.
        gc.freeze()
        # A request makes hardly any cycles: collecting as often as Python does cost 7 % (measured).
        gc.set_threshold(_COLLECT_AFTER)
        self._tick(loop)
        self.urls = urls
        for url in urls:
            log.info("listening on %s", url)

    async def stop(self) -> None:
        """Answer what was asked, end every watch, and close the store cleanly."""
        self._monitoring.health.stops()
        self._http.stop()
        await self._accept_last()
        await self._answer_all()
        await self._http.finish()
        await self._answer_all()
        await self._flush()
        self._committer.stop()
        if self._ticker is not None:
            self._ticker.cancel()
        self._housekeeping.stop()
        self._sync.stop()
        self._store.close()
        self._monitoring.stop()
        log.info("stopped at index %d", self._store.applied.index)

    async def _accept_last(self) -> None:
        """Listen no more, but take in who has connected already.

        What still waits at a socket when it is closed is reset; at one that was handed over it
        waits for the next start.
        """
        loop = asyncio.get_running_loop()
        last = [] if self._handed else [bound.dup() for bound in self._sockets]
        for listener in self._listeners:
            listener.close()
        accepted: list[socket.socket] = []
        for bound in last:
            with bound, suppress(OSError):  # nobody waits, or there are too many open files
                while len(accepted) < _BACKLOG:
                    accepted.append(bound.accept()[0])
        for client in accepted:
            await loop.connect_accepted_socket(self._connect, client)

    async def _answer_all(self) -> None:
        """Answer everything that has been asked, and end every watch."""
        await self._committer.drain()
        self._hub.end_all()
        await self._keys.finish_listings()

    def _open(self) -> None:
        config = self._config
        store = self._store = Store.open(
            config.data_dir,
            segment_bytes_max=config.wal_segment_bytes,
            rebuild_index=config.rebuild_index,
            new_ids=_new_ids(config),
            must_exist=config.must_exist,
        )
        self._clock = Clock(store.applied.time_ns)
        try:
            store.start_term(self._clock.now_ns(), config.event_history_limit)
        except BROKEN as damage:
            self._fail(damage)
        with suppress(OSError):  # without room there is nothing to keep free
            store.reserve_index()

    def _serve(
        self, loop: asyncio.AbstractEventLoop, urls: list[str], *, connections_max: int
    ) -> None:
        """Make the parts; the first batch, if one is due, comes with the next turn of the loop."""
        config, store, clock = self._config, self._store, self._clock
        sync = self._sync = SyncThread[Position](loop, "kvd-sync", store.wal.prepare_next)
        stats = self._stats = StoreStats()
        hub = self._hub = Hub(store, loop)
        listings = Listings()
        self._housekeeping = Housekeeping(
            store=store, sync=sync, loop=loop, snapshot_count=config.snapshot_count
        )
        self._committer = Committer(
            store=store,
            hub=hub,
            listings=listings,
            stats=stats,
            clock=clock,
            sync=sync,
            loop=loop,
            on_fatal=self._fail,
            on_commit=self._housekeeping.after_commit,
            slow_s=config.slow_request_s,
        )
        self._keys = KeySpace(
            store=store,
            committer=self._committer,
            hub=hub,
            stats=stats,
            clock=clock,
            listings=listings,
            watchers_max=config.max_watchers,
            slow_s=config.slow_request_s,
        )
        identity = store.identity
        advertised = (
            urls if config.advertise == tuple(map(str, config.listen)) else config.advertise
        )
        self_stats = SelfStats(
            name=config.name, member_id=identity.member_id, started_ns=clock.now_ns()
        )
        application = make_application(
            [*ROUTES, *MONITORING, *DEBUGGING],
            sources=Sources(
                store_stats=lambda: stats.body(hub.count),
                self_stats=lambda: self_stats.self_body(clock.now_ns()),
                leader_stats=self_stats.leader_body,
                member=Member(config.name, identity.member_id, tuple(advertised), config.peer_urls),
                cluster_id=identity.cluster_id,
            ),
            raft_status=partial(raft_status, store),
            **self._monitoring.settings,
        )
        limits = Limits(
            header_bytes_max=config.max_header_bytes,
            header_timeout_s=config.header_timeout_s,
            body_timeout_s=config.body_timeout_s,
            idle_timeout_s=config.idle_timeout_s,
            connections_max=connections_max,
        )
        self._http = Server(Front(self._keys, application, config.cors), limits, loop)
        connection = LoggedConnection if config.access_log else Connection
        self._connect: Callable[[], Connection] = partial(connection, self._http)

    def _parts(self, *, recovery_s: float) -> Parts:
        return Parts(
            store=self._store,
            committer=self._committer,
            hub=self._hub,
            keys=self._keys,
            stats=self._stats,
            http=self._http,
            housekeeping=self._housekeeping,
            health=self._monitoring.health,
            clock=self._clock,
            syncs=self._monitoring.syncs,
            recovery_s=recovery_s,
            stall_s=lambda: self._monitoring.stall_s,
        )

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._http.tick()
        self._committer.tick()
        self._housekeeping.tick()
        self._ticks += 1
        if self._ticks % _CLOCK_S == 0:
            self._clock.follow()
        self._ticker = loop.call_later(1.0, self._tick, loop)

    async def _flush(self) -> None:
        """Let the last answers reach their clients, as far as those read them, and leave."""
        connections = self._http.connections
        began = time.monotonic()
        while connections and (waited_s := time.monotonic() - began) < _FLUSH_S:
            if waited_s > _LEAVE_S and not any(c.unsent_bytes for c in connections):
                break
            await asyncio.sleep(0.01)
        for connection in list(connections):
            connection.abort()

    def _fail(self, error: BaseException) -> None:
        """End the process: what it holds in memory and what is on disk may differ now.

        No second attempt at a sync (it would succeed, and lie), no clean mark, no commit: the next
        start reads what the disk really holds.
        """
        status = EXIT_BUG
        if isinstance(error, BROKEN):
            status = EXIT_TRY_AGAIN
            log.critical("the index is damaged, stopping; the next start rebuilds it: %s", error)
        elif isinstance(error, OSError):
            status = EXIT_IO
            log.critical("the log could not be written, stopping at once: %s", error)
        else:
            log.critical("stopping at once", exc_info=error)
        with suppress(OSError):
            self._store.distrust_index()
        logging.shutdown()
        os._exit(status)


def _new_ids(config: Config) -> NewIds | None:
    token = config.cluster_token
    return None if token is None else NewIds(*ids_of(config.peer_urls, token))


def _raise_file_limit() -> int:
    """Raise the limit of open files as far as it goes; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20


def _bind(url: ListenUrl) -> socket.socket:
    """Return a socket bound to an address, not listening yet."""
    try:
        found = socket.getaddrinfo(
            url.host or None, url.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise AddressUnavailable(f"cannot listen on {url}: {error.strerror}") from None
    family, kind, protocol, _, address = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise AddressUnavailable(f"cannot listen on {url}: {error.strerror}") from None
    bound.setblocking(False)
    return bound


async def _listen(
    listeners: list[asyncio.Server],
    url: str,
    bound: socket.socket,
    connect: Callable[[], Connection],
) -> None:
    """Let a bound socket listen, and add its server to the others."""
    loop = asyncio.get_running_loop()
    try:
        listeners.append(await loop.create_server(connect, sock=bound, backlog=_BACKLOG))
    except OSError as error:
        raise AddressUnavailable(f"cannot listen on {url}: {error.strerror}") from None


def url_of(bound: socket.socket) -> str:
    """Return the URL of a socket that was bound by somebody else."""
    address = bound.getsockname()
    if bound.family == socket.AF_UNIX:
        return f"unix://{address}"
    return str(ListenUrl(address[0], address[1]))


def _url(url: ListenUrl, bound: socket.socket) -> str:
    """Return the URL of a listener, with the port that the system chose."""
    return str(ListenUrl(url.host, bound.getsockname()[1]))

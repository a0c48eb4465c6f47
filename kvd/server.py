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
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from kvd.config.load import Config
from kvd.config.urls import ListenUrl
from kvd.core.clock import Clock
from kvd.core.committer import Committer
from kvd.core.housekeeping import Housekeeping
from kvd.core.index_check import IndexCheck
from kvd.core.log_writer import Appender
from kvd.core.stats import SelfStats, StoreStats
from kvd.core.ticker import Ticker
from kvd.core.watch.hub import Hub
from kvd.core.worker_thread import SyncThread
from kvd.handlers import auth, members
from kvd.handlers.authorizer import Guard
from kvd.handlers.cross_site import BrowserPolicy, hosts_of
from kvd.handlers.extras import discovery, endpoints
from kvd.handlers.extras.discovery import Discovery
from kvd.handlers.extras.routes import ExtraRoutes
from kvd.handlers.info import ROUTES, Route, Sources, make_application
from kvd.handlers.keys.key_space import KeyLimits, KeySpace
from kvd.handlers.keys.listing_cache import Listings
from kvd.handlers.long_documents import LongDocuments
from kvd.handlers.passwords import Credentials
from kvd.handlers.router import Front
from kvd.http.access_log import LoggedConnection
from kvd.http.compression import GzipConnection, LoggedGzipConnection
from kvd.http.connection import Connection
from kvd.http.server import HttpServer, Limits
from kvd.limits.memory import Memory
from kvd.limits.turns import Turns
from kvd.monitoring.prometheus import Parts
from kvd.monitoring.routes import DEBUGGING, MONITORING, raft_status
from kvd.monitoring.service import Monitoring
from kvd.net.acceptor import Acceptor
from kvd.net.fd_limit import Files, divide, raise_limit
from kvd.net.listeners import Listener, bind, handed_over, own_hosts
from kvd.net.systemd import Handed
from kvd.net.tls import Tls
from kvd.process import FreedMemory
from kvd.storage.errors import DirectoryLost
from kvd.storage.format.frame import Position
from kvd.storage.format.identity import NewIds
from kvd.storage.index.errors import BROKEN, IndexRefused
from kvd.storage.store import Store
from kvd.v2.documents.members import Member, ids_of

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
        """Where it listens, once it does, with the ports that the system chose."""
        self._store: Store
        self._acceptors: list[Acceptor] = []
        self._tls: Tls | None = None
        self._tickers: list[Ticker] = []
        self._monitoring: Monitoring

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
        monitoring = self._monitoring = Monitoring(loop)
        metrics: list[Listener] = []
        try:
            metrics = bind(config.listen_metrics)
            listening = [url for listener in listeners for url in listener.urls]
            urls = list(map(str, listening))
            # What is missing is found before the store is opened; what is made is kept in it.
            self._load_tls(urls, self_signed=False)
            await monitoring.listen(metrics, self._tls)
            # On a thread, so that whoever asks how it is gets an answer meanwhile.
            await asyncio.to_thread(self._open)
            self._load_tls(urls, self_signed=True)
            await monitoring.listen(metrics, self._tls)
        except BaseException:
            monitoring.stop()
            for listener in (*listeners, *metrics):
                listener.close()
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
        loop.set_exception_handler(self._uncaught)
        try:
            self._serve(loop, listening, files)
            monitoring.add(self._parts(recovery_s=time.monotonic() - started))
            await self._committer.settle()
        except BROKEN as damage:
            self._fail(damage)
        self._index_check.start()
        # What is alive now stays so: the collector need not look at it again and again.
        gc.freeze()
        # A request makes hardly any cycles: collecting as often as Python does cost 7 % (measured).
        gc.set_threshold(_COLLECT_AFTER)
        self._tickers = [
            Ticker(loop, _TICK_S, self._ticked(), self._fail),
            Ticker(loop, _CLOCK_S, {"clock": self._committer.look_at_clock}, self._fail),
        ]
        for listener in listeners:
            acceptor = Acceptor(listener, self._http, self._connect, self._tls)
            await acceptor.start("listening")
            self._acceptors.append(acceptor)
        self.urls = urls

    async def stop(self) -> None:
        """Answer what was asked, end every watch, and close the store cleanly."""
        self._monitoring.health.stops()
        self._http.stop()
        for acceptor in self._acceptors:
            await acceptor.finish()
        await self._answer_all()
        await self._http.finish()
        self._committer.look_at_clock()  # the next start goes by what it finds
        await self._answer_all()
        await self._flush()
        self._committer.stop()
        for ticker in self._tickers:
            ticker.stop()
        self._housekeeping.stop()
        self._index_check.stop()
        self._credentials.close()
        self._keys.watches.close()
        self._sync.stop()
        self._appender.close()
        self._store.close()
        self._monitoring.stop()
        log.info("stopped at index %d", self._store.applied.index)

    def reload(self) -> None:
        """Read certificates and keys again; new connections get them."""
        if self._tls is None:
            log.info("there are no certificates to read again")
        else:
            self._tls.reload()

    async def _answer_all(self) -> None:
        """Answer everything that has been asked, and end every watch."""
        await self._guard.settle()
        await self._committer.drain()
        self._hub.end_all()
        await self._keys.responder.finish()

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
            store.reserve_index()

    def _serve(
        self, loop: asyncio.AbstractEventLoop, listening: Sequence[ListenUrl], files: Files
    ) -> None:
        """Make the parts; the first batch, if one is due, comes with the next turn of the loop."""
        config, store, clock = self._config, self._store, self._clock
        sync = self._sync = SyncThread[Position](loop, "kvd-sync", store.wal.prepare_next)
        stats = self._stats = StoreStats()
        self._appender = Appender(
            store, sync, loop, thread_only=config.wal_sync == "thread", reads=stats.gets
        )
        turns = Turns(loop)
        hub = self._hub = Hub(store, loop)
        listings = Listings()
        self._housekeeping = Housekeeping(
            store=store,
            sync=sync,
            loop=loop,
            on_fatal=self._fail,
            snapshot_count=config.snapshot_count,
        )
        self._committer = Committer(
            store=store,
            hub=hub,
            observers=(listings,),
            stats=stats,
            clock=clock,
            sync=sync,
            append=self._appender.append,
            loop=loop,
            on_fatal=self._fail,
            on_flush=self._housekeeping.after_flush,
            slow_s=config.slow_request_s,
            turns=turns,
        )
        self._index_check = IndexCheck(store, loop, self._fail)
        memory = Memory(config.max_buffered_bytes, config.max_response_bytes)
        self._keys = KeySpace(
            store=store,
            committer=self._committer,
            hub=hub,
            stats=stats,
            clock=clock,
            listings=listings,
            memory=memory,
            limits=KeyLimits(
                body_bytes_max=config.max_body_bytes,
                value_bytes_max=config.max_value_bytes,
                depth_max=config.max_key_depth,
                watchers_max=config.max_watchers or files.watchers_max,
                max_wait_s=config.max_wait_s,
                watchers_per_key_max=config.max_watchers_per_key,
                stream_bytes_max=config.max_stream_bytes,
            ),
            slow_s=config.slow_request_s,
            has_extras=config.extras,
        )
        self._credentials = Credentials(loop)
        guard = self._guard = Guard(
            store=store,
            credentials=self._credentials,
            keys=self._keys,
            on_damage=self._fail,
            open_urls=[str(url) for url in listening if url.is_open],
        )
        self._committer.on_entries = guard.refresh
        identity = store.identity
        is_told = config.advertise != tuple(map(str, config.listen))
        advertised = config.advertise if is_told else tuple(map(str, listening))
        hosts = hosts_of(
            config.host_whitelist,
            own_hosts(advertised),
            is_local_only=all(url.is_local for url in listening),
        )
        offset_ns = store.applied.clock_offset_ns
        self_stats = SelfStats(
            name=config.name, member_id=identity.member_id, started_ns=clock.now_ns() + offset_ns
        )
        routes: list[Route] = [*ROUTES, *auth.ROUTES, *members.ROUTES]
        routes += [*MONITORING, *DEBUGGING]
        if config.extras:
            routes += endpoints.ROUTES
        if config.discovery:
            routes += discovery.ROUTES
        browsers = BrowserPolicy(hosts, config.cors)
        application = make_application(
            routes,
            sources=Sources(
                store_stats=lambda: stats.body(hub.count),
                self_stats=lambda: self_stats.self_body(clock.now_ns() + offset_ns),
                leader_stats=self_stats.leader_body,
                member=Member(config.name, identity.member_id, advertised, config.peer_urls),
                cluster_id=identity.cluster_id,
                guard=guard,
                documents=LongDocuments(store),
                administer=self._committer.administer,
            ),
            raft_status=partial(raft_status, store),
            discovery=Discovery(
                store=store,
                committer=self._committer,
                guard=guard,
                browsers=browsers,
                rejected=self._keys.responder.rejected,
                urls=advertised,
                ttl_s=config.discovery_ttl_s,
                tokens_max=config.discovery_max,
            ),
            **self._monitoring.settings,
        )
        limits = Limits(
            header_bytes_max=config.max_header_bytes,
            header_timeout_s=config.header_timeout_s,
            body_timeout_s=config.body_timeout_s,
            idle_timeout_s=config.idle_timeout_s,
            write_timeout_s=config.write_timeout_s,
            connections_max=files.connections_max,
            lingering_max=files.lingering_max,
            backlog=files.backlog,
        )
        reads = self._keys.extras
        extras = None if reads is None else ExtraRoutes(self._keys, reads, guard, self._committer)
        bytes_min = config.gzip_min_bytes
        compresses = bytes_min is not None
        front = Front(self._keys, application, guard, browsers, extras, compresses=compresses)
        self._http = HttpServer(front, limits, loop, memory, turns)
        connection = LoggedConnection if config.access_log else Connection
        self._connect: Callable[[], Connection] = partial(connection, self._http)
        if bytes_min is not None:
            compressing = LoggedGzipConnection if config.access_log else GzipConnection
            self._connect = partial(compressing, self._http, self._keys.gzip(bytes_min))

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

    def _ticked(self) -> dict[str, Callable[[], object]]:
        """Return what is done every second."""
        return {
            "connections": self._http.tick,
            "key space": self._keys.tick,
            "committer": self._committer.tick,
            "housekeeping": self._housekeeping.tick,
            "figures": self._monitoring.syncs.fold,
            # Connections that came in a crowd leave as much behind as writes do.
            "freed memory": FreedMemory(lambda: self._store.applied.pos + self._http.accepted).tick,
        }

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

    def _uncaught(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Take what no callback or task has caught: damage to the index ends the process."""
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
            # What has its name now is not to be touched.
            log.critical("%s; stopping at once, nothing more is acknowledged", error)
            logging.shutdown()
            os._exit(error.exit_status)
        elif isinstance(error, OSError):
            status = EXIT_IO
            log.critical("the disk failed, stopping at once: %s", error)
        else:
            log.critical("stopping at once", exc_info=error)
        with suppress(OSError):
            self._store.distrust_index()
        logging.shutdown()
        os._exit(status)


def _new_ids(config: Config) -> NewIds | None:
    token = config.cluster_token
    return None if token is None else NewIds(*ids_of(config.peer_urls, token))

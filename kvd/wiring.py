"""The parts of a running server: each made and connected, from the log up to the connections.

There is no logic here. `kvd.server` opens the store first, and starts and stops what is made here.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import tornado.web

from kvd.config.config import Config
from kvd.config.urls import ListenUrl
from kvd.core.background.housekeeping import Housekeeping
from kvd.core.background.index_check import IndexCheck
from kvd.core.clock import Clock
from kvd.core.committer import Committer
from kvd.core.log_writer import LogWriter
from kvd.core.standing import Alone
from kvd.core.stats import SelfStats, StoreStats
from kvd.core.watch.hub import Hub
from kvd.core.worker_thread import WorkerThread
from kvd.handlers import auth, members
from kvd.handlers.authorizer import Authorizer
from kvd.handlers.cross_site import BrowserPolicy, hosts_of
from kvd.handlers.extras import discovery, endpoints
from kvd.handlers.extras.discovery import Discovery
from kvd.handlers.extras.routes import ExtraRoutes
from kvd.handlers.info import ROUTES, HandlerContext, Route, make_application
from kvd.handlers.keys.key_space import KeyLimits, KeySpace
from kvd.handlers.keys.listing_cache import ListingCache
from kvd.handlers.keys.parts import AnswerParts, answer_parts
from kvd.handlers.long_documents import LongDocuments
from kvd.handlers.passwords import Credentials
from kvd.handlers.router import Router
from kvd.handlers.ui import files, session
from kvd.http.access_log import LoggedConnection
from kvd.http.compression import GzipConnection, LoggedGzipConnection
from kvd.http.connection import Connection
from kvd.http.sending.status_lines import StatusLines
from kvd.http.server import HttpServer, Limits
from kvd.limits.memory_budget import MemoryBudget
from kvd.limits.turns import Turns
from kvd.monitoring import ui_status
from kvd.monitoring.prometheus import Parts
from kvd.monitoring.routes import DEBUGGING, MONITORING, raft_status
from kvd.monitoring.service import Monitoring
from kvd.net.fd_limit import Files
from kvd.net.listeners import own_hosts
from kvd.storage.failpoints import Faults
from kvd.storage.format.frame import Position
from kvd.storage.format.identity import NewIds
from kvd.storage.store import Options, Store
from kvd.v2.documents.members import Member, ids_of

Fail = Callable[[BaseException], None]


class Context(NamedTuple):
    """Everything that exists before the parts are made."""

    config: Config
    loop: asyncio.AbstractEventLoop
    store: Store
    clock: Clock
    files: Files
    """How many connections and watchers there may be."""
    listening: Sequence[ListenUrl]
    """Where the server will listen, with the ports that the system chose."""
    settings: Mapping[str, object]
    """What the routes of monitoring need."""
    fail: Fail
    """Ends the process."""


class ServerParts(NamedTuple):
    """The parts that `kvd.server` starts, measures and stops."""

    sync: WorkerThread[Position]
    log_writer: LogWriter
    hub: Hub
    stats: StoreStats
    housekeeping: Housekeeping
    committer: Committer
    index_check: IndexCheck
    keys: KeySpace
    credentials: Credentials
    authorizer: Authorizer
    http: HttpServer
    connect: Callable[[], Connection]
    """Makes the protocol of a new connection."""

    def release(self) -> None:
        """End the threads and timers; the store can be closed then."""
        self.committer.stop()
        self.housekeeping.stop()
        self.index_check.stop()
        self.credentials.close()
        self.keys.watches.close()
        self.sync.stop()
        self.log_writer.close()


class _Core(NamedTuple):
    """The order of writes, and those that hear of them."""

    sync: WorkerThread[Position]
    log_writer: LogWriter
    hub: Hub
    stats: StoreStats
    listings: ListingCache
    housekeeping: Housekeeping
    committer: Committer
    turns: Turns


def build(context: Context) -> ServerParts:
    """Make the parts; the first batch, if one is due, comes with the next turn of the loop."""
    config, loop, store, fail = context.config, context.loop, context.store, context.fail
    status_lines = StatusLines()
    memory = MemoryBudget(config.max_buffered_bytes, config.max_response_bytes)
    answers = answer_parts(store, memory, fail, stream_bytes_max=config.max_stream_bytes)
    core = _core(context, status_lines, answers)
    index_check = IndexCheck(store, loop, fail)
    keys = _key_space(context, core, answers)
    credentials = Credentials(loop)
    authorizer = Authorizer(
        store=store,
        credentials=credentials,
        keys=keys,
        on_damage=fail,
        open_urls=[str(url) for url in context.listening if url.is_open],
    )
    core.committer.observe_documents(authorizer.refresh)
    router = _router(context, core, keys, authorizer)
    limits = _limits(config, context.files)
    http = HttpServer(router, limits, loop, memory, turns=core.turns, status_lines=status_lines)
    return ServerParts(
        core.sync,
        core.log_writer,
        core.hub,
        core.stats,
        core.housekeeping,
        core.committer,
        index_check,
        keys,
        credentials,
        authorizer,
        http,
        _connect(config, http, keys),
    )


def _core(context: Context, status_lines: StatusLines, answers: AnswerParts) -> _Core:
    config, loop, store, fail = context.config, context.loop, context.store, context.fail
    sync = WorkerThread[Position](loop, "kvd-sync", store.wal.prepare_next)
    stats = StoreStats()
    log_writer = LogWriter(
        store, sync, loop, thread_only=config.wal_sync == "thread", reads=stats.gets
    )
    turns = Turns(loop)
    hub = Hub(store, loop, answers.watches.deliver_all)
    listings = ListingCache()
    housekeeping = Housekeeping(
        store=store, sync=sync, loop=loop, on_fatal=fail, snapshot_count=config.snapshot_count
    )
    responses = answers.write_responses(status_lines, stats)
    committer = Committer(
        store=store,
        hub=hub,
        observers=(listings,),
        stats=stats,
        clock=context.clock,
        sync=sync,
        append=log_writer.append,
        wait=log_writer.wait,
        loop=loop,
        on_fatal=fail,
        on_flush=housekeeping.after_flush,
        render=responses.render,
        respond=responses.respond,
        slow_s=config.slow_request_s,
        turns=turns,
    )
    return _Core(sync, log_writer, hub, stats, listings, housekeeping, committer, turns)


def _key_space(context: Context, core: _Core, answers: AnswerParts) -> KeySpace:
    config, files = context.config, context.files
    return KeySpace(
        store=context.store,
        committer=core.committer,
        hub=core.hub,
        stats=core.stats,
        clock=context.clock,
        listings=core.listings,
        answers=answers,
        limits=KeyLimits(
            body_bytes_max=config.max_body_bytes,
            value_bytes_max=config.max_value_bytes,
            depth_max=config.max_key_depth,
            watchers_max=config.max_watchers or files.watchers_max,
            max_wait_s=config.max_wait_s,
            watchers_per_key_max=config.max_watchers_per_key,
        ),
        slow_s=config.slow_request_s,
        has_extras=config.extras,
    )


def _router(context: Context, core: _Core, keys: KeySpace, authorizer: Authorizer) -> Router:
    config, listening = context.config, context.listening
    advertised = _advertised(config, listening)
    hosts = hosts_of(
        config.host_whitelist,
        own_hosts(advertised),
        is_local_only=all(url.is_local for url in listening),
    )
    browsers = BrowserPolicy(hosts, config.cors)
    discovered = Discovery(
        store=context.store,
        committer=core.committer,
        authorizer=authorizer,
        browsers=browsers,
        rejected=keys.responder.rejected,
        urls=advertised,
        ttl_s=config.discovery_ttl_s,
        tokens_max=config.discovery_max,
    )
    application = _application(context, core, authorizer, discovered, advertised)
    reads = keys.extras
    extras = None if reads is None else ExtraRoutes(keys, reads, authorizer, core.committer)
    compresses = config.gzip_min_bytes is not None
    return Router(keys, application, authorizer, browsers, extras, compresses=compresses)


def _advertised(config: Config, listening: Sequence[ListenUrl]) -> tuple[str, ...]:
    """Return the URLs that clients get: those of the flag, or where the server listens."""
    is_given = config.advertise != tuple(map(str, config.listen))
    return config.advertise if is_given else tuple(map(str, listening))


def _application(
    context: Context,
    core: _Core,
    authorizer: Authorizer,
    discovered: Discovery,
    advertised: tuple[str, ...],
) -> tornado.web.Application:
    config, store, clock = context.config, context.store, context.clock
    identity, offset_ns = store.identity, store.applied.clock_offset_ns
    started_ns = clock.now_ns() + offset_ns
    self_stats = SelfStats(
        name=config.name,
        member_id=identity.member_id,
        started_ns=started_ns,
        standing=Alone(identity.member_id, started_ns),
    )
    return make_application(
        _routes(config),
        context=HandlerContext(
            store_stats=lambda: core.stats.body(core.hub.count),
            self_stats=lambda: self_stats.self_body(clock.now_ns() + offset_ns),
            leader_stats=self_stats.leader_body,
            member=Member(config.name, identity.member_id, advertised, config.peer_urls),
            cluster_id=identity.cluster_id,
            authorizer=authorizer,
            documents=LongDocuments(store),
            submit_document=core.committer.submit_document,
        ),
        raft_status=partial(raft_status, store),
        discovery=discovered,
        ui_read_only=config.ui == "read-only",
        **context.settings,
    )


def _routes(config: Config) -> list[Route]:
    routes: list[Route] = [*ROUTES, *auth.ROUTES, *members.ROUTES, *MONITORING, *DEBUGGING]
    if config.extras:
        routes += endpoints.ROUTES
    if config.discovery:
        routes += discovery.ROUTES
    if config.ui != "off":
        routes += [*session.ROUTES, *ui_status.ROUTES, *files.ROUTES]
    return routes


def _limits(config: Config, files: Files) -> Limits:
    return Limits(
        header_bytes_max=config.max_header_bytes,
        header_timeout_s=config.header_timeout_s,
        body_timeout_s=config.body_timeout_s,
        idle_timeout_s=config.idle_timeout_s,
        write_timeout_s=config.write_timeout_s,
        connections_max=files.connections_max,
        lingering_max=files.lingering_max,
        backlog=files.backlog,
    )


def _connect(config: Config, http: HttpServer, keys: KeySpace) -> Callable[[], Connection]:
    if config.gzip_min_bytes is not None:
        compressing = LoggedGzipConnection if config.access_log else GzipConnection
        return partial(compressing, http, keys.gzip(config.gzip_min_bytes))
    return partial(LoggedConnection if config.access_log else Connection, http)


def measured(
    context: Context, parts: ServerParts, monitoring: Monitoring, recovery_s: float
) -> Parts:
    """Return what `/metrics` shows."""
    return Parts(
        store=context.store,
        committer=parts.committer,
        hub=parts.hub,
        keys=parts.keys,
        stats=parts.stats,
        http=parts.http,
        housekeeping=parts.housekeeping,
        health=monitoring.health,
        clock=context.clock,
        syncs=monitoring.syncs,
        recovery_s=recovery_s,
        stall_s=lambda: monitoring.stall_s,
    )


def open_store(
    config: Config,
    watch_crashes: Callable[[Path], None] | None,
    faults: Faults | None,
    on_sync: Callable[[float], object],
) -> Store:
    """Open or create the store, as the settings say."""
    options = Options(
        segment_bytes_max=config.wal_segment_bytes,
        snapshots_kept=config.snapshots_kept or sys.maxsize,
        rebuild_index=config.rebuild_index,
        allow_network_fs=config.allow_network_fs,
        new_ids=new_ids(config),
        must_exist=config.must_exist,
        wal_dir=config.wal_dir,
        watch_crashes=watch_crashes,
        on_sync=on_sync,
        faults=faults or Faults(),
    )
    return Store.open(config.data_dir, options)


def new_ids(config: Config) -> NewIds | None:
    """Return the ids of a store that is made: by the cluster token, random ones without."""
    token = config.cluster_token
    return None if token is None else NewIds(*ids_of(config.peer_urls, token))

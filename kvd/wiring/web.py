"""The way of requests, made and connected: key space, routes, connections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import tornado.web

from kvd.config.config import Config
from kvd.config.urls import ListenUrl
from kvd.core.standing import Alone, Standing
from kvd.core.stats import SelfStats
from kvd.handlers import auth, members
from kvd.handlers.authorizer import Authorizer
from kvd.handlers.cross_site import BrowserPolicy, hosts_of
from kvd.handlers.extras import discovery, endpoints, replicas
from kvd.handlers.extras.discovery import Discovery
from kvd.handlers.extras.routes import ExtraRoutes
from kvd.handlers.info import ROUTES, HandlerContext, Route, make_application
from kvd.handlers.keys.key_space import KeyLimits, KeySpace
from kvd.handlers.keys.parts import AnswerParts
from kvd.handlers.long_documents import LongDocuments
from kvd.handlers.router import Router
from kvd.handlers.ui import files, session
from kvd.http.access_log import LoggedConnection
from kvd.http.compression import GzipConnection, LoggedGzipConnection
from kvd.http.connection import Connection
from kvd.http.server import HttpServer, Limits
from kvd.monitoring import ui_status
from kvd.monitoring.routes import DEBUGGING, MONITORING, raft_status
from kvd.net.fd_limit import Files
from kvd.net.listeners import own_hosts
from kvd.v2.documents.members import Member
from kvd.wiring.context import Context
from kvd.wiring.core import Core


def key_space_of(context: Context, core: Core, answers: AnswerParts) -> KeySpace:
    """Make the key space."""
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


def standing_of(context: Context) -> Standing:
    """Return the standing among replicas: that of a server alone where there are none."""
    store, clock = context.store, context.clock
    started_ns = clock.now_ns() + store.applied.clock_offset_ns
    return context.standing or Alone(store.identity.member_id, started_ns)


def router_of(
    context: Context, core: Core, keys: KeySpace, authorizer: Authorizer, standing: Standing
) -> Router:
    """Make the routes, and what they lead to."""
    config, listening = context.config, context.listening
    advertised = advertised_urls(config, listening)
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
    application = _application(context, core, authorizer, discovered, standing)
    reads = keys.extras
    extras = None if reads is None else ExtraRoutes(keys, reads, authorizer, core.committer)
    compresses = config.gzip_min_bytes is not None
    return Router(keys, application, authorizer, browsers, extras, compresses=compresses)


def own_member(context: Context) -> Member:
    """Return the member that the server is, as its settings say."""
    config = context.config
    urls = advertised_urls(config, context.listening)
    return Member(config.name, context.store.identity.member_id, urls, config.peer_urls)


def advertised_urls(config: Config, listening: Sequence[ListenUrl]) -> tuple[str, ...]:
    """Return the URLs that clients get: those of the flag, or where the server listens."""
    is_given = config.advertise != tuple(map(str, config.listen))
    return config.advertise if is_given else tuple(map(str, listening))


def _application(
    context: Context,
    core: Core,
    authorizer: Authorizer,
    discovered: Discovery,
    standing: Standing,
) -> tornado.web.Application:
    config, store, clock = context.config, context.store, context.clock
    identity, offset_ns = store.identity, store.applied.clock_offset_ns
    self_stats = SelfStats(
        name=config.name,
        member_id=identity.member_id,
        standing=standing,
    )
    return make_application(
        _routes(config),
        context=HandlerContext(
            store_stats=lambda: core.stats.body(core.hub.count),
            self_stats=lambda: self_stats.self_body(clock.now_ns() + offset_ns),
            leader_stats=self_stats.leader_body,
            member=own_member(context),
            cluster_id=identity.cluster_id,
            standing=standing,
            authorizer=authorizer,
            documents=LongDocuments(store),
            submit_document=core.committer.submit_document,
        ),
        raft_status=partial(raft_status, store, standing),
        discovery=discovered,
        engine_url=config.replicate.url if config.replicate else "",
        ui_read_only=config.ui == "read-only",
        **context.settings,
    )


def _routes(config: Config) -> list[Route]:
    routes: list[Route] = [*ROUTES, *auth.ROUTES, *members.ROUTES, *MONITORING, *DEBUGGING]
    if config.extras:
        routes += endpoints.ROUTES
    if config.discovery:
        routes += discovery.ROUTES
    if config.replicate is not None:
        routes += replicas.ROUTES
    if config.ui != "off":
        routes += [*session.ROUTES, *ui_status.ROUTES, *files.ROUTES]
    return routes


def limits_of(config: Config, files: Files) -> Limits:
    """Return the limits of connections."""
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


def connect(config: Config, http: HttpServer, keys: KeySpace) -> Callable[[], Connection]:
    """Return what makes the protocol of a new connection."""
    if config.gzip_min_bytes is not None:
        compressing = LoggedGzipConnection if config.access_log else GzipConnection
        return partial(compressing, http, keys.gzip(config.gzip_min_bytes))
    return partial(LoggedConnection if config.access_log else Connection, http)

"""The parts of a running server: each made and connected, from the log up to the connections.

There is no logic here. `kvd.server` opens the store first, and starts and stops what is made here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from kvd.core.background.housekeeping import Housekeeping
from kvd.core.background.index_check import IndexCheck
from kvd.core.committer import Committer
from kvd.core.log_writer import LogWriter
from kvd.core.standing import Standing
from kvd.core.stats import StoreStats
from kvd.core.watch.hub import Hub
from kvd.core.worker_thread import WorkerThread
from kvd.handlers.authorizer import Authorizer
from kvd.handlers.keys.key_space import KeySpace
from kvd.handlers.keys.parts import answer_parts
from kvd.handlers.passwords import Credentials
from kvd.http.connection import Connection
from kvd.http.sending.status_lines import StatusLines
from kvd.http.server import HttpServer
from kvd.limits.memory_budget import MemoryBudget
from kvd.monitoring.prometheus import Parts
from kvd.monitoring.service import Monitoring
from kvd.storage.format.frame import Position
from kvd.wiring.context import Context
from kvd.wiring.core import core_of
from kvd.wiring.web import connect, key_space_of, limits_of, router_of, standing_of

if TYPE_CHECKING:
    from kvd.core.replicated.unsynced_log import UnsyncedLog


class ServerParts(NamedTuple):
    """The parts that `kvd.server` starts, measures and stops."""

    sync: WorkerThread[Position]
    log_writer: LogWriter | UnsyncedLog
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
    standing: Standing

    def release(self) -> None:
        """End the threads and timers; the store can be closed then."""
        self.committer.stop()
        self.housekeeping.stop()
        self.index_check.stop()
        self.credentials.close()
        self.keys.watches.close()
        self.sync.stop()
        self.log_writer.close()


def build(context: Context) -> ServerParts:
    """Make the parts; the first batch, if one is due, comes with the next turn of the loop."""
    config, loop, store, fail = context.config, context.loop, context.store, context.fail
    status_lines = StatusLines()
    memory = MemoryBudget(config.max_buffered_bytes, config.max_response_bytes)
    answers = answer_parts(store, memory, fail, stream_bytes_max=config.max_stream_bytes)
    core = core_of(context, status_lines, answers)
    index_check = IndexCheck(store, loop, fail)
    keys = key_space_of(context, core, answers)
    if context.replication is not None:
        keys.catch_up = context.replication.catch_up
    credentials = Credentials(loop)
    authorizer = Authorizer(
        store=store,
        credentials=credentials,
        keys=keys,
        on_damage=fail,
        open_urls=[str(url) for url in context.listening if url.is_open],
    )
    core.committer.observe_documents(authorizer.refresh)
    standing = standing_of(context)
    router = router_of(context, core, keys, authorizer, standing)
    limits = limits_of(config, context.files)
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
        connect(config, http, keys),
        standing,
    )


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
        standing=parts.standing,
        syncs=monitoring.syncs,
        recovery_s=recovery_s,
        stall_s=lambda: monitoring.stall_s,
    )

"""The order of writes, made and connected: from the log to the committer."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kvd.core.background.housekeeping import Housekeeping
from kvd.core.committer import Committer
from kvd.core.log_writer import LogWriter
from kvd.core.stats import StoreStats
from kvd.core.watch.hub import Hub
from kvd.core.worker_thread import WorkerThread
from kvd.handlers.keys.listing_cache import ListingCache
from kvd.handlers.keys.parts import AnswerParts
from kvd.http.sending.status_lines import StatusLines
from kvd.limits.turns import Turns
from kvd.storage.format.frame import Position
from kvd.wiring.context import Context

if TYPE_CHECKING:
    from kvd.core.replicated.unsynced_log import UnsyncedLog
    from kvd.replicas.member import StoreMember


class Core(NamedTuple):
    """The order of writes, and those that hear of them."""

    sync: WorkerThread[Position]
    log_writer: LogWriter | UnsyncedLog
    hub: Hub
    stats: StoreStats
    listings: ListingCache
    housekeeping: Housekeeping
    committer: Committer
    turns: Turns


def core_of(context: Context, status_lines: StatusLines, answers: AnswerParts) -> Core:
    """Make the order of writes; the first batch, if one is due, comes with the next turn."""
    config, loop, store, fail = context.config, context.loop, context.store, context.fail
    sync = WorkerThread[Position](loop, "kvd-sync", store.wal.prepare_next)
    stats = StoreStats()
    log_writer, member = _log(context, sync, stats)
    way, replication = member or log_writer, context.replication
    turns = Turns(loop)
    hub = Hub(store, loop, answers.watches.deliver_all)
    listings = ListingCache()
    housekeeping = Housekeeping(
        store=store,
        sync=sync,
        loop=loop,
        on_fatal=fail,
        snapshot_count=config.snapshot_count,
        member_id=0 if replication is None else store.identity.member_id,
    )
    responses = answers.write_responses(status_lines, stats)
    committer = Committer(
        store=store,
        hub=hub,
        observers=(listings,) if replication is None else (listings, replication.applied),
        stats=stats,
        clock=context.clock,
        sync=sync,
        append=way.append,
        wait=way.wait,
        loop=loop,
        on_fatal=fail,
        on_flush=housekeeping.after_flush,
        render=responses.render,
        respond=responses.respond,
        slow_s=config.slow_request_s,
        turns=turns,
        may_decide=member is None,
        confirm=None if member is None else member.confirm,
    )
    if replication is not None:
        replication.attach(committer, context.clock, stats, housekeeping)
    return Core(sync, log_writer, hub, stats, listings, housekeeping, committer, turns)


def _log(
    context: Context, sync: WorkerThread[Position], stats: StoreStats
) -> tuple[LogWriter | UnsyncedLog, StoreMember | None]:
    """Make the own log, and what appends to that of all replicas, if this is one."""
    store, loop, replication = context.store, context.loop, context.replication
    if replication is None:
        thread_only = context.config.wal_sync == "thread"
        return LogWriter(store, sync, loop, thread_only=thread_only, reads=stats.gets), None
    from kvd.core.replicated.unsynced_log import UnsyncedLog  # noqa: PLC0415

    own_log = UnsyncedLog(store, sync, loop, context.fail)
    return own_log, replication.member_of(own_log)

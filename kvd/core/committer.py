"""The order of a write: decide, append to the log, sync, make visible, publish, respond.

One batch at a time. While it is being synced the loop reads requests, serves reads and queues the
next batch, which is as large as the disk is slow; it also waits for clients that send on at once.

Invariants:

- No response and no event, be it a success or a refusal decided on the same state, leaves before
  the batch is durable. What can be prepared for them is prepared while the disk is at work. A batch
  without a change needs no frame: all that it has seen is durable already.
- If a batch is aborted, all its members get the same error with index 0, the refused ones too, and
  its indexes are reused: no client has seen them.
- Once a frame is durable its batch *is* committed. Nothing can fail any more, because the state is
  ahead of the index, in memory (storage/index/state.py). The index follows in parallel
  (background/flusher.py); batches wait for it if it has refused too much, or while a large flush is
  running.
- Without room for what users write (disk_space.py) commands are refused one by one, and each batch
  checks the disk again before that. Removals, expiry and reads go on.
- While the gate is closed no batch begins: commands wait, nothing expires, and nothing is logged
  but the batch that is under way.
- No command sees a key that had ended when the command was queued (batch/expirations.py), and
  readers do not see it either (`ExpiryTimer.overdue_at`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

from kvd.core.background.flusher import Flusher
from kvd.core.batch.composer import Composer
from kvd.core.batch.flow import Flow, Observer
from kvd.core.batch.responses import Responses
from kvd.core.batch.round import AllDone, Done, Ends, Queued, Render, Respond, prepare_nothing
from kvd.core.clock import Clock
from kvd.core.disk_space import DiskSpace
from kvd.core.expiry_timer import ExpiryTimer
from kvd.core.log_writer import Heartbeats
from kvd.core.replicated.followed import NOTHING_AWAITED, Awaited
from kvd.core.replicated.following import Following
from kvd.core.replicated.leading import Confirm, Leading
from kvd.core.replicated.rids import Forwarded
from kvd.core.stats import StoreStats
from kvd.core.watch.hub import Hub
from kvd.core.worker_thread import WorkerThread
from kvd.limits.turns import Turns
from kvd.storage.format.frame import Position
from kvd.storage.index.pending import Pending
from kvd.storage.store import Store
from kvd.v2.commands import Command, Transaction
from kvd.v2.documents.decision import Decide, Replied
from kvd.v2.documents.entries import decide_entries
from kvd.v2.errors import RouteError

# How long a start waits until what ended before it has expired: readers do not see it anyway.
_SETTLE_S = 0.2


class Committer:
    """The queue of commands, and the way of a batch from there to the answers.

    Attributes:
        batch_s: How long batches took, from the queueing of the first command to the answers.
        batch_records: How many records batches had that went to the log.
        responses: What it counts of those that are late, or not logged.
        on_held: Called in the turn after something was queued that the closed gate holds back.
        leading: What goes with batches of a log that several members share; None alone.
        expiry_timer: Its `overdue_at` says when something that has ended may still be there.
    """

    def __init__(
        self,
        *,
        store: Store,
        hub: Hub,
        observers: tuple[Observer, ...],
        stats: StoreStats,
        clock: Clock,
        sync: WorkerThread[Position],
        append: Callable[[Pending, Callable[[Position | BaseException], None]], bool],
        wait: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
        on_fatal: Callable[[BaseException], None],
        on_flush: Callable[[], None],
        render: Render = prepare_nothing,
        respond: Respond | None = None,
        slow_s: float = 1.0,
        turns: Turns | None = None,
        may_decide: bool = True,
        decide_document: Decide = decide_entries,
        confirm: Confirm | None = None,
    ) -> None:
        """Begin; without `may_decide` the gate is closed until `open_gate`.

        With `confirm` the log is that of several members; `append` may then end with `Aborted`.
        """
        self._store = store
        self._state = store.state
        self._stats = stats
        self._clock = clock
        self._loop, self._call_soon = loop, loop.call_soon
        self._on_fatal = on_fatal
        self._on_flush = on_flush
        self.responses = Responses(stats)
        self._space = DiskSpace(store)
        self._composer = composer = Composer(store, clock=clock, space=self._space, hub=hub)
        composer.decide_document, self._steps = decide_document, composer.steps
        self._queue, self._documents = composer.queue, composer.documents
        self._raw_ns = clock.raw_ns
        self.flusher = Flusher(
            store, sync, loop, on_fatal=on_fatal, on_flush=self._flushed, on_room=self._go_on
        )
        self._heartbeats = Heartbeats(store, sync, self._space, on_fatal)
        self.expiry_timer = ExpiryTimer(self._state, clock, loop, self._schedule)
        on_abort = partial(self._next, committed=False)
        self._flow = flow = Flow(
            store=store,
            composer=composer,
            hub=hub,
            observers=observers,
            stats=stats,
            clock=clock,
            space=self._space,
            flusher=self.flusher,
            expiry_timer=self.expiry_timer,
            responses=self.responses,
            append=append,
            wait=wait,
            loop=loop,
            on_fatal=on_fatal,
            on_hold=self._hold,
            on_end=self._next,
            on_abort=on_abort,
            render=render,
            respond=respond or self.responses.respond,
            slow_s=slow_s,
        )
        self._begin_batch, self.batch_s = flow.begin, flow.batch_s
        self.batch_records = flow.batch_records
        self.leading = confirm and Leading(confirm, composer, flow, stats, clock)
        self._may_decide = may_decide
        self.on_held: Callable[[], None] | None = None
        # Whether no batch is due or under way, so that one may be scheduled.
        self._is_free = True
        self._stopped = False
        # How many commands the last batch began with.
        self._gathered = 0
        self._ends = Ends(loop)
        self._end_waiting = self._ends.waiting
        self._following = Following(
            flow, self._space, self._ends, self._claim, on_abort=on_abort, on_fatal=on_fatal
        )
        self._turns = turns or Turns(loop)
        self.expiry_timer.arm()
        self._schedule()

    def submit(self, command: Command, done: Done) -> None:
        """Queue a command; `done` gets its event, once that is durable, or its refusal."""
        self._queue.append((command, done, self._raw_ns()))
        if self._is_free:
            self._schedule()

    def forward(self, command: Command | Transaction, done: Done | AllDone, rid: bytes) -> None:
        """Queue what a client of another member requests; its records get the rid."""
        self._composer.expect_forwarded()
        self.submit(command, Forwarded(rid, done))  # type: ignore[arg-type]

    def transact(self, transaction: Transaction, done: AllDone) -> None:
        """Queue a transaction; `done` gets its events, once they are durable, or its refusal."""
        self.submit(transaction, done)  # type: ignore[arg-type]

    def submit_document(self, command: Any, done: Replied, rid: bytes | None = None) -> None:
        """Queue a change of documents; `done` gets its reply once that is durable."""
        if self._stopped:
            done(RouteError(500, "the server has stopped"))
            return
        self._documents.append((command, done if rid is None else Forwarded(rid, done)))
        self._schedule()

    def observe_documents(self, observer: Callable[[], None]) -> None:
        """Call an observer when documents may have changed, before the responses to that."""
        self._flow.document_observers.append(observer)

    def look_at_clock(self) -> None:
        """Log the offset of the machine's clock if that was stepped; call it now and then."""
        self._composer.steps.look(self._store.applied.clock_offset_ns)
        # Without room it goes along with the next batch that finds some.
        if self._composer.has_step:
            self._schedule()

    @property
    def syncing_s(self) -> float:
        """The seconds for which the batch in flight has been there; 0 if there is none."""
        return self._flow.syncing_s

    @property
    def no_room(self) -> str:
        """Why users' writes are refused, or nothing."""
        refusal = self._space.refusal or self._space.limit
        return refusal.cause.decode() if refusal is not None else ""

    @property
    def waiting(self) -> int:
        """The number of queued commands."""
        return self._composer.waiting

    def fail(self, error: BaseException) -> None:
        """End the process, on damage that a reader has met."""
        self._on_fatal(error)

    def tick(self) -> None:
        """Run about once a second: check free space, write a heartbeat frame if the log is idle.

        A heartbeat gives the last frame a successor, which tells damage to that frame from a write
        that never finished.
        """
        self._space.poll()
        self.flusher.tick()
        self._fold()
        if not (self._is_free and self._may_decide):
            return
        if self.expiry_timer.is_overdue:
            self._schedule()
        if self._space.refusal is not None:
            self._schedule()  # the next batch, even an empty one, asks the disk
        elif self.leading is None:  # else the log of all members tells where it ends
            self._heartbeats.beat_if_idle()

    async def drain(self) -> None:
        """Wait until every queued command has been answered, or the gate holds the rest back."""
        while not self._is_drained:
            await self._ends.next()

    @property
    def _is_drained(self) -> bool:
        waits = self._queue or self._documents or self._composer.has_step
        return not (self._may_decide and waits) if self._is_free else self._stopped

    async def settle(self) -> None:
        """Expire what ended while the server was down, as far as that takes no time."""
        committed = self._may_decide
        until = monotonic() + _SETTLE_S
        while committed and monotonic() < until and self.expiry_timer.is_overdue:
            self._schedule()
            committed = await self._ends.next()

    async def follow(self, payload: bytes, awaited: Awaited = NOTHING_AWAITED) -> bool:
        """Apply the payload of a batch of another member, as `Following.follow`."""
        return await self._following.follow(payload, awaited)

    def _claim(self) -> bool:
        """Take the place of the next batch behind the closed gate, if it is free."""
        is_claimed = self._is_free and not (self.flusher.holds and self._state.is_full)
        if is_claimed:
            assert not self._may_decide
            self._is_free = False
        return is_claimed

    def open_gate(self) -> None:
        """Let batches begin: what has waited makes the first. Not after `stop`.

        No batch gets an earlier time than those that were followed.
        """
        if self._clock.raise_floor(self._store.applied.time_ns):
            self.expiry_timer.clock_moved()
        self._may_decide = not self._stopped
        self._schedule()

    def close_gate(self) -> None:
        """Let no batch begin until `open_gate`; `drain` waits for the end of one under way."""
        self._may_decide = False

    def take_held(self) -> tuple[list[Queued], list[tuple[Any, Replied]]]:
        """Return the commands and documents that are queued: they will not be decided here."""
        held = [*self._queue], [*self._documents]
        self._queue.clear()
        self._documents.clear()
        return held

    def _hold_back(self) -> None:
        """Begin no batch: the gate is closed."""
        self._is_free = not self._stopped
        self._ends.notify(committed=False)
        if self.on_held is not None and (self._queue or self._documents):
            self.on_held()

    def stop(self) -> None:
        """Stop accepting work. Pending expirations and garbage are left to the next start."""
        self._stopped, self._is_free = True, False
        self.close_gate()
        self._following.stop()
        self._ends.notify(committed=False)
        self.flusher.stop()
        self.expiry_timer.stop()

    def _schedule(self) -> None:
        # In the next turn of the loop: all that this turn reads from its sockets is one batch.
        if self._is_free:
            self._is_free = False
            self._call_soon(self._run)
            self._turns.hurry()

    def _run(self, seen: int = 0, *, is_probed: bool = False) -> None:
        if not self._may_decide:
            self._hold_back()
            return
        waiting = len(self._queue)
        if waiting < self._gathered and waiting > seen * 5 >> 2 and not is_probed:
            # The clients of the last batch send their next commands one after another: while each
            # turn brings a quarter more, that costs less than a sync for every few of them.
            self._call_soon(self._run, waiting)
            return
        self._gathered = waiting
        try:
            # While there is no room, find out first whether that is still so.
            if self._space.refusal is None or is_probed or self._store.is_low_on_space():
                self._begin_batch()
            else:
                self._heartbeats.probe(partial(self._run, is_probed=True))
        except BaseException as error:  # noqa: BLE001 -- a bug or damage: nothing may go on
            self._on_fatal(error)

    def _hold(self) -> None:
        """Wait with the next batch until the index has taken what is beyond it."""
        self._is_free = True
        if self.flusher.refusal is not None:
            # The index has no room, and nothing done here makes any.
            self._composer.refuse_all(str(self.flusher.refusal), self._stats)
            self._next(committed=False)

    def _flushed(self) -> None:
        self._fold()
        self._on_flush()

    def _fold(self) -> None:
        self.batch_s.fold()
        self.batch_records.fold()
        self._stats.fold()

    def _next(self, *, committed: bool = True) -> None:
        if self._end_waiting:
            self._ends.notify(committed=committed)
        self._is_free = not self._stopped
        if (
            self._queue
            or self._documents
            or (self._steps.offset_ns is not None and self._composer.has_step)
        ):
            self._schedule()
        else:
            self._turns.calm()

    def _go_on(self) -> None:
        """Go on, now that the index has taken what it had refused."""
        if not self._may_decide:
            self._ends.notify(committed=False)
        self._schedule()

"""The order of a write: decide, append to the log, sync, make visible, publish, respond.

One batch at a time. While it is being synced the loop goes on reading requests, serving reads and
queueing the next batch, so that a batch is as large as the disk is slow.

Invariants:

- No response and no event, be it a success or a refusal decided on the same state, leaves before
  the batch is durable. What can be prepared for them is prepared while the disk is at work. A batch
  without a change needs no frame: all that it has seen is durable already.
- If a batch is aborted, all its members get the same error with index 0, the refused ones too, and
  its indexes are reused: no client has seen them.
- Once a frame is durable its batch *is* committed. Nothing can fail any more, because the state is
  ahead of the index, in memory (storage/index/state.py). The index follows in parallel
  (flusher.py); batches wait for it if it has refused too much, or while a large flush is running.
- Without room for what users write (disk_space.py) commands are refused one by one, and each batch
  checks the disk again before that. Removals, expiry and reads go on.
- No command sees a key that had ended when the command was queued (batch/expirations.py), and
  readers do not see it either (`ExpiryTimer.overdue_at`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sized
from time import monotonic
from typing import Protocol

from kvd.core.batch.composer import Composer
from kvd.core.batch.responses import Responses
from kvd.core.batch.round import AllDone, Done, Render, Round, Tell, prepare_nothing
from kvd.core.clock import Clock
from kvd.core.disk_space import DiskSpace
from kvd.core.expiry_timer import ExpiryTimer
from kvd.core.flusher import Flusher
from kvd.core.histogram import Noted
from kvd.core.log_writer import Heartbeats
from kvd.core.stats import StoreStats
from kvd.core.watch.hub import Hub
from kvd.core.worker_thread import SyncThread
from kvd.limits.turns import Turns
from kvd.storage.errors import LogFull
from kvd.storage.format.frame import Position
from kvd.storage.index.history import LateEvent
from kvd.storage.index.pending import Pending
from kvd.storage.store import Store
from kvd.v2.commands import Command, Transaction
from kvd.v2.documents.decision import Decide, Replied
from kvd.v2.errors import RAFT_INTERNAL, ApiError, RouteError

log = logging.getLogger(__name__)

# How long a start waits until what ended before it has expired: readers do not see it anyway.
_SETTLE_S = 0.2
_RETRY_S = 0.5


class Observer(Protocol):
    """Gets the events of each batch once it is visible, before its commands are answered."""

    @property
    def kept(self) -> Sized:
        """Its entries: while there are none, `observe` is not called."""

    def observe(self, events: list[LateEvent]) -> None:
        """Take note of what a batch has changed."""


class Committer:
    """The queue of commands, and the way of a batch from there to the answers.

    Attributes:
        batch_s: How long batches took, from the queueing of the first command to the answers.
        batch_records: How many records batches had that went to the log.
        responses: What it counts of those that are late, or not logged.
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
        sync: SyncThread[Position],
        append: Callable[[Pending, Callable[[Position | BaseException], None]], bool],
        wait: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
        on_fatal: Callable[[BaseException], None],
        on_flush: Callable[[], None],
        render: Render = prepare_nothing,
        tell: Tell | None = None,
        slow_s: float = 1.0,
        turns: Turns | None = None,
    ) -> None:
        self._store = store
        self._wal = store.wal
        self._state = store.state
        self._hub = hub
        self._observers = observers
        self._stats = stats
        self._clock = clock
        self._sync = sync
        self._encode = store.journal.encode
        self._append = append
        self._wait = wait
        self._render = render
        self._loop = loop
        self._on_fatal = on_fatal
        self._on_flush = on_flush
        self._document_observers: list[Callable[[], None]] = []
        self._slow_s = slow_s
        self.responses = Responses(stats)
        self._tell = tell or self.responses.tell
        self._space = DiskSpace(store)
        self._composer = composer = Composer(store, clock=clock, space=self._space, hub=hub)
        self._compose, self._steps = composer.compose, composer.steps
        self._queue, self._documents = composer.queue, composer.documents
        self._raw_ns = clock.raw_ns
        self.flusher = Flusher(
            store, sync, loop, on_fatal=on_fatal, on_flush=self._flushed, on_room=self._schedule
        )
        self._heartbeats = Heartbeats(store, sync, self._space, on_fatal)
        # The batch in flight to the disk, if any.
        self._round: Round | None = None
        # Whether no batch is due or under way, so that one may be scheduled.
        self._is_free = True
        self._stopped = False
        self.expiry_timer = ExpiryTimer(self._state, clock, loop, self._schedule)
        self._ends: list[asyncio.Future[bool]] = []
        self.batch_s = Noted()
        self.batch_records = Noted(tuple(2**k for k in range(11)))
        self._turns = turns or Turns(loop)
        self.expiry_timer.arm()
        self._schedule()

    def submit(self, command: Command, done: Done) -> None:
        """Queue a command; `done` gets its event, once that is durable, or its refusal."""
        self._queue.append((command, done, self._raw_ns()))
        if self._is_free:
            self._schedule()

    def transact(self, transaction: Transaction, done: AllDone) -> None:
        """Queue a transaction; `done` gets its events, once they are durable, or its refusal."""
        self.submit(transaction, done)  # type: ignore[arg-type]

    def submit_document(self, decide: Decide, done: Replied) -> None:
        """Queue a change of documents; `done` gets its reply once that is durable."""
        if self._stopped:
            done(RouteError(500, "the server has stopped"))
            return
        self._documents.append((decide, done))
        self._schedule()

    def observe_documents(self, observer: Callable[[], None]) -> None:
        """Call an observer when documents may have changed, before the responses to that."""
        self._document_observers.append(observer)

    def look_at_clock(self) -> None:
        """Log the offset of the machine's clock if that was stepped; call it now and then."""
        self._composer.steps.look(self._store.applied.clock_offset_ns)
        # Without room it goes along with the next batch that finds some.
        if self._composer.has_step:
            self._schedule()

    @property
    def syncing_s(self) -> float:
        """The seconds for which the batch in flight has been there; 0 if there is none."""
        return 0.0 if self._round is None else (self._clock.now_ns() - self._round.time_ns) / 1e9

    @property
    def no_room(self) -> str:
        """Why users' writes are refused, or nothing."""
        refusal = self._space.refusal
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
        if not self._is_free:
            return
        if self.expiry_timer.is_overdue:
            self._schedule()
        if self._space.refusal is not None:
            self._schedule()  # the next batch, even an empty one, asks the disk
        else:
            self._heartbeats.beat_if_idle()

    async def drain(self) -> None:
        """Wait until every queued command has been answered."""
        while not self._is_free or self._queue or self._documents or self._composer.has_step:
            await self._batch_end()

    async def settle(self) -> None:
        """Expire what ended while the server was down, as far as that takes no time."""
        committed = True
        until = monotonic() + _SETTLE_S
        while committed and monotonic() < until and self.expiry_timer.is_overdue:
            self._schedule()
            committed = await self._batch_end()

    def _batch_end(self) -> asyncio.Future[bool]:
        """Return a future of the next batch's end: whether it was committed."""
        end: asyncio.Future[bool] = self._loop.create_future()
        self._ends.append(end)
        return end

    def stop(self) -> None:
        """Stop accepting work. Pending expirations and garbage are left to the next start."""
        self._stopped, self._is_free = True, False
        self.flusher.stop()
        self.expiry_timer.stop()

    def _schedule(self) -> None:
        # In the next turn of the loop: all that this turn reads from its sockets is one batch.
        if self._is_free:
            self._is_free = False
            self._loop.call_soon(self._run)
            self._turns.hurry()

    def _run(self) -> None:
        if self._stopped:
            return
        try:
            # While there is no room, find out first whether that is still so.
            if self._space.refusal is None or self._store.is_low_on_space():
                self._begin_batch()
            else:
                self._heartbeats.probe(self._begin_batch)
        except BaseException as error:  # noqa: BLE001 -- a bug or damage: nothing may go on
            self._on_fatal(error)

    def _begin_batch(self) -> None:
        if self.flusher.holds and self._state.is_full:
            # It begins when the index has taken what is beyond it.
            self._is_free = not self._stopped
            if self.flusher.refusal is not None:
                # The index has no room, and nothing done here makes any.
                self._composer.refuse_all(str(self.flusher.refusal), self._stats)
                self._next(committed=False)
            return
        round_, records = self._compose()
        pending = round_.pending
        if not records:
            pending.end()
            self._finish(round_)
            return
        self._round = round_
        self._encode(pending, records, round_.time_ns)
        if self._append(pending, self._appended):
            self._render(round_)  # while the disk is at work
            self._wait()
        if self._state.wants_flush:
            self.flusher.beside_batch()

    def _appended(self, outcome: Position | BaseException) -> None:
        try:
            round_ = self._round
            assert round_ is not None
            self._round = None
            if type(outcome) is not Position:
                self._failed(round_, outcome)
                return
            if round_.removals:
                round_.removals.note_late(self._state)
            self._state.merge(round_.pending, outcome)
            if round_.pays:
                self._store.unlogged_start = ()
            self.batch_records.note(round_.pending.records)
            if self._state.is_heavy:
                self.flusher.on_thread()
            self._finish(round_)
        except BaseException as error:  # noqa: BLE001 -- a bug or damage: nothing may go on
            self._on_fatal(error)

    def _failed(self, round_: Round, outcome: Position | BaseException) -> None:
        assert isinstance(outcome, BaseException)
        if isinstance(outcome, LogFull):
            self._space.enter(outcome)
            assert self._space.refusal is not None
            self._refuse(round_, self._space.refusal)
            return
        # Whether the batch is durable is unknown, and a second fdatasync must not decide it: that
        # one succeeds although the data is lost.
        unknown = ApiError(RAFT_INTERNAL, b"outcome unknown: the log could not be synced")
        round_.answer_all(unknown)
        self._on_fatal(outcome)

    def _finish(self, round_: Round) -> None:
        """Publish events and send responses: the batch is durable, and visible."""
        # First: a client that has its response may send a command on what ends at once.
        if self._state.due_ns != self.expiry_timer.armed_ns:
            self.expiry_timer.arm()
        events = round_.pending.events
        for observer in self._observers:
            if observer.kept:
                observer.observe(events)
        if self._hub.requests:
            removed = round_.removed
            self._hub.publish([(event, removed.get(event[0][1], [])) for event, _ in events])
        took = (self._raw_ns() - round_.queued) / 1e9
        if expired := self._tell(round_, took):
            self._stats.expirations += expired
        if round_.replies:
            self.responses.reply(round_, self._document_observers)
        self.batch_s.note(took)
        if took > self._slow_s:
            self.responses.note_slow(len(round_.answers), took)
        self._next()
        if self._state.has_garbage:
            self.flusher.free()

    def _refuse(self, round_: Round, refusal: ApiError) -> None:
        self.responses.abort(round_, refusal)
        # An expiry that found no room tries again, but not at once.
        self._loop.call_later(_RETRY_S, self.expiry_timer.arm)
        self._next(committed=False)

    def _flushed(self) -> None:
        self._fold()
        self._on_flush()

    def _fold(self) -> None:
        self.batch_s.fold()
        self.batch_records.fold()
        self._stats.fold()

    def _next(self, *, committed: bool = True) -> None:
        if self._ends:
            ends, self._ends = self._ends, []
            for end in ends:
                if not end.done():
                    end.set_result(committed)
        self._is_free = not self._stopped
        if (
            self._queue
            or self._documents
            or (self._steps.offset_ns is not None and self._composer.has_step)
        ):
            self._schedule()
        else:
            self._turns.calm()

"""Decide, perform, log, commit, publish, answer: the one place that knows this order.

One batch at a time. While it is being synced, on its own thread, the loop goes on reading requests,
answering reads and queueing the next batch, so that a batch is as large as the disk is slow.

Invariants:

- Nobody is told of anything, be it a success, a refusal decided on the same state, or an event,
  before `append` has returned for the batch. A batch without a change needs no frame: all that it
  has seen is durable already.
- When a batch is aborted all its members get the same error with index 0, the refused ones too,
  and the indexes it took are given again: nobody was told them.
- Once a frame is durable its batch *is* committed: nothing can fail any more, because the state is
  ahead of the index, in memory (storage/index/state.py). The index is brought up to date beside the
  batches (flusher.py); they wait for it where it has refused too much, or where it takes long.
- Without room for what users write (disk_space.py) they are refused one by one, and each batch asks
  the
  disk anew before it does so. Removals, expiry and reads go on.
- What had expired when a command came goes before it, in the order of expirations; a command that
  came before a key's end finds the key. A batch takes but so many expirations, so that commands
  need not wait for all of many: of what is left, that alone goes before its turn which stands in a
  command's way. So no command sees a key that had ended when it came, and readers are shown none
  either (`overdue_at`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence, Sized
from functools import partial
from time import monotonic
from typing import Any, Protocol, TypeVar

from kvd.core.clock import STEP_NS, Clock
from kvd.core.disk_space import Space
from kvd.core.flusher import Flusher
from kvd.core.histogram import Noted
from kvd.core.stats import StoreStats
from kvd.core.watch.hub import Hub
from kvd.core.worker_thread import SyncThread
from kvd.limits.turns import Turns
from kvd.logs import SLOW_QUIET_S, Rarely
from kvd.storage.errors import LogFull
from kvd.storage.format.event import Event
from kvd.storage.format.frame import Position
from kvd.storage.format.node import Node
from kvd.storage.format.records import (
    REMOVALS,
    Change,
    ClockOffset,
    Entry,
    Record,
    encode_change,
    encode_record,
)
from kvd.storage.index.history import LateEvent
from kvd.storage.index.pending import Pending
from kvd.storage.store import Store
from kvd.v2.commands import Command, CompareAndDelete, CompareAndSwap, Delete, Transaction
from kvd.v2.documents.decision import Decide, Replied, Reply
from kvd.v2.errors import INVALID_FORM, RAFT_INTERNAL, ApiError, RouteError
from kvd.v2.paths import is_below
from kvd.v2.rules import RULES, Nodes, SeveralChanges, decide_all, expire

log = logging.getLogger(__name__)

_Told = TypeVar("_Told")
Outcome = Event | ApiError
Done = Callable[[Outcome], None]
Answers = list[tuple[Done, Command, Outcome]]
"""What becomes of the commands of a batch, and what gets it."""
Tell = Callable[[Answers, list[LateEvent], float], int]
"""Counts what has become of commands and gives it to who asked; see `Committer.tell`."""
AllDone = Callable[[list[Event] | ApiError], None]
_Queued = tuple[Any, Callable[[Any], None], int]
"""A command with its `Done`, or a transaction with its `AllDone`, and the clock's `raw_ns` when it
came."""

# A batch closes at so many records or bytes of them; a larger command goes alone.
BATCH_RECORDS_MAX = 1000
BATCH_BYTES_MAX = 4 << 20
# And at so many bytes of keys, whether they make records or not: a key of thousands of components
# takes 20 ms to be decided and to be performed, and others would wait for a thousand of these.
_BATCH_KEY_BYTES_MAX = 32 << 10
# It is the components that cost: each counts for so many bytes more, of long keys and once no more
# than so much is left. (They are not counted in small batches, to spare a call for each command.)
_BYTES_PER_COMPONENT = 8
_SHORT_KEY_BYTES = 512
_UNCOUNTED_KEY_BYTES = 24 << 10
# What a payload holds beside its records: the envelope and the heads of two arrays.
_ENVELOPE_BYTES_MAX = 128
# How many expirations a batch takes: about ten milliseconds; fewer while commands wait.
_EXPIRED_MAX = 1000
_EXPIRED_BESIDE_COMMANDS_MAX = 300
# How many children that have ended are passed over in search of one that has not, in one batch.
_ENDED_CHILDREN_MAX = 2000
# How long a start waits until what ended before it is gone: readers are not shown it anyway.
_SETTLE_S = 0.2
# What the record of an expiration holds beside the path.
_EXPIRY_BYTES_MAX = 40
_RETRY_S = 0.5
REMOVING = (Delete, CompareAndDelete)
REPLACED_BYTES_MAX = 16 << 20
"""Bytes of the values that one transaction may replace or remove: it is answered with them."""
TRANSACTION_TOO_LARGE = "transaction_too_large"
# What is refused of a transaction is counted as this, unless it is an operation.
_CONDITION = CompareAndSwap(b"", b"", None, 0)


# A time that never comes, in nanoseconds.
_NEVER = 1 << 64


class Observer(Protocol):
    """Gets the events of each batch once it is visible, before its commands are answered."""

    @property
    def kept(self) -> Sized:
        """What it keeps up to date: while that is empty, it is given nothing."""

    def observe(self, events: list[LateEvent]) -> None:
        """Take note of what a batch has changed."""


class _NotKnownYet(Exception):
    """Whether a directory has children that have not ended would take too long to find out."""


class _NoRoom(Exception):
    """A record fits nowhere, or there is no room on the disk: no refusal by the state."""

    def __init__(self, refusal: ApiError) -> None:
        super().__init__()
        self.refusal = refusal


class _NodesAt:
    """The nodes as a command sees them that came when some had ended that are still there.

    None of them stands in its way any more.
    """

    def __init__(self, pending: Pending, now_ns: int) -> None:
        self.find = pending.find
        self.obstacle = pending.obstacle
        self._pending = pending
        self._now_ns = now_ns

    def has_children(self, dir_id: int) -> bool:
        """Return whether a directory has a child that has not ended.

        Raises:
            _NotKnownYet: those that have are too many to look at.
        """
        known = self._pending.has_living_children(dir_id, self._now_ns, _ENDED_CHILDREN_MAX)
        if known is None:
            raise _NotKnownYet
        return known


class _Round:
    """One batch on its way to the disk, and all who are to be told of it.

    Attributes:
        pending: What it changes, and its events.
        time_ns: When it began, on the store's clock.
        queued: The clock's `raw_ns` when the first of its commands was queued.
        answers: What is told to whom.
        replies: What is told to those who change something beside the keys.
        removed: By a directory's removal, by its index, the watched paths that it took along.
        asked: By the same, the watched paths of which that is known.
        pays: Whether it logs what the start had no room for.
    """

    # What is rare stands here until it comes.
    replies: Sequence[tuple[Callable[[Any], None], object]] = ()
    removed: dict[int, list[bytes]] = {}  # noqa: RUF012 -- as the next one: never changed here
    asked: dict[int, set[bytes]] = {}  # noqa: RUF012
    pays = False

    def __init__(self, pending: Pending, time_ns: int, queued: int) -> None:
        self.pending = pending
        self.time_ns = time_ns
        self.queued = queued
        self.answers: Answers = []


class Committer:
    """The queue of commands, and the way of a batch from there to the answers.

    Attributes:
        batch_s: How long batches took, from the queueing of the first command to the answers.
        batch_records: How many records batches had that went to the log.
        aborted: How many batches were not logged, for want of room.
        slow: How many commands were answered later than `slow_s`.
        overdue_at: When the clock's `raw_ns` reaches it, something that has ended is still there.
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
        append: Callable[[Pending, Callable[[Position | BaseException], None]], None],
        loop: asyncio.AbstractEventLoop,
        on_fatal: Callable[[BaseException], None],
        on_flush: Callable[[], None],
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
        self._append = append
        self._loop = loop
        self._on_fatal = on_fatal
        self._on_flush = on_flush
        self.on_entries: Callable[[], None] = lambda: None
        """Called when something beside the keys may have changed, before anybody is told."""
        self.tell: Tell = self._tell
        """Tells those who wrote of a batch that is committed, with its events and how many seconds
        it took; returns how many of them succeeded."""
        # Each command with the clock's `raw_ns` when it came: what had ended by then is not there.
        self._queue: deque[_Queued] = deque()
        self._raw_ns = clock.raw_ns
        self._others: deque[tuple[Decide, Replied]] = deque()
        self._clock_offset_ns: int | None = None
        self._told_offset_ns = store.applied.clock_offset_ns
        self._record_bytes_max = self._wal.max_payload - _ENVELOPE_BYTES_MAX
        self._batch_bytes_max = min(BATCH_BYTES_MAX, self._record_bytes_max)
        self._space = Space(store)
        self.flusher = Flusher(
            store, sync, loop, on_fatal=on_fatal, on_flush=self._flushed, on_room=self._schedule
        )
        self._beaten = self._wal.position
        # The batch that is on its way to the disk, while there is one.
        self._round: _Round | None = None
        # Whether no batch is due or under way, so that one may be scheduled.
        self._is_free = True
        self._stopped = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self.overdue_at = _NEVER
        self._ends: list[asyncio.Future[bool]] = []
        self.batch_s = Noted()
        self.batch_records = Noted(tuple(2**k for k in range(11)))
        self.aborted = 0
        self.slow = 0
        self._slow_s = slow_s
        self._turns = turns or Turns(loop)
        self._may_warn = Rarely(SLOW_QUIET_S)
        self._arm()
        self._schedule()

    def submit(self, command: Command, done: Done) -> None:
        """Queue a command; `done` gets its event or its refusal once that may be told."""
        self._queue.append((command, done, self._raw_ns()))
        if self._is_free:
            self._schedule()

    def transact(self, transaction: Transaction, done: AllDone) -> None:
        """Queue a transaction; `done` gets its events or its refusal once that may be told."""
        self.submit(transaction, done)  # type: ignore[arg-type]

    def administer(self, decide_entries: Decide, done: Replied) -> None:
        """Queue a change beside the keys; `done` gets its reply once that may be told."""
        if self._stopped:
            done(RouteError(500, "the server has stopped"))
            return
        self._others.append((decide_entries, done))
        self._schedule()

    def look_at_clock(self) -> None:
        """Log the offset of the machine's clock if that was stepped; call it now and then."""
        logged_ns = self._store.applied.clock_offset_ns
        if logged_ns != self._told_offset_ns:
            log.warning(
                "the system's clock was stepped by %.1f s: keys live as long as before, their "
                "expirations are shown by the new time",
                (logged_ns - self._told_offset_ns) / 1e9,
            )
            self._told_offset_ns = logged_ns
        self._clock_offset_ns = self._clock.stepped_to(logged_ns)
        # Without room it goes along with the next batch that finds some.
        if self._has_step:
            self._schedule()

    @property
    def _has_step(self) -> bool:
        """Whether a step of the machine's clock is to be logged now."""
        return self._clock_offset_ns is not None and self._space.refusal is None

    @property
    def syncing_s(self) -> float:
        """For how many seconds a batch has been on its way to the disk."""
        return 0.0 if self._round is None else (self._clock.now_ns() - self._round.time_ns) / 1e9

    @property
    def no_room(self) -> str:
        """Why users' writes are refused, or nothing."""
        refusal = self._space.refusal
        return refusal.cause.decode() if refusal is not None else ""

    @property
    def index_waits(self) -> bool:
        """Whether changes that are durable wait for room in the index."""
        return self.flusher.waits

    @property
    def waiting(self) -> int:
        """How many commands are queued."""
        return len(self._queue) + len(self._others)

    def fail(self, error: BaseException) -> None:
        """End the process: somebody has met damage while reading."""
        self._on_fatal(error)

    def tick(self) -> None:
        """Do what time asks for, about once a second: look at the space, let the log's heart beat.

        A frame that nothing has followed for a second gets an empty one behind it, so that damage
        to it can be told from a write that never finished.
        """
        self._space.look()
        self.flusher.tick()
        self._fold()
        if not self._is_free:
            return
        if self._raw_ns() >= self.overdue_at:
            self._schedule()  # no timer of the loop runs while the machine is suspended
        position = self._wal.position
        if self._space.refusal is not None:
            self._schedule()  # the next batch, even an empty one, asks the disk
        elif position != self._beaten or self._wal.refusal is not None:
            # Behind this job the thread also tries again to prepare the next segment.
            self._beaten = position
            self._sync.run(
                self._store.heartbeat,
                lambda outcome: self._step(partial(self._beat, outcome)),
            )

    async def drain(self) -> None:
        """Wait until every queued command has been answered."""
        while not self._is_free or self._queue or self._others or self._has_step:
            await self._batch_end()

    async def settle(self) -> None:
        """Expire what ended while the server was down, as far as that takes no time."""
        committed = True
        until = monotonic() + _SETTLE_S
        while committed and monotonic() < until and self._raw_ns() >= self.overdue_at:
            self._schedule()
            committed = await self._batch_end()

    def _batch_end(self) -> asyncio.Future[bool]:
        """Return a future of the next batch's end: whether it was committed."""
        end: asyncio.Future[bool] = self._loop.create_future()
        self._ends.append(end)
        return end

    def stop(self) -> None:
        """Begin nothing any more; what is left to expire or to free waits for the next start."""
        self._stopped, self._is_free = True, False
        self.flusher.stop()
        if self._timer is not None:
            self._timer.cancel()

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
                self._sync.run(
                    partial(self._store.heartbeat, probe=True),
                    lambda outcome: self._step(partial(self._probed, outcome)),
                )
        except BaseException as error:  # noqa: BLE001 -- a bug or damage: nothing may go on
            self._on_fatal(error)

    def _step(self, step: Callable[[], object]) -> None:
        """Run what follows on a job of the sync thread."""
        try:
            step()
        except BaseException as error:  # noqa: BLE001 -- as above
            self._on_fatal(error)

    def _probed(self, outcome: Position | BaseException) -> None:
        if self._beat(outcome):
            self._space.found()
        self._begin_batch()

    def _beat(self, outcome: Position | BaseException) -> bool:
        """Take note of a heartbeat's outcome; return whether it was written."""
        if isinstance(outcome, LogFull):
            self._space.refused(outcome)
            return False
        if isinstance(outcome, BaseException):
            raise outcome
        return True

    def _begin_batch(self) -> None:
        if self.flusher.holds and self._state.is_full:
            # It begins when the index has taken what is beyond it.
            self._is_free = not self._stopped
            if self.flusher.refusal is not None:
                self._refuse_queue(str(self.flusher.refusal))
            return
        queue = self._queue
        pending = Pending(self._state)
        time_ns = self._clock.now_ns()
        round_ = _Round(pending, time_ns, queue[0][2] if queue else self._raw_ns())
        records: list[bytes] = []
        if self._clock_offset_ns is not None or self._store.owed:
            records = self._log_state(round_)
        left = _EXPIRED_BESIDE_COMMANDS_MAX if queue else _EXPIRED_MAX
        if 0 < pending.due_ns <= time_ns:
            # A command that came before a key's end finds it, however long it has waited.
            until_ns = self._clock.at(queue[0][2]) if queue else time_ns
            records += self._expire(round_, until_ns, left)
            left -= len(records)
        if self._others:
            records += self._decide_others(round_, sum(map(len, records)))
        if queue:
            self._decide_commands(round_, records, left)
        if not records:
            pending.end()
            self._finish(round_)
            return
        self._round = round_
        self._store.encode(pending, records, time_ns)
        self._append(pending, self._appended)
        if self._state.wants_flush:
            self.flusher.beside_batch()

    def _put_off(self, round_: _Round, later: list[_Queued]) -> None:
        """Let commands wait for the next batch."""
        refusal = self._space.refusal
        if refusal is None:
            self._queue.extendleft(reversed(later))
        else:  # nothing can expire until there is room
            round_.answers += [(done, _counted(command), refusal) for command, done, _ in later]

    def _decide_commands(  # noqa: C901, PLR0912, PLR0915 -- a call less for each command, or batch
        self, round_: _Round, records: list[bytes], left: int
    ) -> None:
        """Decide what is queued, behind some records, and so many more expirations."""
        pending, queue, answers = round_.pending, self._queue, round_.answers
        time_ns, room = round_.time_ns, self._batch_bytes_max
        expired = size = sum(map(len, records)) if records else 0
        # Beyond that, a record has to be looked at.
        if self._space.refusal is not None or self._wal.refusal is not None:
            room = min(room, self._space.room)
        # A command that came then or later may find what has ended.
        overdue_at = self._clock.raw_of(pending.due_ns) if pending.due_ns else _NEVER
        later: list[_Queued] = []
        keys_left = _BATCH_KEY_BYTES_MAX
        for _ in range(min(len(queue), BATCH_RECORDS_MAX - len(records))):
            if keys_left <= 0:
                break
            queued = command, done, came = queue.popleft()
            key_bytes = len(command[0])
            keys_left -= key_bytes
            if key_bytes > _SHORT_KEY_BYTES or keys_left < _UNCOUNTED_KEY_BYTES:
                keys_left -= _BYTES_PER_COMPONENT * command[0].count(b"/")
            nodes: Nodes = pending
            if came >= overdue_at:
                if self._is_too_long_behind(records, size + len(command[0])):
                    queue.appendleft(queued)
                    break
                gone = self._make_way(round_, command, came, left, size)
                left -= len(gone)
                records += gone
                size += sum(map(len, gone))
                nodes = _NodesAt(pending, self._clock.at(came))
            try:
                change = RULES[type(command)](nodes, command, pending.index + 1, time_ns)
                record = encode_change(change)
                grown = size + len(record)
                if grown + pending.replaced > room and not self._fits(
                    command, record, size, pending.replaced, is_first=size == expired
                ):
                    queue.appendleft(queued)
                    break
            except ApiError as refusal:
                refusal.index = pending.index
                answers.append((done, command, refusal))
                continue
            except _NoRoom as no_room:
                answers.append((done, command, no_room.refusal))
                continue
            except _NotKnownYet:
                later.append(queued)
                continue
            except SeveralChanges:
                if not self._decide_transaction(round_, nodes, queued, records, later):
                    queue.appendleft(queued)
                    break
                size = sum(map(len, records))
                if len(records) >= BATCH_RECORDS_MAX:
                    break
                continue
            size = grown
            records.append(record)
            if change[4] and change[0] in REMOVALS:
                self._note_removed(round_, change)
            answers.append((done, command, pending.change(change, time_ns, record)))
        if later:
            self._put_off(round_, later)

    def _fits(
        self, command: Command, record: bytes, size: int, replaced: int, *, is_first: bool
    ) -> bool:
        """Return whether a record fits behind a batch of `size` bytes, which replaces others.

        Raises:
            _NoRoom: it fits nowhere, or there is no room on the disk.
        """
        if size + replaced >= self._batch_bytes_max:
            return False
        if not isinstance(command, REMOVING):
            if len(record) > self._record_bytes_max:  # a limit of small segments only
                raise _NoRoom(ApiError(INVALID_FORM, b"http: POST too large"))
            no_room = self._space.check(size + len(record))
            if no_room is not None:
                raise _NoRoom(no_room)
        grown = size + len(record)
        # A removal is never too large, or what was written under larger segments would stay.
        return (
            grown <= self._batch_bytes_max
            or not size
            or (is_first and grown <= self._record_bytes_max)
        )

    def _decide_transaction(
        self,
        round_: _Round,
        nodes: Nodes,
        queued: _Queued,
        records: list[bytes],
        later: list[_Queued],
    ) -> bool:
        """Decide a transaction behind some records; add its own, or itself to what comes later.

        Returns:
            Whether the batch has room for it.
        """
        transaction, done, _ = queued
        pending, answers = round_.pending, round_.answers
        ops = transaction.ops
        size = sum(map(len, records))
        try:
            changes = decide_all(nodes, transaction, pending.index + 1, round_.time_ns)
            encoded = list(map(encode_record, changes))
            added = sum(map(len, encoded))
            self._check_transaction(nodes, ops, size, added)
        except ApiError as refusal:
            name, number = refusal.place or ("", 0)
            refusal.index = pending.index
            answers.append((done, ops[number] if name == "op" else _CONDITION, refusal))
            return True
        except _NotKnownYet:
            later.append(queued)
            return True
        if size and size + max(added, pending.replaced) > self._batch_bytes_max:
            return False
        events: list[Event] = []
        for command, change, record in zip(ops, changes, encoded, strict=True):
            if change.dir and change.kind in REMOVALS:
                self._note_removed(round_, change)
            events.append(pending.change(change, round_.time_ns, record))
            answers.append((_ignore, command, events[-1]))
        records += encoded
        # Each command is counted; the last one answers.
        if events:
            answers[-1] = (partial(_all_told, done, events), ops[-1], events[-1])
        else:
            round_.replies = [*round_.replies, (partial(_nothing_done, done), None)]
        return True

    def _check_transaction(
        self, nodes: Nodes, ops: Sequence[Command], size: int, added: int
    ) -> None:
        """Refuse a transaction, of records of `added` bytes, that has no room."""
        replaced = (nodes.find(command.key) for command in ops)
        replaced_bytes = sum(len(node.value or b"") for node in replaced if node is not None)
        for what, bytes_, most in (
            ("changes", added, self._batch_bytes_max),
            ("values that they replace", replaced_bytes, REPLACED_BYTES_MAX),
        ):
            if bytes_ > most:
                cause = f"the {what} have {bytes_} bytes, {most} are allowed"
                raise ApiError(INVALID_FORM, cause.encode(), limit=TRANSACTION_TOO_LARGE)
        if not all(isinstance(command, REMOVING) for command in ops):
            no_room = self._space.check(size + added)
            if no_room is not None:
                raise no_room

    def _is_too_long_behind(self, records: list[bytes], size: int) -> bool:
        """Return whether a batch has no room for another expiration."""
        is_long = bool(records) and size + _EXPIRY_BYTES_MAX > self._batch_bytes_max
        return is_long or len(records) >= BATCH_RECORDS_MAX

    def _decide_others(self, round_: _Round, size: int) -> list[bytes]:
        """Decide what is changed beside the keys, as far as a batch of so many bytes takes it."""
        records: list[bytes] = []
        replies: list[tuple[Callable[[Any], None], object]] = []
        round_.replies = replies
        # One that is as large as it may be fits behind this.
        while self._others and size < self._batch_bytes_max // 2:
            decide_entries, done = self._others.popleft()
            try:
                entries, reply = decide_entries(round_.pending)
                encoded = self._encode(entries, size)
            except RouteError as refusal:
                replies.append((done, refusal))
                continue
            replies.append((done, reply))
            records += encoded
            size += sum(map(len, encoded))
            for entry in entries:
                round_.pending.perform(entry, round_.time_ns)
        return records

    def _encode(self, entries: list[Entry], size: int) -> list[bytes]:
        """Return entries as records, which follow `size` bytes of others.

        Raises:
            RouteError: they are too large for the log, or there is no room.
        """
        encoded = [encode_record(entry) for entry in entries]
        added = sum(map(len, encoded))
        if added > self._batch_bytes_max // 2:
            raise RouteError(413, "too large for the log")
        if any(entry.document is not None for entry in entries):
            no_room = self._space.check(size + added)
            if no_room is not None:
                raise RouteError(500, no_room.cause.decode())
        return encoded

    def _log_state(self, round_: _Round) -> list[bytes]:
        """Log what the start of the server had no room for, if there is now, and the clock's step.

        They come first: so what was owed is known by the first record.
        """
        records: list[Record] = []
        if self._space.refusal is None:
            records += self._store.owed
            round_.pays = True
        offset_ns, self._clock_offset_ns = self._clock_offset_ns, None
        # It may have been found while the batch that logs it was on its way.
        if (
            offset_ns is not None
            and abs(offset_ns - round_.pending.base.clock_offset_ns) >= STEP_NS
        ):
            records.append(ClockOffset(offset_ns))
        for record in records:
            round_.pending.perform(record, round_.time_ns)
        return [encode_record(record) for record in records]

    def _make_way(
        self, round_: _Round, command: Command | Transaction, came: int, left: int, size: int
    ) -> list[bytes]:
        """Expire what had ended when a command came, behind a batch of `size` bytes.

        Where that is more than the `left` that the batch takes, at least what stands in the way of
        the command. Returns the records.
        """
        came_ns = self._clock.at(came)
        size += len(command[0]) + _EXPIRY_BYTES_MAX
        records = self._expire(round_, came_ns, left, size) if left > 0 else []
        several = (*command.when, *command.ops) if isinstance(command, Transaction) else (command,)
        for one in several:
            ended = round_.pending.first_ended(one.key, came_ns)
            if ended is not None:
                self._expire_node(round_, *ended, records)
        return records

    def _expire(self, round_: _Round, until_ns: int, left: int, size: int = 0) -> list[bytes]:
        """Expire what has ended, in order, as far as a batch takes it; return the records."""
        pending = round_.pending
        records: list[bytes] = []
        due, next_ns = pending.due(until_ns, left)
        for path, node in due:
            # What expires with its directory has no expiry of its own.
            if pending.find(path) != node:
                continue
            size += len(path) + _EXPIRY_BYTES_MAX
            if pending.events and size + pending.replaced > self._batch_bytes_max:
                return records
            self._expire_node(round_, path, node, records)
        pending.due_ns = next_ns
        return records

    def _expire_node(self, round_: _Round, path: bytes, node: Node, records: list[bytes]) -> None:
        change = expire(path, node, round_.pending.index + 1)
        record = encode_change(change)
        records.append(record)
        if change.dir:
            self._note_removed(round_, change)
        round_.pending.change(change, round_.time_ns, record)

    def _note_removed(self, round_: _Round, change: Change) -> None:
        """Before a directory is removed: only now can be told which watched paths are below it."""
        if not round_.asked:
            round_.removed, round_.asked = {}, {}
        paths = self._hub.removable(change.key)
        found = [path for path in paths if round_.pending.find(path) is not None]
        round_.removed[change.index] = found
        round_.asked[change.index] = set(paths)

    def _appended(self, outcome: Position | BaseException) -> None:
        try:
            round_ = self._round
            assert round_ is not None
            self._round = None
            if type(outcome) is not Position:
                self._failed(round_, outcome)
                return
            if round_.asked:
                self._note_late_watchers(round_)
            self._state.merge(round_.pending, outcome)
            if round_.pays:
                self._store.owed = ()
            self.batch_records.note(round_.pending.records)
            if self._state.is_heavy:
                self.flusher.on_thread()
            self._finish(round_)
        except BaseException as error:  # noqa: BLE001 -- a bug or damage: nothing may go on
            self._on_fatal(error)

    def _failed(self, round_: _Round, outcome: Position | BaseException) -> None:
        assert isinstance(outcome, BaseException)
        if isinstance(outcome, LogFull):
            self._space.refused(outcome)
            assert self._space.refusal is not None
            self._refuse(round_, self._space.refusal)
            return
        # Whether the batch is durable nobody can say, nor may it be asked again: the second
        # fdatasync succeeds, and lies.
        unknown = ApiError(RAFT_INTERNAL, b"outcome unknown: the log could not be synced")
        _answer_all(round_, unknown)
        self._on_fatal(outcome)

    def _note_late_watchers(self, round_: _Round) -> None:
        """Add the watched paths that a directory took along, watched only since it was decided."""
        events = [event for event, _ in round_.pending.events]
        for place, event in enumerate(events):
            index = event.change.index
            asked = round_.asked.get(index)
            if asked is not None:
                late = [p for p in self._hub.removable(event.change.key) if p not in asked]
                round_.removed[index] += [p for p in late if self._stood(p, events[:place])]
                asked.update(late)

    def _stood(self, path: bytes, events: list[Event]) -> bool:
        """Return whether a path led to a node after some events on the committed state."""
        stood = self._state.find(path) is not None
        for event in events:
            key = event.change.key
            if event.change.kind in REMOVALS:
                stood = stood and key != path and not is_below(path, key)
            else:
                stood = stood or key == path or is_below(key, path)
        return stood

    def _finish(self, round_: _Round) -> None:
        """Tell everybody; what they are told is durable, and visible."""
        # First: one who is told may ask for what ends at once.
        if self._state.due_ns != self._timer_ns:
            self._arm()
        events = round_.pending.events
        for observer in self._observers:
            if observer.kept:
                observer.observe(events)
        if self._hub.requests:
            removed = round_.removed
            self._hub.publish([(event, removed.get(event[0][1], [])) for event, _ in events])
        took = (self._raw_ns() - round_.queued) / 1e9
        # Whatever was not asked for has expired.
        told = self.tell(round_.answers, events, took)
        if told != len(events):
            self._stats.expirations += len(events) - told
        if round_.replies:
            self._reply(round_)
        self.batch_s.note(took)
        if took > self._slow_s:
            self._note_slow(round_, took)
        self._next(committed=True)
        if self._state.has_garbage:
            self.flusher.free()

    def _tell(self, answers: Answers, _events: list[LateEvent], took: float) -> int:
        stats = self._stats
        succeeded = 0
        for done, command, outcome in answers:
            if type(outcome) is Event:
                succeeded += 1
                stats.durations[type(command)].append(took)
            else:
                assert isinstance(outcome, ApiError)
                stats.count(command, succeeded=False)
                stats.refused(command, outcome)
            tell_one(done, outcome)
        return succeeded

    def _note_slow(self, round_: _Round, took: float) -> None:
        self.slow += len(round_.answers)
        if self._may_warn():
            log.warning(
                "slow: %d writes took up to %.1f s%s",
                len(round_.answers),
                took,
                self._may_warn.kept_back(),
            )

    def _reply(self, round_: _Round) -> None:
        """Tell those who change something beside the keys."""
        if any(isinstance(reply, Reply) for _, reply in round_.replies):
            self.on_entries()
        for replied, reply in round_.replies:
            tell_one(replied, reply)

    def _refuse(self, round_: _Round, refusal: ApiError) -> None:
        self.aborted += 1
        for _, command, _ in round_.answers:
            self._stats.refused(command, refusal)
        _answer_all(round_, refusal)
        # An expiry that found no room tries again, but not at once.
        self._loop.call_later(_RETRY_S, self._arm)
        self._next(committed=False)

    def _flushed(self) -> None:
        self._fold()
        self._on_flush()

    def _fold(self) -> None:
        self.batch_s.fold()
        self.batch_records.fold()
        self._stats.fold()

    def _refuse_queue(self, reason: str) -> None:
        """Refuse all that is queued: nothing that anybody can do here makes room."""
        refusal = ApiError(RAFT_INTERNAL, reason.encode())
        while self._queue:
            command, done, _ = self._queue.popleft()
            self._stats.refused(_counted(command), refusal)
            tell_one(done, refusal)
        while self._others:
            tell_one(self._others.popleft()[1], RouteError(500, reason))
        self._next(committed=False)

    def _next(self, *, committed: bool) -> None:
        if self._ends:
            ends, self._ends = self._ends, []
            for end in ends:
                if not end.done():
                    end.set_result(committed)
        self._is_free = not self._stopped
        if self._queue or self._others or (self._clock_offset_ns is not None and self._has_step):
            self._schedule()
        else:
            self._turns.calm()

    def _arm(self) -> None:
        """Set the timer, and `overdue_at`, to the first expiration."""
        if self._stopped:
            return
        due_ns = self._state.due_ns
        if due_ns == self._timer_ns:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_ns = due_ns
        self.overdue_at = self._clock.raw_of(due_ns or _NEVER)
        if due_ns:
            wait_s = max(0.0, (self.overdue_at - self._raw_ns()) / 1e9)
            self._timer = self._loop.call_later(min(wait_s, 3600.0), self._expired)

    def _expired(self) -> None:
        self._timer_ns = -1  # to be set again
        self._timer = None
        self._schedule()


def tell_one(done: Callable[[_Told], None], outcome: _Told) -> None:
    """Give an outcome to what is to get it."""
    try:
        done(outcome)
    except Exception:
        # A bug in answering one client is not the others' end.
        log.exception("an answer could not be given")


def _ignore(_outcome: Outcome) -> None:
    """Answer nobody: the last command of a transaction answers for all."""


def _all_told(done: AllDone, events: list[Event], outcome: Outcome) -> None:
    """Answer a transaction, whose last outcome this is."""
    done(outcome if isinstance(outcome, ApiError) else events)


def _nothing_done(done: AllDone, outcome: RouteError | None) -> None:
    """Answer a transaction that changes nothing, whose conditions hold."""
    done([] if outcome is None else ApiError(RAFT_INTERNAL, outcome.message.encode()))


def _counted(command: Command | Transaction) -> Command:
    """Return the command as which a refusal is counted."""
    return _CONDITION if isinstance(command, Transaction) else command


def _answer_all(round_: _Round, refusal: ApiError) -> None:
    for done, _, _ in round_.answers:
        tell_one(done, refusal)
    for replied, _ in round_.replies:
        tell_one(replied, RouteError(500, refusal.cause.decode()))

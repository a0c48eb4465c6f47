"""Decide, perform, log, commit, publish, answer: the one place that knows this order.

One batch at a time. While it is being synced, on its own thread, the loop goes on reading requests,
answering reads and queueing the next batch, so that a batch is as large as the disk is slow.

Invariants:

- Nobody is told of anything, be it a success, a refusal decided on the same state, or an event,
  before `append` has returned for the batch. A batch without a change needs no frame: all that it
  has seen is durable already.
- When a batch is aborted all its members get the same error with index 0, the refused ones too,
  and the indexes it took are given again: nobody was told them.
- Once a frame is durable its batch *is* committed. If the index cannot take it (a full disk) the
  batch is performed again until it can; other batches wait, reads go on. Where there is room, it is
  the disk that fails: the process ends, nobody is told a failure, and the next start finds the
  batch in the log.
- Without room for what users write (space.py) they are refused one by one, and each batch asks the
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
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import NamedTuple, TypeVar

from kvd.batchtimes import BatchTimes
from kvd.clock import STEP_NS, Clock
from kvd.commands import Command, CompareAndDelete, Delete
from kvd.entries import Decide, Replied, Reply
from kvd.errors import INVALID_FORM, RAFT_INTERNAL, ApiError, RouteError
from kvd.kept import Listings
from kvd.logs import SLOW_QUIET_S, Rarely
from kvd.machine import Nodes, decide, expire
from kvd.recent import is_below
from kvd.response import LARGE_VALUE_BYTES
from kvd.space import Space
from kvd.stats import StoreStats
from kvd.syncthread import SyncThread
from kvd.turns import Turns
from kvd.watch import Hub
from storage import disk
from storage.change import REMOVALS, Change, ClockOffset, Entry, Record, encode_record
from storage.errors import LogFull
from storage.event import Event
from storage.index import BROKEN, MapFull
from storage.node import Node
from storage.store import Batch, Store
from storage.tree import IndexRefused, Txn
from storage.wal import Position

log = logging.getLogger(__name__)

_Told = TypeVar("_Told")
Outcome = Event | ApiError
Done = Callable[[Outcome], None]
_Queued = tuple[Command, Done, int]
"""A command, what gets its outcome, and the clock's `raw_ns` when it came."""

# A batch closes at so many records or bytes of them; a larger command goes alone.
BATCH_RECORDS_MAX = 1000
BATCH_BYTES_MAX = 4 << 20
# And at so many bytes of keys, whether they make records or not: a key of thousands of components
# takes 20 ms to be decided and to be performed, and others would wait for a thousand of these.
_BATCH_KEY_BYTES_MAX = 32 << 10
# What a payload holds beside its records: the envelope and the heads of two arrays.
_ENVELOPE_BYTES_MAX = 128
# How many nodes of removed directories a batch frees on its way: about a millisecond.
_RECLAIMED_PER_BATCH = 500
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
# So often the index may be refused though there is room: that may have come a moment ago.
_INDEX_FAILURES_MAX = 3
REMOVING = (Delete, CompareAndDelete)
_LARGE = LARGE_VALUE_BYTES


# A time that never comes, in nanoseconds.
_NEVER = 1 << 64


class _NotKnownYet(Exception):
    """Whether a directory has children that have not ended would take too long to find out."""


class _NodesAt:
    """The nodes as a command sees them that came when some had ended that are still there.

    None of them stands in its way any more.
    """

    def __init__(self, txn: Txn, now_ns: int) -> None:
        self.find = txn.find
        self.obstacle = txn.obstacle
        self._txn = txn
        self._now_ns = now_ns

    def has_children(self, dir_id: int) -> bool:
        """Return whether a directory has a child that has not ended.

        Raises:
            _NotKnownYet: those that have are too many to look at.
        """
        known = self._txn.has_living_children(dir_id, self._now_ns, _ENDED_CHILDREN_MAX)
        if known is None:
            raise _NotKnownYet
        return known


class _Pending(NamedTuple):
    """One batch on its way to the disk."""

    txn: Txn
    performed: list[Record]
    events: list[tuple[Event, list[bytes]]]
    answers: list[tuple[Done, Command, Outcome]]
    replies: list[tuple[Replied, Reply | RouteError]]
    """What is told to those who change something beside the keys."""
    asked: dict[int, set[bytes]]
    """By a removal's index, the watched paths of which is known whether it took them along."""
    first_index: int
    time_ns: int
    queued: float
    """The monotonic time before which none of its commands was queued."""


class Committer:
    """The queue of commands, and the way of a batch from there to the answers.

    Attributes:
        times: How long batches took.
        aborted: How many batches were not logged, for want of room.
        slow: How many commands were answered later than `slow_s`.
        syncing_since: The monotonic time since when a batch has been on its way to the disk, if so.
        overdue_at: When the clock's `raw_ns` reaches it, something that has ended is still there.
    """

    def __init__(
        self,
        *,
        store: Store,
        hub: Hub,
        listings: Listings,
        stats: StoreStats,
        clock: Clock,
        sync: SyncThread[Position],
        append: Callable[[Batch, Callable[[Position | BaseException], None]], None],
        loop: asyncio.AbstractEventLoop,
        on_fatal: Callable[[BaseException], None],
        on_commit: Callable[[], None],
        slow_s: float = 1.0,
        turns: Turns | None = None,
    ) -> None:
        self._store = store
        self._hub = hub
        self._listings = listings
        self._stats = stats
        self._clock = clock
        self._sync = sync
        self._append = append
        self._loop = loop
        self._on_fatal = on_fatal
        self._on_commit = on_commit
        self.on_entries: Callable[[], None] = lambda: None
        """Called when something beside the keys may have changed, before anybody is told."""
        # Each command with the clock's `raw_ns` when it came: what had ended by then is not there.
        self._queue: deque[_Queued] = deque()
        self._raw_ns = clock.raw_ns
        self._others: deque[tuple[Decide, Replied]] = deque()
        self._clock_offset_ns: int | None = None
        self._told_offset_ns = store.applied.clock_offset_ns
        self._record_bytes_max = store.wal.max_payload - _ENVELOPE_BYTES_MAX
        self._batch_bytes_max = min(BATCH_BYTES_MAX, self._record_bytes_max)
        self._space = Space(store)
        self._index_waits = False
        self._index_failures = 0
        self._beaten = store.wal.position
        self._busy = False
        self._scheduled = False
        self._stopped = False
        # Bytes of large values that the events of the present batch have replaced.
        self._held = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self.overdue_at = _NEVER
        self._ends: list[asyncio.Future[bool]] = []
        self.times = BatchTimes(stats)
        self.aborted = 0
        self.slow = 0
        self._commit_s = 0.0
        self.syncing_since: float | None = None
        self._slow_s = slow_s
        self._turns = turns or Turns(loop)
        self._may_warn = Rarely(SLOW_QUIET_S)
        self._arm()
        # Before when nothing that waits was queued; None while nothing does: a command that comes
        # then begins a batch at once.
        self._queued: float | None = None
        self._schedule()

    def submit(self, command: Command, done: Done) -> None:
        """Queue a command; `done` gets its event or its refusal once that may be told."""
        self._queue.append((command, done, self._raw_ns()))
        # Writes have their own bound in a turn: they are not many reads.
        self._turns.left += 1
        self._schedule()

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
    def no_room(self) -> str:
        """Why users' writes are refused, or nothing."""
        refusal = self._space.refusal
        return refusal.cause.decode() if refusal is not None else ""

    @property
    def index_waits(self) -> bool:
        """Whether a durable batch waits for room in the index."""
        return self._index_waits

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
        if self._busy or self._stopped:
            return
        if self._raw_ns() >= self.overdue_at:
            self._schedule()  # no timer of the loop runs while the machine is suspended
        position = self._store.wal.position
        if self._space.refusal is not None:
            self._schedule()  # the next batch, even an empty one, asks the disk
        elif position != self._beaten or self._store.wal.refusal is not None:
            # Behind this job the thread also tries again to prepare the next segment.
            self._beaten = position
            self._sync.run(
                self._store.heartbeat,
                lambda outcome: self._step(partial(self._beat, outcome)),
            )

    async def drain(self) -> None:
        """Wait until every queued command has been answered."""
        while self._busy or self._queue or self._others or self._has_step:
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
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _schedule(self) -> None:
        # In the next turn of the loop: all that this turn reads from its sockets is one batch.
        if not self._scheduled and not self._busy and not self._stopped:
            self._scheduled = True
            self._loop.call_soon(self._run)
            self._turns.hurry()

    def _run(self) -> None:
        self._scheduled = False
        if not self._stopped:
            self._step(self._begin)

    def _step(self, step: Callable[[], object]) -> None:
        """Run one step of a batch's way."""
        try:
            step()
        except BaseException as error:  # noqa: BLE001 -- a bug or damage: nothing may go on
            self._on_fatal(error)

    def _begin(self) -> None:
        """Begin a batch; while there is no room, find out first whether that is still so."""
        if self._space.refusal is None or self._store.is_low_on_space():
            self._begin_batch()
            return
        self._busy = True
        self._sync.run(
            partial(self._store.heartbeat, probe=True),
            lambda outcome: self._step(partial(self._probed, outcome)),
        )

    def _probed(self, outcome: Position | BaseException) -> None:
        self._busy = False
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
        time_ns = self._clock.now_ns()
        txn = self._store.begin()
        began = monotonic()
        queued = self._queued or began
        pending = _Pending(txn, [], [], [], [], {}, txn.index + 1, time_ns, queued)
        try:
            records = self._decide(pending)
            self._queued = queued if self._queue else began
            txn.reclaim(_RECLAIMED_PER_BATCH)
            batch = None
            if records:
                batch = self._store.batch(txn, records, pending.first_index, time_ns)
            elif txn.tidied:
                self._store.tidy(txn)
        except IndexRefused as error:
            # Nothing is logged yet, so nothing has happened.
            _raise_if_broken(error)
            log.warning("a batch was refused, the index could not take it: %s", error)
            self._abort(pending, str(error))
            return
        if batch is not None:
            self._busy = True
            self.syncing_since = began
            self._append(
                batch, lambda outcome: self._step(partial(self._appended, pending, batch, outcome))
            )
            return
        if not txn.tidied:
            txn.end()
        self._finish(pending)

    def _decide(self, pending: _Pending) -> list[bytes]:
        """Fill a batch from what has expired and the queue; return its records, encoded."""
        self._held = 0
        txn = pending.txn
        records = self._log_state(pending)
        left = _EXPIRED_BESIDE_COMMANDS_MAX if self._queue else _EXPIRED_MAX
        if (txn.first_due_ns() or _NEVER) <= pending.time_ns:
            # A command that came before a key's end finds it, however long it has waited.
            until_ns = self._clock.at(self._queue[0][2]) if self._queue else pending.time_ns
            records += self._expire(pending, until_ns, left)
            left -= len(records)
        if self._others:
            records += self._decide_others(pending, sum(map(len, records)))
        due_ns = txn.first_due_ns()
        overdue_at = _NEVER if due_ns is None else self._clock.raw_of(due_ns)
        later = self._decide_commands(pending, records, left, overdue_at)
        if later:
            self._queue.extendleft(reversed(later))
        return records

    def _decide_commands(
        self, pending: _Pending, records: list[bytes], left: int, overdue_at: int
    ) -> list[_Queued]:
        """Decide what is queued behind some records, and so many more expirations.

        A command that came at `overdue_at` or later may find what has ended. Returns those that
        cannot be decided before the next batch.
        """
        txn, time_ns, queue, answers = pending.txn, pending.time_ns, self._queue, pending.answers
        expired = size = sum(map(len, records))
        room = min(self._space.room, self._record_bytes_max)
        size_max = self._batch_bytes_max
        later: list[_Queued] = []
        keys_left = _BATCH_KEY_BYTES_MAX
        while (
            queue
            and len(records) < BATCH_RECORDS_MAX
            and size + self._held < size_max
            and keys_left > 0
        ):
            command, done, came = queue.popleft()
            keys_left -= len(command.key)
            nodes: Nodes = txn
            if came >= overdue_at:
                if records and size + len(command.key) + _EXPIRY_BYTES_MAX > size_max:
                    queue.appendleft((command, done, came))
                    break
                gone = self._make_way(pending, command, came, left, size)
                left -= len(gone)
                records += gone
                size += sum(map(len, gone))
                nodes = _NodesAt(txn, self._clock.at(came))
            try:
                change = decide(nodes, command, txn.index + 1, time_ns)
                record = encode_record(change)
                if size + len(record) > room:
                    self._check_size(command, record, size)
            except ApiError as refusal:
                answers.append((done, command, refusal))
                continue
            except _NotKnownYet:
                if self._space.refusal is None:
                    later.append((command, done, came))
                else:  # nothing can expire until there is room
                    answers.append((done, command, self._space.refusal))
                continue
            is_first = size == expired
            size += len(record)
            # A removal is never too large, or what was written under larger segments would stay.
            if size > size_max and records and not (is_first and size <= self._record_bytes_max):
                queue.appendleft((command, done, came))
                break
            records.append(record)
            try:
                event = self._perform(pending, change, record)
            except IndexRefused as error:
                full = ApiError(RAFT_INTERNAL, str(error).encode())
                answers.append((done, command, full))
                raise
            answers.append((done, command, event))
        return later

    def _decide_others(self, pending: _Pending, size: int) -> list[bytes]:
        """Decide what is changed beside the keys, as far as a batch of so many bytes takes it."""
        records: list[bytes] = []
        # One that is as large as it may be fits behind this.
        while self._others and size < self._batch_bytes_max // 2:
            decide_entries, done = self._others.popleft()
            try:
                entries, reply = decide_entries(pending.txn)
                encoded = self._encode(entries, size)
            except RouteError as refusal:
                pending.replies.append((done, refusal))
                continue
            pending.replies.append((done, reply))
            records += encoded
            size += sum(map(len, encoded))
            for entry in entries:
                pending.txn.perform(entry, pending.time_ns)
                pending.performed.append(entry)
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

    def _log_state(self, pending: _Pending) -> list[bytes]:
        """Log what the start of the server had no room for, if there is now, and the clock's step.

        They come first: so what was owed is known by the first record.
        """
        if self._clock_offset_ns is None and not self._store.owed:
            return []  # nearly always
        records: list[Record] = []
        if self._space.refusal is None:
            records += self._store.owed
        offset_ns, self._clock_offset_ns = self._clock_offset_ns, None
        # It may have been found while the batch that logs it was on its way.
        if offset_ns is not None and abs(offset_ns - pending.txn.clock_offset_ns) >= STEP_NS:
            records.append(ClockOffset(offset_ns))
        for record in records:
            pending.txn.perform(record, pending.time_ns)
            pending.performed.append(record)
        return [encode_record(record) for record in records]

    def _make_way(
        self, pending: _Pending, command: Command, came: int, left: int, size: int
    ) -> list[bytes]:
        """Expire what had ended when a command came, behind a batch of `size` bytes.

        Where that is more than the `left` that the batch takes, at least what stands in the way of
        the command. Returns the records.
        """
        came_ns = self._clock.at(came)
        size += len(command.key) + _EXPIRY_BYTES_MAX
        records = self._expire(pending, came_ns, left, size) if left > 0 else []
        ended = pending.txn.first_ended(command.key, came_ns)
        if ended is not None:
            self._expire_node(pending, *ended, records)
        return records

    def _expire(self, pending: _Pending, until_ns: int, left: int, size: int = 0) -> list[bytes]:
        """Expire what has ended, in order, as far as a batch takes it; return the records."""
        txn = pending.txn
        records: list[bytes] = []
        for path, node in txn.due(until_ns, left):
            # What expires with its directory has no expiry of its own.
            if txn.find(path) != node:
                continue
            size += len(path) + _EXPIRY_BYTES_MAX
            if pending.performed and size + self._held > self._batch_bytes_max:
                break
            self._expire_node(pending, path, node, records)
        return records

    def _expire_node(
        self, pending: _Pending, path: bytes, node: Node, records: list[bytes]
    ) -> None:
        change = expire(path, node, pending.txn.index + 1)
        record = encode_record(change)
        records.append(record)
        self._perform(pending, change, record)

    def _check_size(self, command: Command, record: bytes, batch_bytes: int) -> None:
        """Refuse what the log's reader would refuse, or what there is no room for."""
        if isinstance(command, REMOVING):
            return
        if len(record) > self._record_bytes_max:  # a limit of small segments only
            raise ApiError(INVALID_FORM, b"http: POST too large")
        no_room = self._space.check(batch_bytes + len(record))
        if no_room is not None:
            raise no_room

    def _perform(self, pending: _Pending, change: Change, record: bytes) -> Event:
        removed: list[bytes] = []
        if change.dir and change.kind in REMOVALS:
            # Only now can be told which of the watched paths exist.
            paths = self._hub.removable(change.key)
            removed += (path for path in paths if pending.txn.find(path) is not None)
            pending.asked[change.index] = set(paths)
        event = pending.txn.perform(change, pending.time_ns, record)
        assert event is not None
        pending.performed.append(change)
        pending.events.append((event, removed))
        prev = event.prev
        # Counted where it is large, which a slice tells for less than a call: the event holds what
        # it has replaced until all of the batch is answered.
        if prev is not None and (replaced := prev.value) and replaced[_LARGE : _LARGE + 1]:
            self._held += len(replaced)
        return event

    def _appended(self, pending: _Pending, batch: Batch, outcome: Position | BaseException) -> None:
        self.syncing_since = None
        if isinstance(outcome, LogFull):
            self._busy = False
            self._space.refused(outcome)
            assert self._space.refusal is not None
            self._refuse(pending, self._space.refusal)
        elif isinstance(outcome, BaseException):
            # Whether the batch is durable nobody can say, nor may it be asked again: the second
            # fdatasync succeeds, and lies.
            unknown = ApiError(RAFT_INTERNAL, b"outcome unknown: the log could not be synced")
            _answer_all(pending, unknown)
            self._on_fatal(outcome)
        else:
            self._commit(pending, batch, outcome)

    def _commit(self, pending: _Pending, batch: Batch, position: Position) -> None:
        if pending.asked:
            self._note_late_watchers(pending)
        began = monotonic()
        try:
            self._store.commit(pending.txn, batch, position)
        except IndexRefused as error:
            self._try_again(pending, batch, position, error)
            return
        self._commit_s = monotonic() - began
        self._busy = False
        if self._index_waits:
            self._index_waits = False
            self._index_failures = 0
            log.warning("the index has taken the batch that waited")
        if self._store.owed and pending.performed[0] == self._store.owed[0]:
            self._store.owed = ()
        self._finish(pending)
        self._on_commit()

    def _commit_again(self, pending: _Pending, batch: Batch, position: Position) -> None:
        txn = self._store.begin()
        try:
            for record in pending.performed:
                txn.perform(record, pending.time_ns)
        except IndexRefused as error:
            txn.end()
            self._try_again(pending, batch, position, error)
            return
        self._commit(pending._replace(txn=txn), batch, position)

    def _try_again(
        self, pending: _Pending, batch: Batch, position: Position, error: IndexRefused
    ) -> None:
        _raise_if_broken(error)
        if not self._index_waits:
            self._index_waits = True
            log.warning("a durable batch waits, the index cannot take it yet: %s", error)
        again = partial(self._commit_again, pending, batch, position)
        # LMDB takes a short write for an I/O error, so ask the disk which one it is.
        self._sync.run(
            self._store.probe_index,
            lambda outcome: self._step(partial(self._wait_for_index, again, error, outcome)),
        )

    def _wait_for_index(
        self, again: Callable[[], None], error: IndexRefused, outcome: Position | BaseException
    ) -> None:
        """Try again in a while; give up when the index is refused again and again for no reason."""
        no_room = isinstance(outcome, OSError) and outcome.errno in disk.REFUSALS
        if no_room or isinstance(error, MapFull):
            self._index_failures = 0
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            self._index_failures += 1
            if self._index_failures >= _INDEX_FAILURES_MAX:
                raise error
        self._loop.call_later(_RETRY_S, self._step, again)

    def _note_late_watchers(self, pending: _Pending) -> None:
        """Add the watched paths that a directory took along, watched only since it was decided."""
        for place, (event, removed) in enumerate(pending.events):
            asked = pending.asked.get(event.change.index)
            if asked is not None:
                late = [p for p in self._hub.removable(event.change.key) if p not in asked]
                removed += [p for p in late if self._stood(p, pending.events[:place])]
                asked.update(late)

    def _stood(self, path: bytes, events: list[tuple[Event, list[bytes]]]) -> bool:
        """Return whether a path led to a node after some events on the committed state."""
        stood = self._store.view.find(path) is not None
        for event, _ in events:
            key = event.change.key
            if event.change.kind in REMOVALS:
                stood = stood and key != path and not is_below(path, key)
            else:
                stood = stood or key == path or is_below(key, path)
        return stood

    def _finish(self, pending: _Pending) -> None:
        """Tell everybody; what they are told is durable, and visible."""
        self._arm()  # first: one who is told may ask for what ends at once
        if self._listings:
            for event, _ in pending.events:
                self._listings.changed(event.change)
        self._hub.publish(pending.events)
        stats = self._stats
        counts = stats.counts
        # Whatever was not asked for has expired.
        succeeded = 0
        for done, command, outcome in pending.answers:
            if type(outcome) is Event:
                succeeded += 1
                counts[type(command)][0] += 1
            else:
                assert isinstance(outcome, ApiError)
                counts[type(command)][1] += 1
                stats.refused(command, outcome)
            _answer(done, outcome)
        if pending.replies:
            self._reply(pending)
        stats.expired(len(pending.events) - succeeded)
        self._note_duration(pending)
        self._next(committed=True)
        if self._store.view.has_garbage():
            self._schedule()

    def _note_duration(self, pending: _Pending) -> None:
        took = monotonic() - pending.queued
        self.times.note(took, self._commit_s, len(pending.performed))
        if took > self._slow_s:
            self.slow += len(pending.answers)
            if self._may_warn():
                log.warning(
                    "slow: %d writes took up to %.1f s%s",
                    len(pending.answers),
                    took,
                    self._may_warn.kept_back(),
                )

    def _reply(self, pending: _Pending) -> None:
        """Tell those who change something beside the keys."""
        if any(isinstance(reply, Reply) for _, reply in pending.replies):
            self.on_entries()
        for replied, reply in pending.replies:
            _answer(replied, reply)

    def _abort(self, pending: _Pending, reason: str) -> None:
        self._refuse(pending, ApiError(RAFT_INTERNAL, reason.encode()))

    def _refuse(self, pending: _Pending, refusal: ApiError) -> None:
        pending.txn.end()
        self.aborted += 1
        for _, command, _ in pending.answers:
            self._stats.refused(command, refusal)
        _answer_all(pending, refusal)
        # An expiry that found no room tries again, but not at once.
        self._loop.call_later(_RETRY_S, self._arm)
        self._next(committed=False)

    def _next(self, *, committed: bool) -> None:
        ends, self._ends = self._ends, []
        for end in ends:
            if not end.done():
                end.set_result(committed)
        if self._queue or self._others or (self._clock_offset_ns is not None and self._has_step):
            self._schedule()
        else:
            self._queued = None
            self._turns.calm()

    def _arm(self) -> None:
        """Set the timer, and `overdue_at`, to the first expiration."""
        if self._stopped:
            return
        due_ns = self._store.view.first_due_ns() or 0
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


def _raise_if_broken(error: BaseException) -> None:
    """Raise what is no want of room but damage to the index: only a rebuild helps."""
    if isinstance(error, BROKEN):
        raise error


def _answer(done: Callable[[_Told], None], outcome: _Told) -> None:
    try:
        done(outcome)
    except Exception:
        # A bug in answering one client is not the others' end.
        log.exception("an answer could not be given")


def _answer_all(pending: _Pending, refusal: ApiError) -> None:
    for done, _, _ in pending.answers:
        _answer(done, refusal)
    for replied, _ in pending.replies:
        _answer(replied, RouteError(500, refusal.cause.decode()))

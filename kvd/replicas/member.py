"""A replica's server, as its place in the log sees it: the store, and the gate before its batches.

The order of a leader's batch: decided, in the engine's log, in the own log, visible, answered. One
of another leader comes from the engine's log, and goes the same way from there.

Invariants:

- Nothing of a batch is in the own log before the engine's has it.
- Once the engine's log has a batch, it becomes part of this store, or the process ends: a full disk
  holds it up, and the replica gives up the lead meanwhile.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Protocol

from kvd.core.committer import Committer
from kvd.core.replicated.aborted import Aborted
from kvd.core.replicated.leading import MAYBE_DONE
from kvd.replicas.engine import End, EngineFull, Fenced, OutcomeUnknown
from kvd.storage.errors import LogFull
from kvd.storage.format.frame import Position
from kvd.storage.format.payload import next_chain
from kvd.storage.format.records import Record
from kvd.storage.index.pending import Pending
from kvd.storage.store import Store
from kvd.v2.errors import RAFT_INTERNAL, ApiError

log = logging.getLogger(__name__)

Done = Callable[[Position | BaseException], None]

ROOM_S = 0.5
"""Between two attempts to find room on the own disk for what the engine's log has."""
NO_SPACE = b"etcdserver: no space"


class OwnLog(Protocol):
    """The own log: `kvd.core.replicated.unsynced_log.UnsyncedLog`."""

    durable: int

    def append(self, batch: Pending, done: Done) -> bool:
        """Append a batch; return False."""

    def make_room(self, size: int, done: Callable[[BaseException | None], None]) -> bool:
        """See there."""


class SharedLog(Protocol):
    """The log of all replicas: `kvd.replicas.replica.Replica`."""

    async def append(self, seq: int, prev_chain: bytes, chain: bytes, payload: bytes) -> None:
        """See there."""

    async def confirm(self) -> bool:
        """See there."""

    async def give_up(self) -> None:
        """See there."""


class Notes(Protocol):
    """Notes of batches, for the figures of the replica."""

    def append_began(self) -> None:
        """A batch goes to the engine."""

    def append_answered(self, seq: int, size: int) -> None:
        """The engine has written a frame."""

    def append_ended(self) -> None:
        """The batch has ended, written or not."""

    def applied(self, seq: int, size: int) -> None:
        """A frame is visible here."""


class StoreMember:
    """The `Member` of a replica that serves a store."""

    def __init__(
        self,
        store: Store,
        own_log: OwnLog,
        *,
        first_records: Callable[[], tuple[Record, ...]],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        """`first_records` makes those with which each leadership begins: its term."""
        self._store = store
        self._log = own_log
        self._first_records = first_records
        self._on_fatal = on_fatal
        self._committer: Committer
        self._shared: SharedLog
        self._notes: Notes
        self._follow: Callable[[bytes], Awaitable[bool]]
        self._is_open = False
        self._in_flight: Callable[[Aborted], None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()

    def connect(
        self,
        committer: Committer,
        shared: SharedLog,
        notes: Notes,
        follow: Callable[[bytes], Awaitable[bool]],
    ) -> None:
        """Name those that were made later; `follow` is the committer's, or around it."""
        self._committer, self._shared = committer, shared
        self._notes, self._follow = notes, follow

    def stop(self) -> None:
        """Abandon what waits for the engine or for room: nothing of it is answered."""
        self._stopped.set()
        for task in self._tasks:
            task.cancel()

    def abandon(self) -> None:
        """End the batch in flight though the engine is silent: at the stop of the server.

        Nothing is appended after it, so it may have been written or not, as after a crash.
        """
        self._close()
        for task in self._tasks:
            task.cancel()
        if self._in_flight is not None:
            self._in_flight(Aborted(ApiError(RAFT_INTERNAL, MAYBE_DONE)))

    # As the committer sees it.

    def append(self, batch: Pending, done: Done) -> bool:
        """Append a batch, as `LogWriter.append`; a leader's goes to the shared log first."""
        if not self._is_open:
            return self._log.append(batch, done)
        batch.chain = next_chain(batch.base.chain, batch.payload)
        self._notes.append_began()
        self._in_flight = end = partial(self._end, batch, done)
        self._begin(self._append(batch, end))
        return True  # responses are prepared meanwhile

    def wait(self) -> None:
        """Return at once: the engine is waited for in other turns of the loop."""

    def confirm(self, done: Callable[[BaseException | None], None]) -> None:
        """Find out whether this replica still leads: a `kvd.core.replicated.leading.Confirm`."""
        self._in_flight = end = partial(self._confirmed, done)
        self._begin(self._confirm(end))

    # As the replica sees it.

    @property
    def end(self) -> End:
        """The last frame in the store."""
        applied = self._store.applied
        return End(applied.seq, applied.chain)

    async def apply(self, payload: bytes) -> None:
        """Make the next frame of the log part of the store; without room, wait for that.

        Raises:
            OtherHistory, UnknownRecord: of `kvd.storage`: it does not continue the store.
        """
        while not await self._follow(payload):
            with suppress(TimeoutError):
                async with asyncio.timeout(ROOM_S):
                    await self._stopped.wait()
            if self._stopped.is_set():
                raise asyncio.CancelledError
        self._notes.applied(self._store.applied.seq, len(payload))

    def open_gate(self) -> None:
        """Let batches begin, of which the first has the records of the new term."""
        self._store.unlogged_start = self._first_records()
        self._is_open = True
        self._committer.open_gate()

    async def close_gate(self) -> None:
        """Let no batch begin; return once the one in flight has ended, in the store or aborted."""
        self._close()
        await self._committer.drain()

    def _close(self) -> None:
        self._is_open = False
        self._committer.close_gate()

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_fatal(error)

    async def _append(self, batch: Pending, done: Done) -> None:
        if (refusal := await self._make_room(batch.size)) is not None:
            done(refusal)
            return
        try:
            await self._shared.append(batch.seq, batch.base.chain, batch.chain, batch.payload)
        except Fenced:
            self._close()
            done(Aborted())
        except OutcomeUnknown:
            self._close()
            done(Aborted(ApiError(RAFT_INTERNAL, MAYBE_DONE)))
        except EngineFull:
            done(Aborted(ApiError(RAFT_INTERNAL, NO_SPACE)))
        else:
            self._notes.append_answered(batch.seq, batch.size)
            self._append_here(batch, done, is_first=True)

    def _end(self, batch: Pending, done: Done, outcome: Position | BaseException) -> None:
        self._in_flight = None
        done(outcome)
        self._notes.append_ended()
        if type(outcome) is Position:
            self._notes.applied(batch.seq, batch.size)

    async def _make_room(self, size: int) -> BaseException | None:
        """Reserve room in the own log, so that nothing is in the engine's that has none here."""
        made: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

        def end(error: BaseException | None) -> None:
            if not made.done():  # a stop cancels the wait
                made.set_result(error)

        return None if self._log.make_room(size, end) else await made

    def _append_here(self, batch: Pending, done: Done, *, is_first: bool = False) -> None:
        """Append to the own log what the shared one has, as soon as there is room."""

        def end(outcome: Position | BaseException) -> None:
            if not isinstance(outcome, LogFull):
                done(outcome)
                return
            if is_first:
                log.warning("%s: the replica gives up the lead until there is room", outcome)
                self._begin(self._shared.give_up())
            asyncio.get_running_loop().call_later(ROOM_S, self._append_here, batch, done)

        if not self._stopped.is_set():
            self._log.append(batch, end)

    def _confirmed(
        self, done: Callable[[BaseException | None], None], outcome: BaseException | None
    ) -> None:
        self._in_flight = None
        done(outcome)

    async def _confirm(self, done: Callable[[BaseException | None], None]) -> None:
        if await self._shared.confirm():
            done(None)
        else:
            self._close()
            done(Aborted())

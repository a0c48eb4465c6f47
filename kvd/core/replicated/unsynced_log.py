"""A replica's own log: written without waiting for the disk, and synced a moment later.

What a replica has not synced stands in the log of all replicas, so that no response waits for its
disk. A batch is written on the loop; the sync thread makes durable what has been written, after
50 ms or 4 MiB, while the loop goes on. It also begins segments and writes long batches, which wait
for that sync.

`durable` says how far that has come. The log of all replicas may be trimmed behind the durable
batches of a majority only.

A sync that fails ends the process, as everywhere: what it has lost is read again at the next start
as if it had never been written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from kvd.core.worker_thread import WorkerThread
from kvd.storage.errors import LogFull
from kvd.storage.format.frame import Position
from kvd.storage.format.payload import next_chain
from kvd.storage.index.pending import Pending
from kvd.storage.store import Store
from kvd.storage.wal.segment_writer import BEGUN_BYTES_MAX
from kvd.storage.wal.unsynced import Unsynced

Outcome = Position | BaseException

_SYNC_S = 0.05
_SYNC_BYTES = 4 << 20


class UnsyncedLog:
    """Takes the place of the `LogWriter` of a store.

    Attributes:
        durable: The last batch that is on the disk with all before it, by its number in the history
            (not its frame's).
    """

    def __init__(
        self,
        store: Store,
        sync: WorkerThread[Position],
        loop: asyncio.AbstractEventLoop,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        """Begin behind what the store holds: a start has synced that."""
        self._store = store
        self._thread = sync
        self._loop = loop
        self._on_fatal = on_fatal
        self._unsynced = unsynced = Unsynced(store.wal)
        store.state.writer.durable_frame = lambda: unsynced.durable
        self.durable = self._written = store.applied.seq
        # How many bytes were written since the last sync began, and whether it is under way.
        self._size = 0
        self._is_syncing = False
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self._closed = False

    def append(self, batch: Pending, done: Callable[[Outcome], None]) -> bool:
        """Write a batch that is encoded, or was adopted.

        `done` gets the end of its frame, before this returns or, where the thread has to write it,
        in a later turn; or what `Wal.append` raises.

        Returns:
            False: there is nothing to `wait` for.
        """
        # Of a batch that this member has decided it is known already.
        batch.chain = batch.chain or next_chain(batch.base.chain, batch.payload)
        frame = batch.payload, batch.base.index + 1, batch.records
        try:
            is_written = self._may_write(batch.size) and self._unsynced.write(*frame)
        except (LogFull, OSError) as error:
            done(error)
            return False
        if is_written:
            self._wrote(batch)
            done(self._store.wal.position)
        else:
            job = partial(self._on_thread, partial(self._unsynced.append, *frame))
            self._thread.run(job, partial(self._appended, batch, done))
        return False

    def wait(self) -> None:
        """Return at once: no batch waits for the disk."""

    def make_room(self, size: int, done: Callable[[BaseException | None], None]) -> bool:
        """Have a batch of so many bytes find the space for it reserved.

        Returns:
            True if it will; else `done` gets None in a later turn, or why there is no room: LogFull
            or another OSError.
        """
        if self._may_write(size) and self._store.wal.writer.takes(size):
            return True
        index = self._store.applied.index + 1
        job = partial(self._on_thread, partial(self._unsynced.make_room, size, index))
        self._thread.run(job, lambda outcome: done(_error_of(outcome)))
        return False

    async def sync(self) -> None:
        """Wait until all that has been written is durable, or the log is closed."""
        written = self._written
        while self.durable < written and not self._closed:
            self._begin_sync()
            self._waiting.append(self._loop.create_future())
            await self._waiting[-1]

    def close(self) -> None:
        """Begin no sync any more; closing the store makes one."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._wake()

    def _may_write(self, size: int) -> bool:
        """Return whether a batch so long is for the loop, and the thread does nothing but sync."""
        return self._thread.waiting == self._is_syncing and size <= BEGUN_BYTES_MAX

    def _on_thread(self, job: Callable[[], None]) -> Position:
        job()
        return self._store.wal.position

    def _appended(self, batch: Pending, done: Callable[[Outcome], None], outcome: Outcome) -> None:
        if isinstance(outcome, Position):
            self._wrote(batch)
        done(outcome)

    def _wrote(self, batch: Pending) -> None:
        self._written = batch.seq
        self._size += batch.size
        self._schedule()

    def _schedule(self) -> None:
        if self._is_syncing or self._closed:
            return
        if self._size >= _SYNC_BYTES:
            self._begin_sync()
        elif self._timer is None:
            self._timer = self._loop.call_later(_SYNC_S, self._begin_sync)

    def _begin_sync(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._is_syncing and not self._closed:
            self._is_syncing, self._size = True, 0
            job = partial(self._on_thread, self._unsynced.sync)
            self._thread.run(job, partial(self._synced, self._written))

    def _synced(self, written: int, outcome: Outcome) -> None:
        self._is_syncing = False
        if isinstance(outcome, BaseException):
            self._closed = True
            self._wake()
            self._on_fatal(outcome)
            return
        self.durable = written
        self._wake()
        if self._written > written:
            self._schedule()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


def _error_of(outcome: Outcome) -> BaseException | None:
    return outcome if isinstance(outcome, BaseException) else None

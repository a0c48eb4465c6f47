"""Appends batches to the log; fdatasync by the kernel where it can, else on the sync thread.

While syncs are short the loop waits for them, each time for `WAIT_S` at most: a turn of the loop
and a wake-up cost more than a sync of 100 us takes, and what arrives at the sockets meanwhile makes
the next batch larger. An eventfd signals the end of a longer sync in a later turn, so that no read
ever waits for a slow disk; and the more of them there are, the less often is waited.

While clients read, too, the loop waits for each sync, but for `BRIEFLY_S` only: otherwise batches
take many times as long where Linux AIO is what there is (storage/aio.py).

What can be prepared for the responses is prepared between `append` and `wait`, while the disk is at
work.

Either way one batch is under way at a time. The thread also does all that is rare: it begins
segments, writes long frames, and makes the faults of failpoints.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic

from kvd.core.disk_space import DiskSpace
from kvd.core.worker_thread import WorkerThread
from kvd.storage.aio import DataSync
from kvd.storage.errors import LogFull
from kvd.storage.format.frame import Position
from kvd.storage.format.payload import next_chain
from kvd.storage.index.pending import Pending
from kvd.storage.store import Store
from kvd.storage.wal.ring_sync import RingSync, data_sync
from kvd.storage.wal.segment_writer import BEGUN_BYTES_MAX

log = logging.getLogger(__name__)

Done = Callable[[Position | BaseException], None]

# After so many syncs in a row that were waited for in vain, so many (2^n - 1) are not waited for:
# on a slow disk one wait in 64 syncs, and 64 syncs until one that has become fast is noticed.
_VAIN_MAX = 6
# After a sync that was not waited for the eventfd is watched until so many in a row were: to take
# each of those off it is a call of the system, to begin and end to watch it are six.
_WATCHED = 8


class LogWriter:
    """Appends the batches of one store."""

    def __init__(
        self,
        store: Store,
        sync: WorkerThread[Position],
        loop: asyncio.AbstractEventLoop,
        *,
        thread_only: bool = False,
        reads: Sequence[int] = [],
    ) -> None:
        """`reads` are counts that grow by each read that is served."""
        self._store = store
        self._segment = store.wal.writer
        self._sync = sync
        self._loop = loop
        # How many waits in a row were in vain, and how many syncs are not waited for by that.
        self._vain = 0
        self._unwaited = 0
        # For how many syncs more the loop watches the eventfd.
        self._watched = 0
        # What gets the outcome of the sync under way, and when that began.
        self._done: Done = _ignore
        self._began = 0.0
        self._counts = reads
        self._counts_before = [*reads]
        self._kernel: DataSync | RingSync | None = None
        if not thread_only:
            try:
                self._kernel = data_sync()
            except OSError as error:
                log.debug("the kernel's syncs are not available, a thread makes them: %s", error)

    def append(self, batch: Pending, done: Done) -> bool:
        """Append a batch that is encoded.

        `done` gets the end of its frame, or what `Journal.append` raises: in a later turn of the
        loop, during `wait`, or, if the batch cannot be written, before this returns.

        Returns:
            Whether the kernel is syncing: `wait` is then to be called in this turn.
        """
        kernel = self._kernel
        # What the thread is doing to the log comes first; what is long is its own.
        if kernel is None or self._sync.waiting or batch.size > BEGUN_BYTES_MAX:
            self._sync.run(partial(self._store.journal.append, batch), done)
            return False
        began = monotonic()
        try:
            fd = self._segment.begin_append(batch.payload, batch.base.index + 1, batch.records)
        except (LogFull, OSError) as error:
            done(error)
            return False
        if fd is None:
            self._sync.run(partial(self._store.journal.append, batch), done)
            return False
        try:
            kernel.submit(fd)
        except OSError:  # too much to do for the kernel just now
            self._sync.run(partial(self._sync_begun, batch), done)
            return False
        self._done, self._began = done, began
        # While the disk is at work.
        batch.chain = next_chain(batch.base.chain, batch.payload)
        return True

    def wait(self) -> None:
        """Wait for the sync that `append` has begun, as far as that is worth it."""
        kernel = self._kernel
        assert kernel is not None
        if self._counts != self._counts_before:
            self._counts_before = [*self._counts]
            code = kernel.wait(briefly=True)
        elif self._unwaited:
            self._unwaited -= 1
            code = None
        elif (code := kernel.wait()) is None:
            self._vain = min(self._vain + 1, _VAIN_MAX)
            self._unwaited = (1 << self._vain) - 1
        else:
            self._vain = 0
        if code is not None:
            if self._watched:
                self._forget(kernel)
            self._end(code)
            return
        if not self._watched:
            self._loop.add_reader(kernel.fileno, self._synced)
        self._watched = _WATCHED

    def close(self) -> None:
        """Let go of what syncs; nothing may be under way."""
        if self._kernel is not None:
            self._loop.remove_reader(self._kernel.fileno)
            self._kernel.close()
            self._kernel = None

    def _sync_begun(self, batch: Pending) -> Position:
        batch.chain = next_chain(batch.base.chain, batch.payload)
        return self._segment.sync_begun()

    def _synced(self) -> None:
        assert self._kernel is not None
        code: int | None
        try:
            code = self._kernel.outcome()
        except OSError as error:  # how it went will never be known: as if it had failed
            code = error.errno or errno.EIO
        if code is not None:
            self._end(code)

    def _forget(self, kernel: DataSync | RingSync) -> None:
        """Clear the eventfd of a sync that was waited for; after several, watch it no longer."""
        kernel.clear()
        self._watched -= 1
        if not self._watched:
            self._loop.remove_reader(kernel.fileno)

    def _end(self, code: int) -> None:
        """Report that the kernel has synced a batch, or failed to."""
        done = self._done
        if code and code == errno.ECANCELED:  # it has not even tried: it had no worker for that
            self._sync.run(self._segment.sync_begun, done)
            return
        outcome: Position | BaseException
        try:
            outcome = self._segment.end_append(monotonic() - self._began, code)
        except OSError as error:
            outcome = error
        done(outcome)


class Heartbeats:
    """Writes heartbeat frames, on the sync thread.

    A heartbeat gives the last frame a successor, which tells damage to that frame from a write that
    never finished. Where there was no room, one that is written says that there is some again.
    """

    def __init__(
        self,
        store: Store,
        sync: WorkerThread[Position],
        space: DiskSpace,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._sync = sync
        self._space = space
        self._on_fatal = on_fatal
        self._beaten = store.wal.position

    def beat_if_idle(self) -> None:
        """Write one if frames have come since the last."""
        position = self._store.wal.position
        if position != self._beaten or self._store.wal.refusal is not None:
            # Behind this job the thread also tries again to prepare the next segment.
            self._beaten = position
            self._sync.run(self._store.heartbeat, partial(self._step, self._note))

    def probe(self, then: Callable[[], None]) -> None:
        """Find out by one whether there is room again; then go on."""
        job = partial(self._store.heartbeat, probe=True)
        self._sync.run(job, partial(self._step, partial(self._probed, then)))

    def _step(
        self, step: Callable[[Position | BaseException], object], outcome: Position | BaseException
    ) -> None:
        try:
            step(outcome)
        except BaseException as error:  # noqa: BLE001 -- a bug or damage: nothing may go on
            self._on_fatal(error)

    def _probed(self, then: Callable[[], None], outcome: Position | BaseException) -> None:
        if self._note(outcome):
            self._space.leave()
        then()

    def _note(self, outcome: Position | BaseException) -> bool:
        """Take note of a heartbeat's outcome; return whether it was written."""
        if isinstance(outcome, LogFull):
            self._space.enter(outcome)
            return False
        if isinstance(outcome, BaseException):
            raise outcome
        return True


def _ignore(outcome: Position | BaseException) -> None:
    """No-op callback."""

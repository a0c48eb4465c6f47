"""What a store needs now and then: snapshots, purging the log behind them, writing the index out.

It happens on a thread of its own, one job at a time. No answer depends on it: what fails is logged
and tried again later.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from kvd.histogram import SNAPSHOTS_S, Histogram
from kvd.syncthread import SyncThread
from storage.errors import StorageError
from storage.store import Store
from storage.wal import Position

log = logging.getLogger(__name__)

_SNAPSHOT_BYTES_MIN = 64 << 20
_INDEX_BYTES = 64 << 20
_BACK_OFF_S = 30.0


class Housekeeping:
    """Decides after each commit whether something is due.

    A snapshot is due after `snapshot_count` records; without that number, once the log since the
    last snapshot exceeds both 64 MiB and the size of that snapshot, so that writing snapshots never
    costs more than writing the log. The index is written out every 64 MiB of log, so that a commit
    never waits because the kernel holds too much of it unwritten.

    Attributes:
        snapshot_s: How long snapshots took.
        snapshots_failed: How many could not be made.
    """

    def __init__(
        self,
        *,
        store: Store,
        sync: SyncThread[Position],
        loop: asyncio.AbstractEventLoop,
        snapshot_count: int | None,
    ) -> None:
        self._store = store
        self._sync = sync
        self._loop = loop
        self._count = snapshot_count
        self._thread: SyncThread[int] = SyncThread(loop, "kvd-housekeeping")
        last = store.last_snapshot()
        self._snapshot_pos = last.pos
        self._snapshot_size = last.size
        self._snapshot_at = store.wal.log_bytes - last.log_bytes_since
        self._index_at = store.wal.log_bytes
        self._busy = False
        self._not_before = 0.0
        self._snapshot_began = 0.0
        self.snapshot_s = Histogram(SNAPSHOTS_S)
        self.snapshots_failed = 0
        self._stopped = False

    def after_commit(self) -> None:
        """Start what is due, unless something is running."""
        if self._busy or self._stopped:
            return
        log_bytes = self._store.wal.log_bytes
        if self._snapshot_due(log_bytes):
            self._busy = True
            self._snapshot_pos, self._snapshot_at = self._store.applied.pos, log_bytes
            self._snapshot_began = self._loop.time()
            self._thread.run(self._store.snapshot, self._snapshot_taken)
        elif log_bytes - self._index_at > _INDEX_BYTES:
            self._busy = True
            self._index_at = log_bytes
            self._thread.run(self._sync_index, self._done)

    def tick(self) -> None:
        """Keep room in the index for removals on a full disk, about once a second."""
        if not self._busy and not self._stopped and self._store.index_reserve_is_low():
            self._busy = True
            self._thread.run(self._reserve, self._reserved)

    def stop(self) -> None:
        """Start nothing any more; give up a snapshot that is being taken, and wait for its end."""
        self._stopped = True
        self._store.stop_snapshot()
        self._thread.stop()

    def _snapshot_due(self, log_bytes: int) -> bool:
        if self._loop.time() < self._not_before:
            return False
        if self._count is not None:
            return self._store.applied.pos - self._snapshot_pos >= self._count
        return log_bytes - self._snapshot_at > max(_SNAPSHOT_BYTES_MIN, self._snapshot_size)

    def _snapshot_taken(self, outcome: int | BaseException) -> None:
        self._busy = False
        if isinstance(outcome, (OSError, StorageError)):
            if not self._stopped:
                log.warning("no snapshot was made, the old ones stay: %s", outcome)
                self._not_before = self._loop.time() + _BACK_OFF_S
                self.snapshots_failed += 1
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            self.snapshot_s.observe(self._loop.time() - self._snapshot_began)
            # Without it the size of the one before decides when the next is due.
            with suppress(OSError):
                self._snapshot_size = self._store.last_snapshot().size
            # The list of segments belongs to the thread that appends to the last of them.
            store = self._store
            self._sync.run(lambda: store.purge(outcome), self._purged)

    def _purged(self, outcome: Position | BaseException) -> None:
        if isinstance(outcome, OSError):
            log.warning("the log before the oldest snapshot could not be purged: %s", outcome)
        elif isinstance(outcome, BaseException):
            raise outcome

    def _sync_index(self) -> int:
        self._store.sync_index()
        return 0

    def _reserve(self) -> int:
        self._store.reserve_index()
        return 0

    def _reserved(self, outcome: int | BaseException) -> None:
        self._busy = False
        if isinstance(outcome, BaseException) and not isinstance(outcome, OSError):
            raise outcome
        # Without room for it there is nothing to say: the log will meet the full disk, and tell.

    def _done(self, outcome: int | BaseException) -> None:
        self._busy = False
        if isinstance(outcome, BaseException):
            log.warning("the index could not be written out: %s", outcome)

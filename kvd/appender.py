"""How a batch gets into the log: the kernel syncs it by itself where it can, else the sync thread.

Either way the loop goes on meanwhile, and one batch is under way at a time. The thread also does
all that is rare: it begins segments, writes long frames, and makes the faults of failpoints.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from time import monotonic

from kvd.syncthread import SyncThread
from storage.aio import DataSync
from storage.errors import LogFull
from storage.store import Batch, Store
from storage.wal import Position

log = logging.getLogger(__name__)

Done = Callable[[Position | BaseException], None]


class Appender:
    """Appends the batches of one store."""

    def __init__(
        self,
        store: Store,
        sync: SyncThread[Position],
        loop: asyncio.AbstractEventLoop,
        *,
        thread_only: bool = False,
    ) -> None:
        self._store = store
        self._sync = sync
        self._loop = loop
        self._done: Done | None = None
        self._began = 0.0
        self._kernel: DataSync | None = None
        if not thread_only:
            try:
                self._kernel = DataSync()
            except OSError as error:
                log.debug("the log is synced on a thread, the kernel cannot by itself: %s", error)
            else:
                loop.add_reader(self._kernel.fileno, self._synced)

    def append(self, batch: Batch, done: Done) -> None:
        """Append a batch; call `done` with the end of its frame, or what `Store.append` raises."""
        # What the thread is doing to the log comes first.
        if self._kernel is not None and self._sync.waiting == 0:
            began = monotonic()
            try:
                fd = self._store.begin_append(batch)
            except (LogFull, OSError) as error:
                self._loop.call_soon(done, error)
                return
            if fd is not None:
                try:
                    self._kernel.submit(fd)
                except OSError:  # too much to do for the kernel just now
                    self._sync.run(self._store.wal.sync_begun, done)
                else:
                    self._done, self._began = done, began
                return
        self._sync.run(partial(self._store.append, batch), done)

    def close(self) -> None:
        """Let go of what syncs; nothing may be under way."""
        if self._kernel is not None:
            self._loop.remove_reader(self._kernel.fileno)
            self._kernel.close()
            self._kernel = None

    def _synced(self) -> None:
        assert self._kernel is not None
        code = self._kernel.outcome()
        done = self._done
        if code is None or done is None:
            return
        self._done = None
        wal = self._store.wal
        outcome: Position | BaseException
        try:
            outcome = wal.end_append(monotonic() - self._began, code)
        except OSError as error:
            outcome = error
        if wal.wants_next:
            # The thread prepares it whenever it has nothing else to do.
            self._sync.run(lambda: wal.position, _ignore)
        done(outcome)


def _ignore(outcome: Position | BaseException) -> None:
    """Nobody has asked for it."""

"""Flushes of the committed state to the index, while batches are being synced.

A batch is committed once it is in the log and in memory (storage/index/state.py). What the index
lacks is written to it when it has grown to some hundred changes, while the next batch is being
synced; and by the tick, so that a start never has much to apply again.

The index may refuse it, on a full disk. Memory has everything, so reads and batches go on, and it
is tried again; batches wait once too much is beyond the index. Where there is room, it is the disk
that fails: the process ends, and the next start finds all in the log.

A flush that takes long makes the next ones smaller: other requests wait for it.
What is too much for one turn of the loop, as a value of 10 MiB is, is flushed on the sync thread.
Reads go on meanwhile, batches wait until it has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from time import monotonic, thread_time

from kvd.core.histogram import Histogram
from kvd.core.worker_thread import WorkerThread
from kvd.storage import disk
from kvd.storage.format.frame import Position
from kvd.storage.index.errors import BROKEN, IndexRefused, MapFull
from kvd.storage.store import Store

log = logging.getLogger(__name__)

# How many nodes of removed directories are freed at once: about a millisecond.
_FREED_AT_ONCE = 500
_RETRY_S = 0.5
# So much of the loop's time a flush may take before the next one is of fewer records, down to 64.
# (A flush of 512 takes 4 ms in a store of 10,000 keys and 6 to 8 in one of 1,000,000; each commit
# costs the time of some records more, where keys are near to each other: measured.)
_FLUSH_S_MAX = 0.005
_PARTS_MAX = 8
# So often the index may be refused though there is room: that may have come a moment ago.
_FAILURES_MAX = 3


class Flusher:
    """Flushes one store.

    Attributes:
        waits: Whether the index has refused what is committed, so that it has to be tried again.
        holds: Whether batches may have to wait: for that, or for a flush on the thread.
        refusal: What it said then where its map is full, which no other file makes room in.
        flush_s: How long flushes took.
    """

    def __init__(
        self,
        store: Store,
        sync: WorkerThread[Position],
        loop: asyncio.AbstractEventLoop,
        *,
        on_fatal: Callable[[BaseException], None],
        on_flush: Callable[[], None],
        on_room: Callable[[], None],
    ) -> None:
        """Begin.

        Args:
            store: whose index it is.
            sync: the thread that may wait for the disk.
            loop: that of the store.
            on_fatal: gets what ends the process.
            on_flush: called when the index has been written to.
            on_room: called when the index has taken what it had refused.
        """
        self._store = store
        self._state = store.state
        self._sync = sync
        self._loop = loop
        self._on_fatal = on_fatal
        self._on_flush = on_flush
        self._on_room = on_room
        self._failures = 0
        self._is_freeing = False
        self._stopped = False
        self.waits = self.holds = False
        self.refusal: IndexRefused | None = None
        self.flush_s = Histogram()

    def beside_batch(self) -> None:
        """Flush what is worth it; to be called while a batch is being synced."""
        if not self.holds:
            self.flush()

    def on_thread(self) -> None:
        """Flush what is too much for the loop; to be called when no batch is under way."""
        if self.holds or self._stopped:
            return
        self.holds = True
        began = monotonic()
        self._state.begin_flush()
        self._sync.run(self._store.write_flush, partial(self._ended, began))

    def tick(self) -> None:
        """Flush what is there, about once a second."""
        self._state.forget_large()
        if not self.holds:
            self.flush()
        self.free()

    def free(self) -> None:
        """Free what hangs below removed directories, in slices; to be called when there is some."""
        # In turns of their own, so that requests come in between.
        if self._state.has_garbage and not (self._is_freeing or self._stopped or self.holds):
            self._is_freeing = True
            self._loop.call_soon(self._free)

    def stop(self) -> None:
        """Stop accepting work."""
        self._stopped = True

    def flush(self, *, free: int = 0) -> bool:
        """Flush, and free so many nodes; return whether the index has taken it."""
        if not (free or self._state.is_behind):
            return True
        began, cpu_began, is_wanted = monotonic(), thread_time(), self._state.wants_flush
        try:
            self._store.flush(free=free)
        except BROKEN as damage:
            self._on_fatal(damage)
            return False
        except IndexRefused as error:
            self._refused(error)
            return False
        self._took(began)
        if is_wanted:
            self._pace(thread_time() - cpu_began)
        return True

    def _pace(self, took_s: float) -> None:
        """Flush less at a time, or more again, by what a flush has taken of the loop's time."""
        parts = self._state.flush_parts
        if took_s > _FLUSH_S_MAX and parts < _PARTS_MAX:
            self._state.flush_in_parts(parts * 2)
        elif took_s < _FLUSH_S_MAX / 4 and parts > 1:
            self._state.flush_in_parts(parts // 2)

    def _ended(self, began: float, outcome: Position | BaseException) -> None:
        """Take note of what became of a flush on the thread."""
        self.holds = False
        if isinstance(outcome, IndexRefused) and not isinstance(outcome, BROKEN):
            self._state.end_flush(outcome)
            self._refused(outcome)
        elif isinstance(outcome, BaseException):
            self._on_fatal(outcome)
        else:
            self._state.end_flush()
            self._took(began)
            self.free()
        self._on_room()

    def _took(self, began: float) -> None:
        """Take note that the index has taken what was flushed since a time."""
        self.flush_s.observe(monotonic() - began)
        if self.waits:
            self.waits = self.holds = False
            self.refusal = None
            self._failures = 0
            log.warning("the index has taken the changes that waited")
            self._on_room()
        self._on_flush()

    def _free(self) -> None:
        self._is_freeing = False
        if not (self._stopped or self.holds):
            self.flush(free=_FREED_AT_ONCE)
            self.free()

    def _refused(self, error: IndexRefused) -> None:
        if not self.waits:
            self.waits = self.holds = True
            log.warning("changes wait in memory, the index cannot take them yet: %s", error)
        self.refusal = error if isinstance(error, MapFull) else None
        # LMDB takes a short write for an I/O error, so ask the disk which one it is.
        self._sync.run(self._store.probe_index, lambda outcome: self._probed(error, outcome))

    def _probed(self, error: IndexRefused, outcome: Position | BaseException) -> None:
        """Try again in a while; give up when it is refused again and again for no reason."""
        no_room = isinstance(outcome, OSError) and outcome.errno in disk.REFUSALS
        if no_room or isinstance(error, MapFull):
            self._failures = 0
        elif isinstance(outcome, BaseException):
            self._on_fatal(outcome)
            return
        else:
            self._failures += 1
            if self._failures >= _FAILURES_MAX:
                self._on_fatal(error)
                return
        self._loop.call_later(_RETRY_S, self._try_again)

    def _try_again(self) -> None:
        if not self._stopped and self.waits:
            self.flush()

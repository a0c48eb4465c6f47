"""Disk usage of a store, for `/metrics`: measured on a thread, since a disk may be slow to answer.

Scrapes that come while a measurement is running share it, so at most one thread measures.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from kvd.storage.disk import free_bytes
from kvd.storage.store import Store
from kvd.storage.usage import usage


class DiskUsage(NamedTuple):
    """Bytes on the disk, and the time of the newest snapshot in nanoseconds since the epoch."""

    log: int
    snapshots: int
    index_allocated: int
    index_length: int
    """Length of the index's file; the file has holes, so it may take less on the disk."""
    quarantine: int
    free: int
    snapshot_ns: int | None


def measure(store: Store) -> DiskUsage:
    """Walk the data directory; blocks for as long as the disk takes.

    Raises:
        OSError: the disk refuses.
    """
    path = store.directory.path
    allocated: Counter[str] = Counter()
    for part in usage(path):
        allocated[part.part.partition("/")[0]] += part.allocated
    return DiskUsage(
        log=allocated["wal"],
        snapshots=allocated["snap"],
        index_allocated=allocated["index"],
        index_length=store.index.file_bytes,
        quarantine=allocated["quarantine"],
        free=free_bytes(path),
        snapshot_ns=store.snapshots.last_ns(),
    )


class DiskMeter:
    """The last measurement, and the one that is running."""

    def __init__(self, measure: Callable[[], DiskUsage]) -> None:
        self._measure = measure
        self._running: asyncio.Future[DiskUsage] | None = None
        self._last: DiskUsage | None = None

    @property
    def last(self) -> DiskUsage:
        """The result of the last `refresh`."""
        assert self._last is not None
        return self._last

    async def refresh(self) -> None:
        """Measure again, or wait for the measurement that is running.

        Raises:
            OSError: the disk refuses.
        """
        running = self._running
        if running is None:
            running = asyncio.ensure_future(asyncio.to_thread(self._measure))
            running.add_done_callback(self._forget)
            self._running = running
        # A scrape that is cancelled takes no other along.
        self._last = await asyncio.shield(running)

    def _forget(self, finished: asyncio.Future[DiskUsage]) -> None:
        self._running = None
        if not finished.cancelled():
            finished.exception()  # it is raised where it is awaited, if that still is

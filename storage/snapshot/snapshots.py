"""The snapshots that a store keeps: taken, verified, and deleted once newer ones replace them."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import NamedTuple

import lmdb

from kvd.storage.directory.data_directory import DataDirectory
from kvd.storage.failpoints import Faults
from kvd.storage.format.frame import Position
from kvd.storage.snapshot import directory as snapshot
from kvd.storage.snapshot.checkpoint import Checkpoint

log = logging.getLogger(__name__)

SNAPSHOTS_KEPT_MIN = 2
"""One may be damaged."""


class LastSnapshot(NamedTuple):
    """The newest snapshot: its place among the records, the log since then, its size, in bytes."""

    pos: int
    log_bytes_since: int
    size: int


class Snapshots:
    """The snapshots of an open store.

    Attributes:
        size: The length of the newest one, as far as that is known.
    """

    def __init__(
        self,
        env: lmdb.Environment,
        directory: DataDirectory,
        *,
        kept: int,
        faults: Faults,
    ) -> None:
        self.size = 0
        self._path, self._identity = directory.snap, directory.identity
        self._kept = max(kept, SNAPSHOTS_KEPT_MIN)
        self._checkpoint = Checkpoint(env, directory, faults)

    def take(self) -> int:
        """Write a snapshot of what the index holds, verify it, and delete the oldest.

        Blocks for as long as the disk takes: for a thread of its own. The index is read only while
        it is copied, which happens outside of the interpreter's lock.

        Returns:
            The frame before which the log may be purged: the oldest snapshot continues from it. 0
            while there is only one: if that is damaged, the log is all there is.

        Raises:
            OSError, CorruptSnapshot: none was made; the old ones are unchanged.
        """
        header = self._checkpoint.take()
        log.info("wrote a snapshot of index %d", header.index)
        kept = snapshot.prune(self._path, keep=self._kept)
        return kept[-1].seq if len(kept) > 1 else 0

    def stop(self) -> None:
        """Give up the snapshot that another thread is taking; take none after it."""
        self._checkpoint.stop()

    def last(self, end: Position, segment_bytes_max: int) -> LastSnapshot:
        """Describe the newest snapshot; all zero but the log if there is none.

        Args:
            end: the end of the log.
            segment_bytes_max: the size of its segments.
        """
        for path, header in snapshot.usable(self._path, self._identity.store_uuid):
            segments = end.segment - header.segment
            log_bytes = segments * segment_bytes_max + end.offset - header.offset
            self.size = path.stat().st_size
            return LastSnapshot(header.pos, log_bytes, self.size)
        return LastSnapshot(0, (end.segment - 1) * segment_bytes_max, 0)

    def last_ns(self) -> int | None:
        """Return the time of the newest snapshot's file; None if there is none."""
        for path in snapshot.available(self._path):
            with suppress(FileNotFoundError):
                return path.stat().st_mtime_ns
        return None

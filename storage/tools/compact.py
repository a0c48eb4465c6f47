"""Compaction of a data directory to the size of its present state.

Two snapshots of the same state are taken, so that one may become damaged later. The log before
them is deleted, and with it the points in the past to which the store could be restored. The index
is rebuilt, without the free pages that writes have left in it.
"""

from __future__ import annotations

import os
from pathlib import Path

from kvd.storage import disk
from kvd.storage.directory.data_directory import DataDirectory
from kvd.storage.directory.replica_file import require_alone
from kvd.storage.format.names import SPARE_NAME
from kvd.storage.store import Options, Store
from kvd.storage.tools.source import format_of
from kvd.storage.wal.segments import Scan, list_segments

# A segment that is begun here holds a few records.
_SEGMENT_BYTES = 64 << 10


def compact(path: Path) -> None:
    """Compact a store that no server has open; durable on return.

    The term grows by two, as with two starts.

    Raises:
        StorageError: the directory cannot be used or is damaged; nothing is purged then.
        OSError: the disk failed or is full.
    """
    require_alone(path)  # a term that it logs alone would not be in the log of the others
    format_of(path)  # `open` would make a new store where there is none
    _open(path).close()  # cuts a torn tail and keeps it in quarantine
    # Without reserved space, the last segment cannot take the next frame: that frame begins a new
    # segment, and the old one can be purged with the others.
    _release_reserved(path)
    store = _open(path)
    try:
        _log_a_term(store)
        store.snapshot()
        _log_a_term(store)
        store.purge(store.snapshot())
    finally:
        store.close()
    _open(path, rebuild_index=True).close()
    _release_reserved(path)


def _open(path: Path, *, rebuild_index: bool = False) -> Store:
    # The server was allowed to use this file system, or there would be no store.
    options = Options(
        segment_bytes_max=_SEGMENT_BYTES, rebuild_index=rebuild_index, allow_network_fs=True
    )
    return Store.open(path, options)


def _log_a_term(store: Store) -> None:
    """Append a term, so that the next snapshot gets a position and a name of its own."""
    applied = store.applied
    now_ns = max(disk.wall_clock_ns() - applied.clock_offset_ns, applied.time_ns)
    store.start_term(now_ns, store.applied.history_limit)


def _release_reserved(path: Path) -> None:
    """Release the space that a server has reserved for later frames."""
    directory = DataDirectory.open(path)
    try:
        disk.remove_if_there(directory.wal / SPARE_NAME)
        segments = list_segments(directory.wal, directory.identity.store_uuid)
        scan = Scan(directory.wal, segments, None)
        for _ in scan.frames(0):
            pass
        if not segments:
            return
        fd = disk.open_to_write(segments[-1].path)
        try:
            disk.truncate(fd, scan.tail.offset)
            disk.sync_file(fd)
        finally:
            os.close(fd)
        disk.sync_directory(directory.wal)
    finally:
        directory.close()

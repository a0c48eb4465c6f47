"""Making a data directory as small as it can be without losing anything of the present.

Two snapshots of the same state are taken, so that one may still rot; the log before them goes, and
with it the points in the past that it could have been restored to; and the index is built anew,
without the holes that a life of writes leaves in it.
"""

from __future__ import annotations

import os
from pathlib import Path

from kvd.storage import disk
from kvd.storage.directory.data_directory import DataDirectory
from kvd.storage.format.names import SPARE_NAME
from kvd.storage.store import Store
from kvd.storage.tools.source import format_of
from kvd.storage.wal.segments import Scan, list_segments

# A segment that is begun here holds a few records.
_SEGMENT_BYTES = 64 << 10


def compact(path: Path) -> None:
    """Compact a store that no server has open; durable on return.

    Counts as two starts: the term grows by two.

    Raises:
        StorageError: the directory cannot be used, or is damaged; nothing is purged then.
        OSError: the disk failed, or is full.
    """
    format_of(path)  # or `open` would make a store of what is none
    _open(path).close()  # cuts a torn tail, and keeps it
    # Without room behind its frames, the last segment cannot take the next one: that begins a new
    # segment, and the old one can go with the others.
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
    # Where the directory is was decided when its server was started.
    return Store.open(
        path,
        segment_bytes_max=_SEGMENT_BYTES,
        rebuild_index=rebuild_index,
        allow_network_fs=True,
    )


def _log_a_term(store: Store) -> None:
    """Move the log on, so that a snapshot gets a place, and a name, of its own."""
    applied = store.applied
    now_ns = max(disk.wall_clock_ns() - applied.clock_offset_ns, applied.time_ns)
    store.start_term(now_ns, store.applied.history_limit)


def _release_reserved(path: Path) -> None:
    """Give back the space that a server reserves for frames to come."""
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

"""Writing a snapshot: the file of storage/snapshot/file.py, frame by frame.

Its bytes are durable before it gets its name; the disk is left to the log in between.
"""

import hashlib
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from operator import itemgetter
from pathlib import Path

import cbor2

from kvd.storage import disk
from kvd.storage.format import frame
from kvd.storage.format.frame import (
    SNAP,
    SNAPSHOT_MAGIC,
    SegmentHeader,
)
from kvd.storage.format.tables import Row
from kvd.storage.snapshot.file import Header, encode_header

CHUNK_BYTES = 1024 * 1024
SYNC_BYTES = 4 * 1024 * 1024
_TABLE = itemgetter(0)


def write(
    path: Path,
    header: Header,
    rows: Iterable[Row],
    *,
    pace: Callable[[int], None] | None = None,
) -> None:
    """Write a snapshot to a new file; its bytes are durable on return, its name is not.

    Args:
        path: a file that does not exist; it is removed after a failure.
        header: the header of the snapshot.
        rows: in ascending order of tables, and of keys in each table.
        pace: called after each sync (every 4 MiB) with the bytes since the last one; may sleep.

    Raises:
        OSError: the file could not be written.
        ValueError: the rows are out of order.
    """
    fd = disk.create(path)
    try:
        try:
            writer = _Writer(fd, header, pace)
            for chunk in _chunks(rows):
                writer.add_chunk(chunk)
            writer.finish()
        finally:
            os.close(fd)
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


class _Writer:
    """A writer of the frames of a snapshot to a file."""

    def __init__(self, fd: int, header: Header, pace: Callable[[int], None] | None) -> None:
        self._fd = fd
        self._pace = pace
        self._offset = 0
        self._synced = 0
        self._seq = 0
        self._crc = 0
        self._index = header.index
        self._salt = secrets.randbits(64)
        self._counts: Counter[int] = Counter()
        self._digest = hashlib.sha256()
        page = SegmentHeader(
            store_uuid=header.store_uuid,
            number=0,
            first_seq=1,
            first_index=header.index,
            chain=0,
            salt=self._salt,
            created_ns=disk.wall_clock_ns(),
        )
        self._put(frame.encode_segment_header(page, magic=SNAPSHOT_MAGIC))
        self._add(encode_header(header), 0)

    def add_chunk(self, rows: list[Row]) -> None:
        """Write a chunk of rows; sync every 4 MiB."""
        payload = cbor2.dumps(rows)
        self._digest.update(payload)
        self._counts.update(map(_TABLE, rows))
        self._add(payload, len(rows))
        unsynced = self._offset - self._synced
        if unsynced >= SYNC_BYTES:
            disk.sync_data(self._fd)
            self._synced = self._offset
            if self._pace:
                self._pace(unsynced)

    def finish(self) -> None:
        """Write the footer and sync."""
        footer = {"rows": dict(self._counts), "sha256": self._digest.digest()}
        self._add(cbor2.dumps(footer), 0)
        disk.sync_file(self._fd)

    def _add(self, payload: bytes, count: int) -> None:
        self._seq += 1
        data = frame.encode_frame(
            payload,
            seq=self._seq,
            first_index=self._index,
            count=count,
            flags=SNAP,
            chain=self._crc,
            salt=self._salt,
        )
        self._crc = frame.body_crc(data)
        self._put(data)

    def _put(self, data: bytes) -> None:
        disk.write_at(self._fd, data, self._offset)
        self._offset += len(data)


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Group rows into chunks and check their order."""
    chunk: list[Row] = []
    size = 0
    last_table, last_key = -1, b""
    for row in rows:
        table, key, value = row
        if table < last_table or (table == last_table and key <= last_key):
            raise ValueError(f"row {key.hex()} of table {table} is out of order")
        last_table, last_key = table, key
        chunk.append(row)
        size += len(key) + len(value)
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk

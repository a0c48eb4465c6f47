"""The format of a snapshot: one self-checking file.

A header page (magic KVDSNAP1) and frames (storage/format/frame.py) that all have flag SNAP:

    header    CBOR [version, store_uuid, cluster_id, member_id, index, seq, segment, offset, crc,
                    chain, pos, term, time_ns]; may grow at its end
    chunk *   CBOR array of rows [table, key, value], about 1 MiB of them
    footer    CBOR {"rows": {table: count}, "sha256": over all payloads of chunks}

Rows come by table and in ascending order of keys, so that they can be appended to an empty index.
A file without a footer is no snapshot. This module does not interpret the rows.
"""

import hashlib
import os
import secrets
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import cbor2

from kvd.storage import disk
from kvd.storage.errors import CorruptSnapshot
from kvd.storage.format import frame
from kvd.storage.format.frame import (
    PAGE_SIZE,
    SNAP,
    SNAPSHOT_MAGIC,
    FrameState,
    Position,
    SegmentHeader,
)
from kvd.storage.format.tables import Row
from kvd.storage.frame_reader import FrameReader

VERSION = 1
CHUNK_BYTES = 1024 * 1024
SYNC_BYTES = 4 * 1024 * 1024
_TABLE = itemgetter(0)


class Header(NamedTuple):
    """The header of a snapshot.

    `index`, `chain` (8 bytes), `pos`, `term` and `time_ns` (on the wall clock) are those of the
    state in the snapshot; `segment`, `offset`, `seq` and `crc` are the position in the log at which
    replay continues.
    """

    store_uuid: bytes
    cluster_id: int
    member_id: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which is not used
    seq: int
    segment: int
    offset: int
    crc: int
    chain: bytes
    pos: int
    term: int
    time_ns: int

    @property
    def position(self) -> Position:
        """The position in the log at which replay continues."""
        return Position(self.segment, self.offset, self.seq, self.crc)


_TYPES = (bytes, int, int, int, int, int, int, int, bytes, int, int, int)
"""The types of the fields of a header."""


def encode_header(header: Header) -> bytes:
    """Return the payload of the header's frame."""
    return cbor2.dumps([VERSION, *header])


def decode_header(data: bytes) -> Header:
    """Return the header in the payload of its frame.

    Raises:
        ValueError: it is not a header that this version knows.
    """
    try:
        fields: object = cbor2.loads(data)
    except cbor2.CBORDecodeError as error:
        raise ValueError(str(error)) from error
    match fields:
        case [int(version), *_] if version != VERSION:
            raise ValueError(f"version {version} is not known here, only {VERSION}")
        case [int(), *values] if len(values) >= len(_TYPES) and all(
            map(isinstance, values, _TYPES)
        ):
            return Header._make(values[: len(_TYPES)])
    raise ValueError("this is no header of a snapshot")


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


def read(path: Path) -> tuple[Header, Iterator[Row]]:
    """Open a snapshot; return its header and an iterator over its rows.

    The rows are verified only at the end of the iterator, where the footer is checked. Memory is
    bounded by the largest chunk.

    Raises:
        CorruptSnapshot: the file is damaged or incomplete; here and in the iterator.
        OSError: the file cannot be read.
    """
    header, chunks = read_chunks(path)
    return header, ((table, key, value) for chunk in chunks for table, key, value in chunk)


def read_chunks(path: Path) -> tuple[Header, Iterator[list[Row]]]:
    """Open a snapshot as `read` does, but iterate over its chunks, none of them empty."""
    frames = _frames(path)
    header = _first(path, frames)
    return header, _chunks_in(path, header, frames)


def verify(path: Path) -> Header:
    """Read a snapshot from the disk to its end and return its header.

    Raises:
        CorruptSnapshot: it is damaged or incomplete.
        OSError: it cannot be read.
    """
    header, chunks = read_chunks(path)
    for _ in chunks:
        pass
    return header


def read_header(path: Path) -> Header:
    """Return the header of a snapshot, without a check of its rows.

    Raises:
        CorruptSnapshot: the header is damaged.
        OSError: the file cannot be read.
    """
    with closing(_frames(path)) as frames:
        return _first(path, frames)


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


def _frames(path: Path) -> Generator[tuple[int, bytes], None, None]:
    """Yield offset and payload of each frame of a file, up to zeros or its end."""
    try:
        reader = FrameReader(path, magic=SNAPSHOT_MAGIC)
    except ValueError as error:
        raise CorruptSnapshot.at(path, 0, str(error)) from error
    with reader:
        seq, crc = 0, 0
        while (parsed := reader.next()).state is FrameState.INTACT:
            offset = reader.offset - parsed.size
            if (parsed.seq, parsed.chain, parsed.flags) != (seq + 1, crc, SNAP):
                raise CorruptSnapshot.at(
                    path, offset, f"frame {parsed.seq} is here, expected frame {seq + 1}"
                )
            seq, crc = parsed.seq, parsed.crc
            yield offset, parsed.payload
        if parsed.state is FrameState.BAD:
            raise CorruptSnapshot.at(path, reader.offset, f"frame {seq + 1} {parsed.reason}")
        if reader.offset != reader.size:
            raise CorruptSnapshot.at(
                path, reader.offset, f"the frames end here, but the file has {reader.size} bytes"
            )


def _first(path: Path, frames: Iterator[tuple[int, bytes]]) -> Header:
    for offset, payload in frames:
        try:
            return decode_header(payload)
        except ValueError as error:
            raise CorruptSnapshot.at(path, offset, str(error)) from error
    raise CorruptSnapshot.at(path, PAGE_SIZE, "the header is missing")


def _chunks_in(
    path: Path, header: Header, frames: Iterator[tuple[int, bytes]]
) -> Iterator[list[Row]]:
    """Yield all chunks, then check the footer."""
    counts: Counter[int] = Counter()
    digest = hashlib.sha256()
    footer: object = None
    offset = PAGE_SIZE
    for offset, payload in frames:
        if footer is not None:
            raise CorruptSnapshot.at(path, offset, "something follows the footer")
        try:
            content: object = cbor2.loads(payload)
        except cbor2.CBORDecodeError as error:
            raise CorruptSnapshot.at(path, offset, str(error)) from error
        if isinstance(content, list):
            digest.update(payload)
            counts.update(map(_TABLE, content))
            yield content
        else:
            footer = content
    if footer != {"rows": counts, "sha256": digest.digest()}:
        problem = "is missing" if footer is None else "does not fit the rows"
        raise CorruptSnapshot.at(path, offset, f"the footer of index {header.index} {problem}")

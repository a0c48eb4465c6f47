"""The format of a snapshot: one self-checking file.

A header page (magic KVDSNAP1) and frames (storage/format/frame.py) that all have flag SNAP:

    header    CBOR [version, store_uuid, cluster_id, member_id, index, seq, segment, offset, crc,
                    chain, pos, term, time_ns, payload_seq]; may grow at its end
    chunk *   CBOR array of rows [table, key, value], about 1 MiB of them
    footer    CBOR {"rows": {table: count}, "sha256": over all payloads of chunks}

Rows come by table and in ascending order of keys, so that they can be appended to an empty index.
A file without a footer is no snapshot. This module does not interpret the rows.
"""

import hashlib
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import cbor2

from kvd.storage.errors import CorruptSnapshot
from kvd.storage.format.frame import (
    PAGE_SIZE,
    SNAP,
    SNAPSHOT_MAGIC,
    FrameState,
    Position,
)
from kvd.storage.format.tables import Row
from kvd.storage.frame_reader import FrameReader

VERSION = 1
_TABLE = itemgetter(0)


class Header(NamedTuple):
    """The header of a snapshot.

    `index`, `chain` (8 bytes), `pos`, `term` and `time_ns` (on the wall clock) are those of the
    state in the snapshot; `segment`, `offset`, `seq` and `crc` are the position in the log at which
    replay continues. That counts frames, and is this store's own; `payload_seq` is the last batch
    in the snapshot, which all replicas count alike: 0 where an older version has written it.
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
    payload_seq: int = 0

    @property
    def position(self) -> Position:
        """The position in the log at which replay continues."""
        return Position(self.segment, self.offset, self.seq, self.crc)


_TYPES = (bytes, int, int, int, int, int, int, int, bytes, int, int, int, int)
"""The types of the fields of a header."""
_FIELDS_MIN = len(_TYPES) - 1
"""How many the headers of all versions have."""


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
        case [int(), *values] if len(values) >= _FIELDS_MIN and all(
            map(isinstance, values, _TYPES)
        ):
            return Header._make((*values, 0)[: len(_TYPES)])
    raise ValueError("this is no header of a snapshot")


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

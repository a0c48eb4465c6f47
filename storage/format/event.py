"""The record of one event in the history: a change, and the node it replaced.

    u32 crc | u64 time ns | u32 length | record of the change, as in the log | row of the node
    before

Little-endian. The crc is zlib's, over the row's key (the index, 8 bytes) and all that follows it.
The record is that of storage/format/records.py, `length` bytes; the rest is the value of the node's
row as storage/format/node.py has it, nothing where there was no node. Both are at hand when the
event is made.

A large value that was replaced need not stand there twice. A row may name the event that had set
it instead, whose row is kept as long as it is named (storage/index/history.py):

    u32 crc | u64 time ns | u32 length | ff | u64 index of the event before | u32 length of the row
    of the node before, were it here | record of the change

No record begins with ff, so readers that do not know this form refuse the row. Snapshots have whole
rows only, by `with_prev`. Where there are rows that name others, or have been, `MARK` stands under
the key of index 0, which no event has: a version that does not know them finds one row too many at
start, and builds the index again before it reads any.

The time is the batch's: a `ttl` that a watcher is shown counts from it, live and from history, so
that history reads the same for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import NamedTuple
from zlib import crc32

import cbor2

from kvd.storage.format.node import HEADER as NODE_HEADER
from kvd.storage.format.node import CorruptIndex, Node, parse_node, previous_row
from kvd.storage.format.records import REMOVALS, Change, UnknownRecord, decode_record

_HEADER = Struct("<IQI")
assert _HEADER.size == 16
_REST = Struct("<QI")
_INDEX = Struct(">Q")
_CRC = Struct("<I")
_NAMING = Struct("<QIBQI")
_NAMED = Struct("<BQI")
assert _NAMED.size == 13
_NAMES = 0xFF
_pack_rest = _REST.pack
_pack_crc = _CRC.pack

Find = Callable[[int], bytes | None]
"""Looks up the row of the event with an index."""


MARK_KEY = _INDEX.pack(0)
MARK = _CRC.pack(crc32(MARK_KEY))
"""The row that says that rows of the history may name others."""


class Event(NamedTuple):
    """A change as watchers receive it; `prev` is the node before it, None if there was none."""

    change: Change
    prev: Node | None
    time_ns: int


def event_key(index: int) -> bytes:
    """Return the key of the event with this index: big-endian, so that keys sort by index."""
    return _INDEX.pack(index)


def index_of(key: bytes) -> int:
    """Return the index of the event whose row has a key."""
    index: int = _INDEX.unpack(key)[0]
    return index


def encode_event(key: bytes, record: bytes, prev_row: bytes, time_ns: int) -> bytes:
    """Return the row of an event, with `key` as its key.

    Args:
        key: as `event_key` makes it.
        record: the change, encoded for the log.
        prev_row: the value of the node before the change, empty where there was none.
        time_ns: the time of the batch.
    """
    rest = _pack_rest(time_ns, len(record)) + record + prev_row
    return _pack_crc(crc32(rest, crc32(key))) + rest


def encode_naming(key: bytes, record: bytes, prev: Node, time_ns: int) -> bytes:
    """Return the row of an event that names the one before instead of holding its value.

    Args:
        key: as `event_key` makes it.
        record: the change, encoded for the log.
        prev: the file before the change; the event of its modified index is held, too.
        time_ns: the time of the batch.
    """
    assert prev.value is not None
    length = NODE_HEADER.size + len(prev.value)
    head = _NAMING.pack(time_ns, len(record), _NAMES, prev.modified_index, length)
    crc = crc32(record, crc32(head, crc32(key)))
    return b"".join((_pack_crc(crc), head, record))


def named_by(row: bytes | memoryview) -> int:
    """Return the index of the event that a row names, 0 where it names none. Checks nothing."""
    if len(row) < _HEADER.size + _NAMED.size or row[_HEADER.size] != _NAMES:
        return 0
    index: int = _NAMED.unpack_from(row, _HEADER.size)[1]
    return index


def whole_bytes(row: bytes | memoryview) -> int:
    """Return how long a row would be if it named none. Checks nothing."""
    if len(row) < _HEADER.size + _NAMED.size or row[_HEADER.size] != _NAMES:
        return len(row)
    length: int = _NAMED.unpack_from(row, _HEADER.size)[2]
    return len(row) - _NAMED.size + length


def with_prev(key: bytes, row: bytes, find: Find) -> bytes:
    """Return a row that tells the same and names none.

    Raises:
        CorruptIndex: the row, or the one that it names, is not what was written.
    """
    if not named_by(row):
        return row
    _, prev, time_ns = decode_event(key, row, find)
    assert prev is not None
    return encode_event(key, row[_HEADER.size + _NAMED.size :], previous_row(prev), time_ns)


def decode_event(key: bytes, row: bytes, find: Find | None = None) -> Event:
    """Return the event in a row.

    Args:
        key: where it stands.
        row: what stands there.
        find: what looks up the row that it may name.

    Raises:
        CorruptIndex: the row, or the one that it names, is not what was written.
    """
    change, end, time_ns = _decode_change(key, row)
    if row[_HEADER.size] == _NAMES:
        return Event(change, _find_prev(key, row, change, find), time_ns)
    return Event(change, parse_node(row, end) if len(row) > end else None, time_ns)


def _decode_change(key: bytes, row: bytes) -> tuple[Change, int, int]:
    """Return the change in a row, where its record ends, and the time."""
    view = memoryview(row)
    if len(row) < _HEADER.size or crc32(view[4:], crc32(key)) != _CRC.unpack_from(row)[0]:
        raise CorruptIndex(f"the history record {key.hex()} fails its checksum")
    _, time_ns, length = _HEADER.unpack_from(row)
    start = _HEADER.size
    if row[start : start + 1] == b"\xff":
        start += _NAMED.size
    end = start + length
    try:
        change = decode_record(cbor2.loads(view[start:end]))
    except (UnknownRecord, cbor2.CBORDecodeError) as error:
        raise CorruptIndex(f"the history record {key.hex()} holds {error}") from None
    if not isinstance(change, Change):
        raise CorruptIndex(f"the history record {key.hex()} is no change")
    return change, end, time_ns


def _find_prev(key: bytes, row: bytes, change: Change, find: Find | None) -> Node:
    """Return the file that the event before had set."""
    index = named_by(row)
    named = find(index) if find is not None else None
    if named is None:
        raise CorruptIndex(f"the history record {key.hex()} names event {index}, which is missing")
    before, _, _ = _decode_change(event_key(index), named)
    node = Node(before.value, before.created_index, before.index, before.expiration_ns)
    length = NODE_HEADER.size + len(node.value or b"")
    if (
        before.kind in REMOVALS
        or before.value is None
        or (before.key, before.index) != (change.key, index)
        or whole_bytes(row) - len(row) != length - _NAMED.size
    ):
        raise CorruptIndex(
            f"the history record {key.hex()} names event {index}, which has not set the file before"
        )
    return node

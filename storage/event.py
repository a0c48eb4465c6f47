"""The record of one event in the history: a change, and the node it replaced.

    u32 crc | u64 time ns | u32 length | record of the change, as in the log | row of the node
    before

Little-endian. The crc is zlib's, over the row's key (the index, 8 bytes) and all that follows it.
The record is that of storage/change.py, `length` bytes; the rest is the value of the node's row as
storage/node.py has it, nothing where there was no node. Both are at hand when the event is made.

The time is the batch's: a `ttl` that a watcher is shown counts from it, live and from history, so
that history reads the same for ever.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple
from zlib import crc32

import cbor2

from storage.change import Change, UnknownRecord, decode_record
from storage.node import CorruptIndex, Node, parse_node

_HEADER = Struct("<IQI")
assert _HEADER.size == 16
_REST = Struct("<QI")
_INDEX = Struct(">Q")
_CRC = Struct("<I")
_pack_rest = _REST.pack
_pack_crc = _CRC.pack


class Event(NamedTuple):
    """A change as watchers are told of it; `prev` is the node before it, None where none was."""

    change: Change
    prev: Node | None
    time_ns: int


def event_key(index: int) -> bytes:
    """Return the key of the event with this index: big-endian, so that keys sort by index."""
    return _INDEX.pack(index)


def encode_event(key: bytes, record: bytes, prev_row: bytes, time_ns: int) -> bytes:
    """Return the row of an event, to stand under `key`.

    Args:
        key: as `event_key` makes it.
        record: the change, encoded for the log.
        prev_row: the value of the node before the change, empty where there was none.
        time_ns: the time of the batch.
    """
    rest = _pack_rest(time_ns, len(record)) + record + prev_row
    return _pack_crc(crc32(rest, crc32(key))) + rest


def decode_event(key: bytes, data: bytes) -> Event:
    """Return the event in a row.

    Raises:
        CorruptIndex: the row is not what was written under this key.
    """
    if len(data) < _HEADER.size or crc32(data[4:], crc32(key)) != _CRC.unpack_from(data)[0]:
        raise CorruptIndex(f"the history record {key.hex()} fails its checksum")
    _, time_ns, length = _HEADER.unpack_from(data)
    end = _HEADER.size + length
    try:
        change = decode_record(cbor2.loads(data[_HEADER.size : end]))
    except (UnknownRecord, cbor2.CBORDecodeError) as error:
        raise CorruptIndex(f"the history record {key.hex()} holds {error}") from None
    if not isinstance(change, Change):
        raise CorruptIndex(f"the history record {key.hex()} is no change")
    return Event(change, parse_node(data[end:]) if len(data) > end else None, time_ns)

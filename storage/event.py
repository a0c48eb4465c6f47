"""The record of one event in the history: a change, and the node it replaced.

    u32 crc | u8 kind | u8 flags | u64 created | u64 expiration ns | u64 time ns
    | u64, u64, u64 created, modified and expiration of the previous node (0 without one)
    | u32 length of the key | u32 length of the value | key | value | value of the previous node

Little-endian; the crc is zlib's, over the row's key (the index, 8 bytes) and all that follows it.
The time is the batch's: a `ttl` that a watcher is shown counts from it, live and from history, so
that history reads the same for ever.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple
from zlib import crc32

from storage.change import Change
from storage.node import CorruptIndex, Node

_HEADER = Struct("<IBBQQQQQQII")
assert _HEADER.size == 62
_INDEX = Struct(">Q")
_CRC = Struct("<I")

_DIR = 1
_REFRESH = 2
_VALUE = 4
_PREV = 8
_PREV_DIR = 16


class Event(NamedTuple):
    """A change as watchers are told of it; `prev` is the node before it, None where none was."""

    change: Change
    prev: Node | None
    time_ns: int


def event_key(index: int) -> bytes:
    """Return the key of the event with this index: big-endian, so that keys sort by index."""
    return _INDEX.pack(index)


def encode_event(event: Event) -> bytes:
    """Return the row that holds an event."""
    (kind, index, key, value, is_dir, created, expiration_ns, refresh), prev, time_ns = event
    flags = (_DIR if is_dir else 0) | (_REFRESH if refresh else 0)
    body = b""
    if value is not None:
        flags |= _VALUE
        body = value
    prev_created = prev_modified = prev_expiration_ns = 0
    prev_value = b""
    if prev is not None:
        old, prev_created, prev_modified, prev_expiration_ns, _ = prev
        flags |= _PREV
        if old is None:
            flags |= _PREV_DIR
        else:
            prev_value = old
    head = _HEADER.pack(
        0, kind, flags, created, expiration_ns, time_ns,
        prev_created, prev_modified, prev_expiration_ns, len(key), len(body),
    )  # fmt: skip
    rest = b"".join((head[4:], key, body, prev_value))
    return _CRC.pack(crc32(rest, crc32(_INDEX.pack(index)))) + rest


def decode_event(index: int, data: bytes) -> Event:
    """Return the event in a row.

    Raises:
        CorruptIndex: the row is not what was written for this index.
    """
    key = _INDEX.pack(index)
    if (
        len(data) < _HEADER.size
        or crc32(memoryview(data)[4:], crc32(key)) != _CRC.unpack_from(data)[0]
    ):
        raise CorruptIndex(f"the history record of index {index} fails its checksum")
    (
        _, kind, flags, created, expiration_ns, time_ns,
        prev_created, prev_modified, prev_expiration_ns, key_length, value_length,
    ) = _HEADER.unpack_from(data)  # fmt: skip
    middle = _HEADER.size + key_length
    end = middle + value_length
    change = Change(
        kind,
        index,
        data[_HEADER.size : middle],
        data[middle:end] if flags & _VALUE else None,
        bool(flags & _DIR),
        created,
        expiration_ns,
        bool(flags & _REFRESH),
    )
    prev = None
    if flags & _PREV:
        # The id of a directory is no part of its history; any id that is not a file's will do.
        is_dir = bool(flags & _PREV_DIR)
        prev = Node(
            None if is_dir else data[end:],
            prev_created,
            prev_modified,
            prev_expiration_ns,
            int(is_dir),
        )
    return Event(change, prev, time_ns)

"""The row "applied" of an index, and of a snapshot: how far the log has been applied to it.

    u32 crc | u64 seq | 8 bytes chain | u64 pos, term, index, time ns, next directory id, history
    limit, oldest event | position of the log's next frame: u64 segment, offset, frame, u32 crc
    | u64 x 8: the sums of the tables, low and high half of each (sums.py; in an index only)
    | i64 offset of the clock in ns (only where it is not 0)

Little-endian; the crc is zlib's, over all that follows it.

And the row "history_bytes_max", the longest that the rows of `events` may be together:

    u32 crc, little-endian | u64, big-endian
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple
from zlib import crc32

from kvd.storage.format.frame import Position
from kvd.storage.format.node import ROOT_ID, CorruptIndex
from kvd.storage.format.payload import CHAIN_START
from kvd.storage.format.sums import MASK, ONE, Sums

HISTORY_LIMIT = "history_limit"
HISTORY_LIMIT_DEFAULT = 1000
HISTORY_BYTES_MAX = "history_bytes_max"
HISTORY_BYTES_MAX_KEY = HISTORY_BYTES_MAX.encode()

_APPLIED = Struct("<IQ8sQQQQQQQQQQI")
_SUMS = Struct("<8Q")
_APPLIED_AND_SUMS = Struct(_APPLIED.format + _SUMS.format[1:])
# Follows either where it is not 0: the offset of the clock.
_OFFSET = Struct("<q")
_APPLIED_SIZES = (_APPLIED.size, _APPLIED.size + _OFFSET.size)
_SUMS_SIZES = (_APPLIED_AND_SUMS.size, _APPLIED_AND_SUMS.size + _OFFSET.size)
_CRC = Struct("<I")
_U64 = Struct(">Q")
_NUMBER_BYTES = _CRC.size + _U64.size


class Applied(NamedTuple):
    """The position up to which the log has been applied; the fields are the log's (records.py).

    `index` is the etcd index, `oldest_event` the first index that the history can still tell of,
    `next_dir_id` the id of the next directory. `position` is where the log's next frame goes.
    """

    seq: int = 0
    chain: bytes = CHAIN_START
    pos: int = 0
    term: int = 0
    index: int = 1  # type: ignore[assignment]  # hides tuple.index, which is not needed
    time_ns: int = 0
    next_dir_id: int = ROOT_ID + 1
    history_limit: int = HISTORY_LIMIT_DEFAULT
    oldest_event: int = 1
    position: Position = Position(0, 0, 0, 0)
    clock_offset_ns: int = 0

    @property
    def wall_ns(self) -> int:
        """The time of the last batch on the wall clock, in nanoseconds since 1970."""
        return self.time_ns + self.clock_offset_ns

    def encode(self) -> bytes:
        """Return it as a row of the table `meta` of a snapshot."""
        segment, offset, frame_seq, crc = self.position
        body = _APPLIED.pack(0, *self[:9], segment, offset, frame_seq, crc)[4:]
        if self.clock_offset_ns:
            body += _OFFSET.pack(self.clock_offset_ns)
        return _CRC.pack(crc32(body)) + body

    def encode_with(self, sums: Sums) -> bytes:
        """Return it as a row of the table `meta` of an index."""
        segment, offset, frame_seq, crc = self.position
        nodes, ttl, garbage, entries = sums
        body = _APPLIED_AND_SUMS.pack(
            *(0, *self[:9], segment, offset, frame_seq, crc),
            *(nodes & MASK, nodes >> 64 & MASK, ttl & MASK, ttl >> 64 & MASK),
            *(garbage & MASK, garbage >> 64 & MASK, entries & MASK, entries >> 64 & MASK),
        )[4:]
        if self.clock_offset_ns:
            body += _OFFSET.pack(self.clock_offset_ns)
        return _CRC.pack(crc32(body)) + body

    @classmethod
    def decode(cls, data: bytes | None) -> Applied:
        """Return what a row says, with sums or without.

        Raises:
            CorruptIndex: there is no such row, or it is damaged.
        """
        if (
            data is None
            or len(data) not in (*_APPLIED_SIZES, *_SUMS_SIZES)
            or crc32(data[4:]) != _CRC.unpack_from(data)[0]
        ):
            raise CorruptIndex("the index does not say how far it goes")
        fields = _APPLIED.unpack_from(data)
        has_offset = len(data) in (_APPLIED_SIZES[1], _SUMS_SIZES[1])
        offset_ns = _OFFSET.unpack_from(data, len(data) - _OFFSET.size)[0] if has_offset else 0
        return cls._make((*fields[1:10], Position(*fields[10:]), offset_ns))


def decode_sums(data: bytes) -> Sums | None:
    """Return the sums in a row that `Applied.decode` takes; None where there are none in it."""
    if len(data) not in _SUMS_SIZES:
        return None
    found = _SUMS.unpack_from(data, _APPLIED.size)
    nodes, ttl, garbage, entries = (found[i] + found[i + 1] * ONE for i in range(0, 8, 2))
    return nodes, ttl, garbage, entries


def encode_history_bytes_max(number: int) -> bytes:
    """Return the row of `meta` under `HISTORY_BYTES_MAX_KEY`."""
    body = _U64.pack(number)
    return _CRC.pack(crc32(body)) + body


def decode_history_bytes_max(row: bytes) -> int:
    """Return the number in such a row.

    Raises:
        CorruptIndex: the row is damaged.
    """
    number: int
    if len(row) != _NUMBER_BYTES or crc32(row[4:]) != _CRC.unpack_from(row)[0]:
        raise CorruptIndex("the index does not say how long the history may be")
    (number,) = _U64.unpack(row[4:])
    return number

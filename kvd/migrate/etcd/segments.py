"""The segments of etcd's write-ahead log: their records, each checked.

    file      <number>-<index of its first entry>.wal, both in 16 hexadecimal digits
    frame     u64, little-endian: the length of the record in the low 56 bits; the top byte is 0, or
              80 + the number of bytes that follow the record, so that frames begin at multiples of
              8 (etcd 2 has none). A length of 0 ends the segment
    record    {1: type, 2: CRC-32C, 3: data}
    type      1 metadata, 2 entry, 3 state, 5 snapshot (log.py);
              4 the checksum so far, first in each segment

The checksum is over the data of all records so far, through all segments. Neither types nor lengths
are under it, so what etcd would take for the end of the log, or for something else, is refused if
anything contradicts it. What cannot be told apart is the end of a write that was never finished
(a *torn tail*) and damage to the last record: the former is assumed where etcd assumes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from kvd.migrate.errors import Damaged, TornTail
from kvd.migrate.etcd.crc32c import extend
from kvd.migrate.etcd.protobuf import BYTES, VARINT, Malformed, data, decode, number

METADATA, ENTRY, STATE, CRC, SNAPSHOT = range(1, 6)

_LENGTH = Struct("<Q")
_LENGTH_BYTES = (1 << 56) - 1
_SECTOR = 512
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.wal")
# How the body of a record begins: its type and the key of its checksum.
_BEGINNING = re.compile(rb"\x08[\x01-\x05]\x10")
_RECORD = {1: VARINT, 2: VARINT, 3: BYTES}


class Segment(NamedTuple):
    """A file of the log: its number, and the index of the first entry that may be in it."""

    path: Path
    number: int
    first: int


class Place(NamedTuple):
    """The place of a record in the log."""

    file: Path
    offset: int


class Record(NamedTuple):
    """A record whose checksum is right."""

    kind: int
    data: bytes
    place: Place


class Tail(NamedTuple):
    """The end of a log that breaks off in a record: its place, and the fault of that."""

    place: Place
    problem: str

    def __str__(self) -> str:
        file, offset = self.place
        return f"{file.parent.name}/{file.name}: offset {offset}: {self.problem}"


def segments(directory: Path) -> list[Segment]:
    """Return the segments of a log in their order.

    Raises:
        Damaged: one is missing.
    """
    found = []
    for path in directory.glob("*.wal"):
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise Damaged(f"{directory.name}/{path.name}: is no name of a segment")
        found.append(Segment(path, int(match[1], 16), int(match[2], 16)))
    found.sort(key=lambda segment: segment.number)
    for before, after in pairwise(found):
        if after.number != before.number + 1 or after.first < before.first:
            raise Damaged(
                f"{directory.name}: after {before.path.name} comes {after.path.name}: "
                "segments are missing"
            )
    return found


class Records:
    """The records of some segments that follow each other.

    Attributes:
        tail: Where the log breaks off, once all was read; None if it ends as it should.
        is_full: Whether the last file ends with a record, and not with space for more.
    """

    def __init__(self, files: Sequence[Segment], *, drop_tail: bool) -> None:
        self.tail: Tail | None = None
        self.is_full = False
        self._files = files
        self._drop_tail = drop_tail
        self._chain: int | None = None

    def __iter__(self) -> Iterator[Record]:
        """Yield them.

        Raises:
            Damaged: a record is damaged.
        """
        for segment in self._files:
            yield from self._segment(segment.path, is_last=segment is self._files[-1])

    def _segment(self, path: Path, *, is_last: bool) -> Iterator[Record]:
        blob = path.read_bytes()
        at = 0
        while at < len(blob):
            try:
                body, end = _frame(blob, at)
                record = self._record(body, Place(path, at))
            except _Bad as bad:
                self._end_at(path, blob, at, bad, is_last=is_last)
                return
            if record is None:
                return
            yield record
            at = end
        self.is_full = is_last

    def _record(self, body: bytes | None, place: Place) -> Record | None:
        """Return the record in a frame, None at the end of the segment."""
        if body is None:
            return None
        kind, crc, content = _decode(body)
        if kind == CRC:
            if self._chain not in (None, crc):
                raise _Bad(f"its checksum so far is {crc:08x}, expected {self._chain:08x}")
            self._chain = crc
        elif self._chain is None:
            raise _Bad("the segment does not begin with a checksum")
        else:
            chain = extend(self._chain, content)
            if chain != crc:
                raise _Bad(f"its checksum is {crc:08x}, expected {chain:08x}")
            self._chain = chain
        return Record(kind, content, place)

    def _end_at(self, path: Path, blob: bytes, at: int, bad: _Bad, *, is_last: bool) -> None:
        """Take a bad record for the end of the log, or refuse it."""
        intact = _intact_after(blob, at)
        if intact:
            raise Damaged.at(path, at, f"{bad}; an intact record follows at offset {intact}")
        if not is_last:
            raise Damaged.at(path, at, f"{bad}; a segment follows")
        if not (_is_torn(blob, at) or self._drop_tail):
            raise TornTail.at(path, at, str(bad))
        self.tail = Tail(Place(path, at), str(bad))


class _Bad(Exception):
    """A record is bad."""


def _frame(blob: bytes, at: int) -> tuple[bytes | None, int]:
    """Return the body of a frame, None at the end of the segment, and where the next one begins."""
    left = len(blob) - at - _LENGTH.size
    if left < 0:
        raise _Bad(f"the file ends {-left} bytes before the end of a length")
    (word,) = _LENGTH.unpack_from(blob, at)
    if not word:
        if blob.count(0, at) != len(blob) - at:
            raise _Bad("a length of 0 before bytes that are not")
        return None, len(blob)
    length, top = word & _LENGTH_BYTES, word >> 56
    if top and top & 0xF8 != 0x80:
        raise _Bad(f"a length of {word:016x}")
    start = at + _LENGTH.size
    end = start + length + (top & 7)
    if end > len(blob):
        raise _Bad(f"a record of {length} bytes, {left} are left in the file")
    return blob[start : start + length], end


def _decode(body: bytes) -> tuple[int, int, bytes]:
    try:
        fields = decode(body, _RECORD, is_closed=True)
    except Malformed as error:
        raise _Bad(f"no record: {error}") from None
    kind = number(fields, 1)
    if not METADATA <= kind <= SNAPSHOT:
        raise _Bad(f"a record of type {kind}")
    return kind, number(fields, 2), data(fields, 3)


def _intact_after(blob: bytes, at: int) -> int:
    """Return the offset of the first of two records behind a bad one that follow each other; 0."""
    for match in _BEGINNING.finditer(blob, at + _LENGTH.size + 1):
        try:
            first, middle = _frame(blob, match.start() - _LENGTH.size)
            second, _ = _frame(blob, middle)
            if first is None or second is None:
                continue
            _, crc, _ = _decode(first)
            kind, expected, content = _decode(second)
        except _Bad:
            continue
        if (crc if kind == CRC else extend(crc, content)) == expected:
            return match.start() - _LENGTH.size
    return 0


def _is_torn(blob: bytes, at: int) -> bool:
    """Return whether a bad record looks like a write that the machine did not finish.

    As for etcd: the file ends in it, or one of the sectors that it lies in is zero.
    """
    try:
        _, end = _frame(blob, at)
    except _Bad:
        (word,) = _LENGTH.unpack_from(blob, at) if at + _LENGTH.size <= len(blob) else (1,)
        if word:
            return True
        end = at + _LENGTH.size
    else:
        at += _LENGTH.size
    while at < end:
        stop = min(at + _SECTOR - at % _SECTOR, end)
        if not any(blob[at:stop]):
            return True
        at = stop
    return False

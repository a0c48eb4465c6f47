"""Which page of the index's file is what: each is in use once, or free once.

LMDB (0.9, data version 1) keeps the pages that may be written over in a tree of lists, which no
call shows and no checksum covers. A wrong number in it, or a wrong end of the file, has the next
write destroy rows that were proved. So the map of all pages is made before the first write:

    page      u64 its number | u16 | u16 flags | u16 lower | u16 upper | u16 offset of each node
              (overflow: u32 how many pages instead of lower and upper)
    meta      pages 0 and 1, the one with the higher transaction counts: behind the head u32 magic |
              u32 version | u64 | u64 map size | record of the free list | record of the main tree |
              u64 last page | u64 transaction
    record    u32 | u16 flags | u16 depth | u64 branch pages | u64 leaf pages | u64 overflow pages |
              u64 entries | u64 root
    node      u16 size, low | u16 size, high | u16 flags | u16 length of the key | key | data
              (branch: the three numbers before the length are the page below)
    free list data: u64 count | u64 page, descending

Little-endian, as on all machines that kvd runs on; on others nothing is looked at. Of leaves only
the heads are read, but where they lead to overflow pages: what they hold is proved in
completeness.py. A head counts, because LMDB goes by the number in it when it frees a page, and by
`upper` when it adds a row: wrong ones have it write over other rows.
"""

from __future__ import annotations

import mmap
import struct
import sys
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from struct import Struct, unpack_from
from typing import NamedTuple

from kvd.storage.format.node import CorruptIndex
from kvd.storage.format.tables import TABLES

_HEAD = Struct("<QHHHH")
_OVERFLOW_HEAD = Struct("<QHHI")
_META = Struct("<IIQQ48s48sQQ")
_RECORD_AT = 24
_RECORD = Struct("<IHHQQQQQ")
_NODE = Struct("<HHHH")
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4
_BIG_DATA = 1
_NONE = (1 << 64) - 1
_METAS = 2
_DEPTH_MAX = 32
_PAGE_SIZES = frozenset(1 << bits for bits in range(9, 17))
# Heads of overflow pages, and of leaves, are looked at up to so many: reading more would delay a
# start. A million keys of 100 bytes have some 60,000 leaves.
_OVERFLOWS_LOOKED_AT = 50_000
_LEAVES_LOOKED_AT = 200_000
# Of so many it is checked, too, that no row stands where they say that they are free: this takes
# three times as long.
_LEAVES_MEASURED = 40_000


class Record(NamedTuple):
    """The description of one tree in LMDB's file."""

    pad: int
    flags: int
    depth: int
    branches: int
    leaves: int
    overflows: int
    entries: int
    root: int


@cache
def _offsets_of(count: int) -> Callable[[mmap.mmap, int], tuple[int, ...]]:
    return Struct(f"<{count}H").unpack_from


def prove_pages(path: Path) -> None:
    """Prove that each page of a file that is not written to has one place.

    Raises:
        CorruptIndex: one has none, or two; the file must not be written to.
    """
    if sys.byteorder != "little":
        return
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            _Map(data, _page_bytes(data)).prove()
    except (struct.error, IndexError, ValueError) as error:
        raise CorruptIndex(f"a page of the index is damaged: {error}") from None


def _page_bytes(data: mmap.mmap) -> int:
    (size,) = unpack_from("<I", data, _HEAD.size + _RECORD_AT)
    if size not in _PAGE_SIZES:
        raise CorruptIndex(f"the index has pages of {size} bytes")
    return int(size)


class _Map:
    """The pages of one state of a file, and which of them have been met."""

    def __init__(self, data: mmap.mmap, page_bytes: int) -> None:
        self._data = data
        self._size = page_bytes
        free, main, last = max(
            (self._meta(number) for number in range(_METAS)), key=lambda meta: meta[3]
        )[:3]
        self._free, self._main = free, main
        self._end = last + 1
        if self._end * page_bytes > len(data):
            raise CorruptIndex("its file is shorter than it says")
        self._met = bytearray(self._end)
        self._met[:_METAS] = b"\1" * _METAS
        self._leaves = 0

    def prove(self) -> None:
        """Look at all trees, and at what is in none."""
        big = 0
        for key, value in self._walk(self._free, with_rows=True):
            self._take_free(key, value)
        records = [self._main]
        for key, value in self._walk(self._main, with_rows=True):
            if key in TABLES:
                records.append(Record._make(_RECORD.unpack(value)))
        for record in records[1:]:
            big += record.overflows
            self._walk(record, with_rows=False)
        if self._met.count(0) != big:
            raise CorruptIndex(f"{self._met.count(0) - big} pages of the index are in no place")
        self._prove_overflows()

    def _meta(self, number: int) -> tuple[Record, Record, int, int]:
        at = number * self._size + _HEAD.size
        magic, version, _, _, free, main, last, txn = _META.unpack_from(self._data, at)
        if (magic, version) != (_MAGIC, _VERSION):
            return Record(*[0] * 8), Record(*[0] * 8), 0, -1
        records = (Record._make(_RECORD.unpack(record)) for record in (free, main))
        return (*records, last, txn)

    def _take(self, number: int, count: int = 1) -> None:
        end = number + count
        if not _METAS <= number < end <= self._end or any(self._met[number:end]):
            raise CorruptIndex(f"page {number} of the index has two places, or is beyond its end")
        self._met[number:end] = b"\1" * count

    def _walk(self, record: Record, *, with_rows: bool) -> list[tuple[bytes, bytes]]:
        """Meet the pages of a tree; return its rows if they are asked for."""
        if record.root == _NONE:
            return []
        level = [record.root]
        branches = 0
        for depth in range(record.depth, 0, -1):
            if depth > _DEPTH_MAX:
                raise CorruptIndex(f"a tree of the index is {depth} pages deep")
            self._take_all(level)
            if depth == 1:
                break
            branches += len(level)
            level = [child for number in level for child in self._children(number)]
        if (branches, len(level)) != (record.branches, record.leaves):
            raise CorruptIndex("a tree of the index has other pages than it says")
        if not with_rows:
            self._prove_leaves(level)
            return []
        return [row for number in level for row in self._rows(number)]

    def _take_all(self, numbers: list[int]) -> None:
        end, met = self._end, self._met
        for number in numbers:
            if number >= end or met[number]:
                raise CorruptIndex(f"page {number} of the index has two places")
            met[number] = 1

    def _prove_leaves(self, numbers: list[int]) -> None:
        data, size, unpack = self._data, self._size, _HEAD.unpack_from
        # In the order of the file, as a disk reads it.
        looked_at = sorted(numbers[: _LEAVES_LOOKED_AT - self._leaves])
        for place, number in enumerate(looked_at, self._leaves):
            found, _, flags, lower, upper = unpack(data, number * size)
            if found != number or flags != _LEAF or not _HEAD.size <= lower <= upper <= size:
                raise CorruptIndex(f"page {number} of the index is another")
            if place < _LEAVES_MEASURED:
                offsets = _offsets_of(lower - _HEAD.size >> 1)(data, number * size + _HEAD.size)
                if min(offsets, default=size) < upper:
                    raise CorruptIndex(f"page {number} of the index calls free what its rows take")
        self._leaves += len(looked_at)

    def _offsets(self, number: int, kind: int) -> tuple[int, tuple[int, ...]]:
        base = number * self._size
        found, _, flags, lower, upper = _HEAD.unpack_from(self._data, base)
        count = (lower - _HEAD.size) // 2
        if found != number or flags != kind or not _HEAD.size <= lower <= upper:
            raise CorruptIndex(f"page {number} of the index is another")
        if upper > self._size:
            raise CorruptIndex(f"page {number} of the index is damaged")
        offsets = unpack_from(f"<{count}H", self._data, base + _HEAD.size)
        if any(not upper <= offset <= self._size - _NODE.size for offset in offsets):
            raise CorruptIndex(f"page {number} of the index is damaged")
        return base, offsets

    def _children(self, number: int) -> list[int]:
        base, offsets = self._offsets(number, _BRANCH)
        data, unpack = self._data, _NODE.unpack_from
        children = []
        for offset in offsets:
            low, high, top, _ = unpack(data, base + offset)
            children.append(low | high << 16 | top << 32)
        return children

    def _rows(self, number: int) -> list[tuple[bytes, bytes]]:
        base, offsets = self._offsets(number, _LEAF)
        rows = []
        for offset in offsets:
            low, high, flags, length = _NODE.unpack_from(self._data, base + offset)
            size = low | high << 16
            at = base + offset + _NODE.size
            key, at = self._data[at : at + length], at + length
            if flags & _BIG_DATA:
                (first,) = unpack_from("<Q", self._data, at)
                pages = self._overflow(first)
                at = first * self._size + _HEAD.size
                if size > pages * self._size - _HEAD.size:
                    raise CorruptIndex(f"page {first} of the index is shorter than its row")
                self._take(first, pages)
            rows.append((key, self._data[at : at + size]))
        return rows

    def _overflow(self, number: int) -> int:
        """Return how many pages a row takes that begins on this one."""
        if number >= self._end:
            raise CorruptIndex(f"page {number} of the index is beyond its end")
        found, _, flags, pages = _OVERFLOW_HEAD.unpack_from(self._data, number * self._size)
        if found != number or flags != _OVERFLOW or not 0 < pages <= self._end - number:
            raise CorruptIndex(f"page {number} of the index is in no place")
        return int(pages)

    def _take_free(self, key: bytes, value: bytes) -> None:
        count = unpack_from("<Q", value)[0] if len(value) >= 8 else -1
        if len(key) != 8 or not 0 <= count <= len(value) // 8 - 1:
            raise CorruptIndex("a list of free pages of the index is damaged")
        numbers = unpack_from(f"<{count}Q", value, 8)
        if any(second >= first for first, second in pairwise(numbers)):
            raise CorruptIndex("a list of free pages of the index is out of order")
        if numbers and numbers[-1] < _METAS:
            raise CorruptIndex("a list of free pages of the index is damaged")
        self._take_all(list(numbers))

    def _prove_overflows(self) -> None:
        """Look at what no tree has led to: rows that take pages of their own, and nothing else."""
        number = self._met.find(0)
        for _ in range(_OVERFLOWS_LOOKED_AT):
            if number < 0:
                return
            pages = self._overflow(number)
            self._take(number, pages)
            number = self._met.find(0, number + pages)

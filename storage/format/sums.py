"""The sums by which the index proves that no row of a table is missing, old, or there twice.

A row counts as the crc32 of its key and of its value behind the first four bytes, which for all
tables but `garbage` (whose values are empty) is the checksum that the row carries. The sum of a
table is that of its rows, in any order, with their number in the bits from 64 on: `ONE` a row. It
is kept with each transaction, in the row "applied" (applied.py), and compared with what a scan
finds (index/integrity/completeness.py). The events need no sum: their indexes leave no gap. The
rows of `meta` other than "applied" count with those of `entries` (`meta_sum`).
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import TypeAlias
from zlib import crc32

ONE = 1 << 64
MASK = ONE - 1

SUMMED = (b"nodes", b"ttl", b"garbage", b"entries")
"""The tables that have a sum, in the order of `Sums`."""

Sums: TypeAlias = tuple[int, int, int, int]
"""The sums of the tables in `SUMMED`."""

NOTHING: Sums = (0, 0, 0, 0)

APPLIED_KEY = b"applied"
"""The row of `meta` that says how far the log has been applied, and holds the sums."""

_CRC = Struct("<I")


def row_sum(row: bytes) -> int:
    """Return what a row of any table but `garbage` counts, by the checksum that it carries."""
    crc: int = _CRC.unpack_from(row)[0]
    return crc + ONE


def id_sum(key: bytes) -> int:
    """Return what a row of `garbage` counts."""
    return crc32(key) + ONE


def meta_sum(key: bytes, row: bytes) -> int:
    """Return what a row of `meta` counts; none for "applied"."""
    return 0 if key == APPLIED_KEY else crc32(row, crc32(key)) + ONE


def sum_of(table: bytes, rows: Iterable[tuple[bytes, bytes]]) -> int:
    """Return the sum of rows whose checksums are known to be good."""
    if table == b"garbage":
        return sum(id_sum(key) for key, _ in rows)
    checksums = [row[:4] for _, row in rows]
    found = Struct(f"<{len(checksums)}I").unpack(b"".join(checksums))
    total: int = sum(found)
    return total + len(found) * ONE


class Scanned:
    """The progress of a scan of the committed state, while writes go on behind it.

    What is written to a key that has been passed changes what was found there; a transaction adds
    it when it commits. Nothing is passed while one is open.

    Attributes:
        nodes_until: The last key of `nodes` that has been passed, empty before and after a scan.
        ttl_until: As above, of `ttl`.
        nodes: The sum of the rows up to that key, as they are now.
        ttl: As above, of `ttl`.
    """

    __slots__ = ("nodes", "nodes_until", "ttl", "ttl_until")

    def __init__(self) -> None:
        self.nodes_until = self.ttl_until = b""
        self.nodes = self.ttl = 0

"""The frame up to which the log was durable when an index was written that may be ahead of that.

    "durable" in the main database    u32 crc, little-endian | u64 number of a frame, big-endian

Only a replica's index may be ahead: its log is written without waiting for the disk
(storage/wal/unsynced.py). Without this row the index says of each frame that was applied to it that
it was durable, and a start refuses a log that does not reach it (storage/evidence.py). No table has
it, and no sum: a snapshot has a log that is durable (storage/snapshot/checkpoint.py).
"""

from __future__ import annotations

from pathlib import Path
from struct import Struct
from zlib import crc32

import lmdb

from kvd.storage.format.node import CorruptIndex
from kvd.storage.index.errors import BROKEN
from kvd.storage.index.index_view import Transaction
from kvd.storage.index.integrity.lmdb_file import look_up

_KEY = b"durable"
_CRC, _SEQ = Struct("<I"), Struct(">Q")


def note(txn: Transaction, seq: int) -> None:
    """Say in a transaction that the log is durable up to a frame."""
    body = _SEQ.pack(seq)
    txn.put(_KEY, _CRC.pack(crc32(body)) + body)


def durable_frame(file: Path) -> int | None:
    """Return the frame that a file of LMDB names; None where it names none.

    Raises:
        CorruptIndex: the row is damaged.
        OSError: the file cannot be read.
    """
    row = look_up(file, None, _KEY)
    if row is None:
        return None
    if len(row) != _CRC.size + _SEQ.size or _CRC.unpack_from(row)[0] != crc32(row[_CRC.size :]):
        raise CorruptIndex("the index does not say how far the log was durable")
    seq: int = _SEQ.unpack_from(row, _CRC.size)[0]
    return seq


def forget(env: lmdb.Environment) -> None:
    """Remove the row at a start, which has synced the whole log; on a full disk it stays."""
    try:
        with env.begin() as txn:
            if txn.get(_KEY) is None:
                return
        with env.begin(write=True) as txn:
            txn.delete(_KEY)
    except BROKEN:
        raise
    except lmdb.Error:
        pass  # the index then says less than it could

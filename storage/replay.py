"""Making an index from what the truth is: the rows of a snapshot, and the log behind it.

The server's start and the tools share this, so that what a tool rebuilds is what a start would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from storage import snapshot
from storage.change import (
    Payload,
    UnknownRecord,
    decode_payload,
    encode_payload,
    encode_record,
    next_chain,
)
from storage.errors import CorruptLog
from storage.index import Index
from storage.segments import Frame
from storage.tree import APPLIED_KEY, TABLES, Applied, Memory, Txn

# A transaction holds so many records or bytes of log: enough to make the commit cheap, little
# enough for LMDB to keep its dirty pages in memory.
_REPLAY_RECORDS = 20_000
_REPLAY_BYTES = 64 << 20

Until = Callable[[Payload], int]
"""How many of a payload's records to perform; fewer than it has ends the replay there."""


def load(index: Index, path: Path | None) -> None:
    """Fill a new index from a snapshot, or with nothing. Its `applied` comes last."""
    if path is None:
        with index.env.begin(write=True) as txn:
            txn.put(APPLIED_KEY, Applied().encode(), db=index.tables[b"meta"])
        return
    _, rows = snapshot.read(path)
    for table, group in groupby(rows, key=itemgetter(0)):
        with index.env.begin(write=True) as txn, txn.cursor(index.tables[TABLES[table]]) as cursor:
            cursor.putmulti(((key, value) for _, key, value in group), append=True)


def replay(index: Index, frames: Iterable[Frame], until: Until = lambda p: len(p.records)) -> int:
    """Perform frames that go on where the index ends; return how many records that were.

    A payload that `until` shortens is performed as if it had been logged so: its position and its
    chain are those of the shorter one.

    Raises:
        CorruptLog: a frame belongs to another history, or holds what this version does not know.
    """
    applied = index.applied()
    memory = Memory()
    total = records = log_bytes = 0
    txn = Txn(index.env.begin(write=True), index.tables, memory, applied)
    try:
        for frame in frames:
            payload, encoded = decode(frame, applied), frame.payload
            count = until(payload)
            ends_here = count < len(payload.records)
            if ends_here:
                payload, encoded = _shortened(payload, count)
            for record in payload.records:
                txn.perform(record, payload.time_ns)
            if count or not ends_here:
                applied = txn.next_applied(
                    seq=payload.seq,
                    chain=next_chain(payload.prev_chain, encoded),
                    time_ns=payload.time_ns,
                    position=frame.end,
                )
            records += len(payload.records)
            log_bytes += len(encoded)
            if ends_here:
                break
            if records > _REPLAY_RECORDS or log_bytes > _REPLAY_BYTES:
                txn.commit(applied)
                total, records, log_bytes = total + records, 0, 0
                txn = Txn(index.env.begin(write=True), index.tables, memory, applied)
        txn.commit(applied)
    except BaseException:
        txn.end()
        raise
    return total + records


def decode(frame: Frame, applied: Applied) -> Payload:
    """Return the batch in a frame, which must go on where `applied` ends.

    Raises:
        CorruptLog: it does not, or it holds what this version does not know.
    """
    try:
        payload = decode_payload(frame.payload)
    except UnknownRecord as error:
        raise CorruptLog(f"frame {frame.seq} of the log holds {error}") from None
    if (payload.seq, payload.prev_chain) != (applied.seq + 1, applied.chain):
        raise CorruptLog(
            f"frame {frame.seq} of the log holds batch {payload.seq} on chain "
            f"{payload.prev_chain.hex()}, expected {applied.seq + 1} on "
            f"{applied.chain.hex()}: it belongs to another history"
        )
    return payload


def _shortened(payload: Payload, count: int) -> tuple[Payload, bytes]:
    """Return a payload with its first `count` records only, and its bytes."""
    kept = payload.records[:count]
    shorter = payload._replace(pos=payload.pos - len(payload.records) + count, records=kept)
    encoded = encode_payload(
        term=shorter.term,
        seq=shorter.seq,
        prev_chain=shorter.prev_chain,
        pos=shorter.pos,
        first_index=shorter.first_index,
        time_ns=shorter.time_ns,
        writer=shorter.writer,
        records=[encode_record(record) for record in kept],
    )
    return shorter, encoded

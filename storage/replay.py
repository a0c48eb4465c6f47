"""Making an index from what the truth is: the rows of a snapshot, and the log behind it.

The server's start and the tools share this, so that what a tool rebuilds is what a start would.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from kvd.storage.errors import CorruptLog, CorruptSnapshot, LogTooNew, StorageError
from kvd.storage.format.applied import Applied
from kvd.storage.format.frame import Position
from kvd.storage.format.payload import (
    Payload,
    UnknownVersion,
    decode_payload,
    encode_payload,
    next_chain,
)
from kvd.storage.format.records import LoggedSetting, UnknownRecord, encode_record
from kvd.storage.format.sums import APPLIED_KEY, NOTHING, SUMMED, meta_sum, sum_of
from kvd.storage.format.tables import TABLES, Row
from kvd.storage.index.environment import Index
from kvd.storage.index.index_view import Transaction
from kvd.storage.index.pending import Pending
from kvd.storage.index.state import State
from kvd.storage.snapshot import directory
from kvd.storage.wal.segments import Frame

# LMDB keeps the pages that a transaction changes in memory, and writes each of them once: so a
# transaction ends after so many records, unless the whole index is so small that all its pages may
# be kept: a sixth of the CPU time of a rebuild with random keys (1,000,000 keys, measured).
_REPLAY_RECORDS = 50_000
# So much is applied in memory before it is written to the transaction, in the order of the keys.
_FLUSH_NODES = 10_000
_FLUSH_BYTES = 16 << 20
_INDEX_BYTES = 256 << 20
# A transaction that loads a snapshot takes so many chunks of 1 MiB, for the same reason.
_LOAD_CHUNKS = 64

Until = Callable[[Payload], int]
"""How many of a payload's records to apply; fewer than it has ends the replay there."""


def to_the_end(payload: Payload) -> int:
    """The replay goes on as far as the log does."""
    return len(payload.records)


def load(index: Index, path: Path | None) -> None:
    """Fill a new index from a snapshot, or with nothing.

    The snapshot is verified on the way: what has been loaded counts only once this has returned.

    Raises:
        CorruptSnapshot: it is damaged, incomplete, or holds what this version does not know.
    """
    if path is None:
        with index.env.begin(write=True) as txn:
            txn.put(APPLIED_KEY, Applied().encode_with(NOTHING), db=index.tables[b"meta"])
        return
    _, chunks = directory.read_chunks(path)
    sums = dict.fromkeys(SUMMED, 0)
    for rows in chunks:
        with index.env.begin(write=True) as txn:
            _append(index, txn, rows, sums)
            for more in islice(chunks, _LOAD_CHUNKS):
                _append(index, txn, more, sums)
    applied = index.applied()
    nodes, ttl, garbage, entries = sums.values()
    with index.env.begin(write=True) as txn:
        row = applied.encode_with((nodes, ttl, garbage, entries))
        txn.put(APPLIED_KEY, row, db=index.tables[b"meta"])


def _append(index: Index, txn: Transaction, rows: list[Row], sums: dict[bytes, int]) -> None:
    """Put some rows, which come in order, behind all others; add them to the sums."""
    first, last = rows[0][0], rows[-1][0]
    if last >= len(TABLES):
        raise CorruptSnapshot(f"a snapshot holds a table {last}, which this version does not know")
    for table in range(first, last + 1):
        with txn.cursor(index.tables[TABLES[table]]) as cursor:
            same = [(key, value) for number, key, value in rows if number == table]
            cursor.putmulti(same, append=True)
        if TABLES[table] in sums:
            sums[TABLES[table]] += sum_of(TABLES[table], same)
        elif TABLES[table] == b"meta":
            sums[b"entries"] += sum(meta_sum(*row) for row in same)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Let nothing look for cycles: none is made, and each look goes through all that is pending.

    That was a quarter of the CPU time of a replay of small records (measured).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_without_collector()
def replay(index: Index, frames: Iterable[Frame], until: Until = to_the_end) -> int:
    """Apply frames that go on where the index ends; return how many records that were.

    A payload that `until` shortens is applied as if it had been logged so: its position and its
    chain are those of the shorter one.

    Raises:
        CorruptLog: a frame belongs to another history, or holds what this version does not know.
    """
    state = State(index)
    state.begin_bulk()
    try:
        records = _apply(index, state, frames, until)
        state.end_bulk()
    finally:
        state.end()
    return records


def _apply(index: Index, state: State, frames: Iterable[Frame], until: Until) -> int:
    """Apply frames in one bulk or several, so that no transaction grows without a bound."""
    applied = state.applied
    place = _Place(applied.seq, applied.chain, applied.time_ns, applied.position)
    records = since_commit = in_flush = 0
    records_max = _records_max(index)
    pending = Pending(state)
    for frame in frames:
        payload, encoded = decode(frame, place.seq, place.chain), frame.payload
        count = until(payload)
        ends_here = count < len(payload.records)
        if ends_here:
            payload, encoded = _shortened(payload, count)
        if LoggedSetting in map(type, payload.records):
            # What was before is trimmed by the limits under which it was made.
            pending, in_flush = _flush(state, pending, place, in_flush), 0
        for record in payload.records:
            pending.apply(record, payload.time_ns)
        if count or not ends_here:
            pending.end_batch()
            chain = next_chain(place.chain, encoded)
            place = _Place(payload.seq, chain, payload.time_ns, frame.end)
        records += count
        since_commit += count
        in_flush += len(encoded)
        if ends_here:
            break
        if len(pending.nodes) > _FLUSH_NODES or in_flush > _FLUSH_BYTES:
            pending, in_flush = _flush(state, pending, place, in_flush), 0
            if since_commit > records_max:
                state.end_bulk()
                state.begin_bulk()
                records_max, since_commit = _records_max(index), 0
    _flush(state, pending, place, in_flush)
    return records


class _Place(NamedTuple):
    """The position in the log: the last payload read, and where the next frame goes."""

    seq: int
    chain: bytes
    time_ns: int
    end: Position


def _flush(state: State, pending: Pending, place: _Place, size: int) -> Pending:
    """Write what was applied, of so many bytes; return what the next records are applied on."""
    seq, chain, time_ns, end = place
    if end != state.applied.position:
        pending.seq, pending.chain, pending.time_ns, pending.size = seq, chain, time_ns, size
        state.merge(pending, end)
        state.flush()
    return Pending(state)


def _records_max(index: Index) -> int:
    return sys.maxsize if index.used_bytes < _INDEX_BYTES else _REPLAY_RECORDS


def batch_in(frame: Frame) -> Payload:
    """Return the batch in an intact frame, whatever it goes on from.

    Raises:
        CorruptLog: it holds what this version does not know.
        LogTooNew: it holds what is known to be a later version's.
    """
    try:
        return decode_payload(frame.payload)
    except UnknownRecord as error:
        raise _unreadable(frame, error) from None


def _unreadable(frame: Frame, error: UnknownRecord) -> StorageError:
    problem = f"frame {frame.seq} of the log holds {error}"
    if isinstance(error, UnknownVersion):
        more = "a later version of kvd has written it and can read it. The log was not changed"
        return LogTooNew(f"{problem}: {more}")
    return CorruptLog(problem)


def decode(frame: Frame, seq: int, chain: bytes) -> Payload:
    """Return the batch in a frame, which must go on behind batch `seq` and its chain value.

    Raises:
        CorruptLog: it does not, or it holds what this version does not know.
        LogTooNew: as for `batch_in`.
    """
    try:  # not by `batch_in`: this is done for each frame of a replay
        payload = decode_payload(frame.payload)
    except UnknownRecord as error:
        raise _unreadable(frame, error) from None
    if payload.seq != seq + 1 or payload.prev_chain != chain:
        raise CorruptLog(
            f"frame {frame.seq} of the log holds batch {payload.seq} on chain "
            f"{payload.prev_chain.hex()}, expected {seq + 1} on "
            f"{chain.hex()}: it belongs to another history"
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
        clock_offset_ns=shorter.clock_offset_ns,
    )
    return shorter, encoded

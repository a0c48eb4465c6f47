"""A data directory as one thing: the log, the index performed from it, and the snapshots.

The order of a write, which `kvd.committer` keeps and this module serves:

    txn = store.begin()                     pending, invisible
    txn.perform(...)                        once per record
    position = store.append(batch)          durable on return; on the sync thread
    store.commit(txn, batch, position)      visible; on the thread that began

Recovery: take the index if it can be trusted, else the newest good snapshot, else nothing; read the
whole log behind it, and only when every frame of it has proved good perform it, frame by frame.

Invariants: `applied` is written in the transaction whose effects it counts. Sequence, chain and
position of each payload must follow those of the one before it: another history is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from storage import snapshot
from storage.change import (
    Payload,
    Record,
    Setting,
    Term,
    UnknownRecord,
    decode_payload,
    encode_payload,
    encode_record,
    next_chain,
)
from storage.checkpoint import Checkpoint
from storage.errors import CorruptLog, CorruptSnapshot, LogFull
from storage.index import Index
from storage.layout import DataDirectory
from storage.tree import APPLIED_KEY, HISTORY_LIMIT, TABLES, Applied, Txn, View
from storage.wal import Frame, Position, Wal

log = logging.getLogger(__name__)

SEGMENT_BYTES_MAX = 64 << 20

# While replaying, a transaction holds so many records or bytes of log: enough to make the commit
# cheap, little enough for LMDB to keep its dirty pages in memory.
_REPLAY_RECORDS = 20_000
_REPLAY_BYTES = 64 << 20


class Batch(NamedTuple):
    """One frame's worth of decided records: the payload, and what follows from it."""

    payload: bytes
    seq: int
    chain: bytes
    first_index: int
    records: int
    time_ns: int


class Recovery(NamedTuple):
    """What opening a store found: where the index came from, and the records replayed on it."""

    source: str
    records: int


class LastSnapshot(NamedTuple):
    """The newest snapshot: its place among the records, the log since then, its size, in bytes."""

    pos: int
    log_bytes_since: int
    size: int


class Store:
    """An open data directory. Everything but `append` belongs to one thread."""

    def __init__(
        self,
        directory: DataDirectory,
        wal: Wal,
        index: Index,
        *,
        recovery: Recovery,
        segment_bytes_max: int,
    ) -> None:
        self.directory = directory
        self.identity = directory.identity
        self.recovery = recovery
        self.wal = wal
        self.applied = index.applied()
        """The committed state's place in the history: what readers see."""
        self._index = index
        self._segment_bytes_max = segment_bytes_max
        self._checkpoint = Checkpoint(index.env, directory.snap, directory.identity)
        self._directories: dict[bytes, int] = {}
        self._view: View | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        rebuild_index: bool = False,
    ) -> Store:
        """Open or create the store in a directory, with all that was acknowledged.

        Raises:
            StorageError: the directory cannot be used, or something in it is damaged; nothing was
                changed but, at most, the index, which can be built again.
        """
        directory = DataDirectory.open(path)
        try:
            wal = Wal.open(
                directory.wal,
                directory.quarantine,
                store_uuid=directory.identity.store_uuid,
                segment_bytes_max=segment_bytes_max,
            )
            index, recovery = _recover(directory, wal, rebuild_index=rebuild_index)
            return cls(
                directory, wal, index, recovery=recovery, segment_bytes_max=segment_bytes_max
            )
        except BaseException:
            directory.close()
            raise

    @property
    def view(self) -> View:
        """The committed state, for reads that end before the next commit: never across an await."""
        if self._view is None:
            self._view = View(self._index.env.begin(), self._index.tables, self._directories)
        return self._view

    @contextmanager
    def long_view(self) -> Iterator[View]:
        """A view of its own for a read in slices: it stays as it was while others commit.

        What the index frees meanwhile cannot be used again before it ends: few of them at a time.
        """
        with self._index.env.begin() as txn:
            yield View(txn, self._index.tables, {})

    def begin(self) -> Txn:
        """Begin the one write transaction."""
        txn = self._index.env.begin(write=True)
        return Txn(txn, self._index.tables, self._directories, self.applied)

    def batch(self, txn: Txn, records: list[bytes], first_index: int, time_ns: int) -> Batch:
        """Return the frame's worth of what a transaction has performed."""
        applied = self.applied
        payload = encode_payload(
            term=txn.term,
            seq=applied.seq + 1,
            prev_chain=applied.chain,
            pos=txn.pos,
            first_index=first_index,
            time_ns=time_ns,
            writer=self.identity.member_id,
            records=records,
        )
        chain = next_chain(applied.chain, payload)
        return Batch(payload, applied.seq + 1, chain, first_index, len(records), time_ns)

    def append(self, batch: Batch) -> Position:
        """Make a batch durable. The one call for the sync thread.

        Raises:
            LogFull: it was not written, and never will be.
            OSError: nobody can say whether it was written: the process must end.
        """
        return self.wal.append(batch.payload, first_index=batch.first_index, count=batch.records)

    def commit(self, txn: Txn, batch: Batch, position: Position) -> None:
        """Make visible what is durable.

        Raises:
            IndexRefused: the transaction is dead; perform the batch again in a new one.
        """
        applied = txn.next_applied(
            seq=batch.seq, chain=batch.chain, time_ns=batch.time_ns, position=position
        )
        txn.commit(applied)
        self.applied = applied
        self._drop_view()

    def tidy(self, txn: Txn) -> None:
        """Commit a transaction that only freed what no record speaks of."""
        txn.commit(self.applied)
        self._drop_view()

    def start_term(self, time_ns: int, history_limit: int) -> None:
        """Log this start: a new term, and the length of the history if it is another one now.

        A full disk does not keep the store from being read: the old term then stays.
        """
        txn = self.begin()
        records: list[Record] = [Term(txn.term + 1)]
        if history_limit != txn.history_limit:
            records.append(Setting(HISTORY_LIMIT, history_limit))
        for record in records:
            txn.perform(record, time_ns)
        encoded = [encode_record(record) for record in records]
        batch = self.batch(txn, encoded, txn.index + 1, time_ns)
        try:
            position = self.append(batch)
        except LogFull as error:
            txn.end()
            log.warning("this start could not be logged, its term stays the old one: %s", error)
            return
        self.commit(txn, batch, position)

    def snapshot(self) -> int:
        """Write a snapshot of the committed state, verify it, and forget the oldest.

        Blocks for as long as the disk takes: for a thread of its own. The index is read only while
        it is copied, which happens outside of the interpreter's lock.

        Returns:
            The frame before which the log may be purged: the older of two snapshots goes on from
            it. 0 while there is only one: should that be damaged, the log is all there is.

        Raises:
            OSError, CorruptSnapshot: none was made; what was there is still there.
        """
        header = self._checkpoint.take()
        log.info("wrote a snapshot of index %d", header.index)
        kept = snapshot.prune(self.directory.snap, keep=2)
        return kept[1].seq if len(kept) == 2 else 0

    def stop_snapshot(self) -> None:
        """Give up the snapshot that another thread is taking; none is begun after it."""
        self._checkpoint.stop()

    def purge(self, seq: int) -> Position:
        """Delete the segments that end before a frame. A call for the sync thread."""
        self.wal.purge(seq)
        return self.wal.position

    def last_snapshot(self) -> LastSnapshot:
        """Return what is known of the newest snapshot; all zero but the log where there is none."""
        position = self.wal.position
        for path in snapshot.available(self.directory.snap):
            try:
                header = snapshot.read_header(path)
            except CorruptSnapshot as error:
                log.warning("%s", error)
                snapshot.set_aside(path)
                continue
            segments = position.segment - header.segment
            log_bytes = segments * self._segment_bytes_max + position.offset - header.offset
            return LastSnapshot(header.pos, log_bytes, path.stat().st_size)
        return LastSnapshot(0, (position.segment - 1) * self._segment_bytes_max, 0)

    def distrust_index(self) -> None:
        """After an I/O error: what the index holds may be lost, let the next start rebuild it."""
        self._index.distrust()

    def sync_index(self) -> None:
        """Write the index out, so that the kernel never has too much of it to write at once."""
        self._index.env.sync(True)

    def close(self) -> None:
        """Stop cleanly: everything on disk, and marked so. May take long for a large index."""
        self._drop_view()
        self.wal.close()
        self._index.close(clean=True)
        self.directory.close()

    def _drop_view(self) -> None:
        if self._view is not None:
            self._view.end()
            self._view = None


def _recover(directory: DataDirectory, wal: Wal, *, rebuild_index: bool) -> tuple[Index, Recovery]:
    reused = None if rebuild_index else Index.reuse(directory.index)
    base: Position | None
    newest: Path | None = None
    if reused:
        index, source = reused
        base = index.applied().position
    else:
        index = None
        newest, base = _newest_snapshot(directory, wal)
        source = f"snapshot {newest.name}" if newest else "log"
    try:
        # Two passes: nothing is performed and nothing cut before every byte has been looked at.
        for _ in wal.scan(base, must_reach=base.seq if base else 0):
            pass
        if index is None:
            index = Index.create(directory.index)
            index.mark_running()
            _load(index, newest)
        else:
            index.mark_running()
        records = _replay(index, wal, base)
        wal.begin()
    except BaseException:
        if index is not None:
            index.env.close()
        raise
    return index, Recovery(source, records)


def _newest_snapshot(directory: DataDirectory, wal: Wal) -> tuple[Path | None, Position | None]:
    """Return the newest good snapshot and where the log goes on behind it, or twice None.

    Raises:
        CorruptLog: there is none, and the beginning of the log is gone.
    """
    for path in snapshot.available(directory.snap):
        try:
            header = snapshot.verify(path)
        except CorruptSnapshot as error:
            log.warning("%s", error)
            snapshot.set_aside(path)
            continue
        if header.store_uuid != directory.identity.store_uuid:
            raise CorruptSnapshot(f"{path}: a snapshot of another store")
        return path, Position(header.segment, header.offset, header.seq, header.crc)
    if wal.first_seq != 1:
        raise CorruptLog(
            f"{directory.wal}: the log begins with frame {wal.first_seq}, expected frame 1 or a "
            f"good snapshot in {directory.snap}"
        )
    return None, None


def _load(index: Index, path: Path | None) -> None:
    """Fill a new index from a snapshot, or with nothing. Its `applied` comes last."""
    if path is None:
        with index.env.begin(write=True) as txn:
            txn.put(APPLIED_KEY, Applied().encode(), db=index.tables[b"meta"])
        return
    _, rows = snapshot.read(path)
    for table, group in groupby(rows, key=itemgetter(0)):
        with index.env.begin(write=True) as txn, txn.cursor(index.tables[TABLES[table]]) as cursor:
            cursor.putmulti(((key, value) for _, key, value in group), append=True)


def _replay(index: Index, wal: Wal, base: Position | None) -> int:
    """Perform the log behind `base` on the index; return how many records that were."""
    applied = index.applied()
    directories: dict[bytes, int] = {}
    total = records = log_bytes = 0
    txn = Txn(index.env.begin(write=True), index.tables, directories, applied)
    try:
        for frame in wal.scan(base):
            payload = _decode(frame, applied)
            for record in payload.records:
                txn.perform(record, payload.time_ns)
            applied = txn.next_applied(
                seq=payload.seq,
                chain=next_chain(payload.prev_chain, frame.payload),
                time_ns=payload.time_ns,
                position=frame.end,
            )
            records += len(payload.records)
            log_bytes += len(frame.payload)
            if records > _REPLAY_RECORDS or log_bytes > _REPLAY_BYTES:
                txn.commit(applied)
                total, records, log_bytes = total + records, 0, 0
                txn = Txn(index.env.begin(write=True), index.tables, directories, applied)
        txn.commit(applied)
    except BaseException:
        txn.end()
        raise
    return total + records


def _decode(frame: Frame, applied: Applied) -> Payload:
    """Return the batch in a frame, which must go on where `applied` ends."""
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

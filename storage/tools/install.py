"""Install: another replica's snapshot becomes the content of a store, which keeps its identity.

For a replica that the log of all replicas has left behind, and for a new one. The store stays what
it was up to one moment, when the snapshot gets its name:

1. The log is read to its end as by a start. Its newest segment is sealed and the next one begun, as
   for a frame that does not fit: nothing has changed but that.
2. The snapshot is written again with this store's ids, as going on at that empty segment.
3. The index goes, durably: a start would build the old state again.
4. The snapshot gets its name. From here on a start builds the new state, and removes what stands
   before it (storage/recovery.py).

So a crash anywhere leaves the old store or the new one. Frames of this log and batches of the
history are counted apart: the numbers of frames go on as if nothing had happened, and no file names
one that the log does not reach.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kvd.storage import disk
from kvd.storage.directory.data_directory import DataDirectory
from kvd.storage.errors import CorruptSnapshot, OtherHistory
from kvd.storage.evidence import gather, require_log
from kvd.storage.format.applied import Applied
from kvd.storage.format.frame import PAGE_SIZE, Position
from kvd.storage.format.node import CorruptIndex
from kvd.storage.format.sums import APPLIED_KEY
from kvd.storage.format.tables import TABLES, Row
from kvd.storage.index import reuse
from kvd.storage.recovery import newest_snapshot
from kvd.storage.snapshot import directory as snapshot
from kvd.storage.snapshot.directory import Header
from kvd.storage.wal.wal import SEGMENT_BYTES_DEFAULT, Wal

_META = TABLES.index(b"meta")


def install(
    path: Path, received: Path, *, segment_bytes_max: int = SEGMENT_BYTES_DEFAULT
) -> Header:
    """Make a snapshot the content of a store that is not open; durable on return.

    Args:
        path: the data directory.
        received: the snapshot, of a later state of the same history; it is removed at the end.
        segment_bytes_max: the size of new segments.

    Returns:
        The header of the snapshot as it is in the store.

    Raises:
        OtherHistory: it is of another cluster, or of an earlier state.
        CorruptSnapshot: it is damaged.
        CorruptLog: the store is damaged: it has to be set aside first.
        StorageError, OSError: as for the start of the store; LogFull where there is no room.
    """
    directory = DataDirectory.open(path, must_exist=True, keep=received)
    try:
        header = _install(directory, received, segment_bytes_max)
        disk.remove_if_there(received)
        return header
    finally:
        directory.close()


def _install(directory: DataDirectory, received: Path, segment_bytes_max: int) -> Header:
    header = snapshot.read_header(received)
    _require_later(directory, header)
    position = _next_segment(directory, header, segment_bytes_max)
    temporary = directory.snap / "install.tmp"
    try:
        header = _write_own(directory, received, temporary, position)
        reuse.discard(directory.index, directory.identity.store_uuid)
        disk.sync_directory(directory.index)
        snapshot.install(temporary, directory.snap, header)
    finally:
        disk.remove_if_there(temporary)
    return header


def _require_later(directory: DataDirectory, header: Header) -> None:
    identity = directory.identity
    if header.cluster_id != identity.cluster_id:
        raise OtherHistory(
            f"{directory.path}: belongs to cluster {identity.cluster_id:016x}, "
            f"the snapshot to {header.cluster_id:016x}"
        )
    for path in snapshot.available(directory.snap)[:1]:
        index = snapshot.index_of(path)
        if index > header.index:
            raise OtherHistory(
                f"{directory.path}: holds a snapshot of index {index}, the other one is of index "
                f"{header.index}"
            )


def _next_segment(directory: DataDirectory, header: Header, segment_bytes_max: int) -> Position:
    """Begin a segment behind all that the log holds; return where its first frame goes."""
    evidence = gather(
        directory.index,
        directory.snap,
        directory.identity.store_uuid,
        log_begun=directory.log_begun,
    )
    wal = Wal.open(
        directory.wal,
        directory.quarantine,
        store_uuid=directory.identity.store_uuid,
        segment_bytes_max=segment_bytes_max,
        on_first=directory.begin_log,
    )
    require_log(directory.wal, wal.segments, evidence)
    _, base = newest_snapshot(directory, wal)
    for _ in wal.scan(base, must_reach=evidence.reach, witness=evidence.witness):
        pass
    wal.begin()
    try:
        # Twice for a new store: its log begins with a segment that holds a seal and nothing else,
        # because a snapshot goes on behind some frame.
        while wal.writer.tail.offset != PAGE_SIZE or not wal.writer.tail.seq:
            wal.extend(wal.writer.room, header.index + 1, _nothing)
        return wal.writer.tail
    finally:
        wal.close()


def _write_own(
    directory: DataDirectory, received: Path, target: Path, position: Position
) -> Header:
    """Write the snapshot to a file as one of this store that goes on at a position; verify it."""
    header, rows = snapshot.read(received)
    segment, offset, seq, crc = position
    own = header._replace(
        store_uuid=directory.identity.store_uuid,
        member_id=directory.identity.member_id,
        segment=segment,
        offset=offset,
        seq=seq,
        crc=crc,
    )
    snapshot.write(target, own, _placed(header, rows, position))
    snapshot.verify(target)
    return own


def _placed(header: Header, rows: Iterator[Row], position: Position) -> Iterator[Row]:
    """Yield rows with the one that says where the log goes on changed to that.

    Raises:
        CorruptSnapshot: a start could not load them.
    """
    applied = None
    for table, key, value in rows:
        if table >= len(TABLES):
            raise CorruptSnapshot(f"the snapshot holds a table {table}, which is not known here")
        if (table, key) == (_META, APPLIED_KEY):
            applied = _applied(value)
            yield table, key, applied._replace(position=position).encode()
        else:
            yield table, key, value
    if applied is None or (applied.index, applied.chain) != (header.index, header.chain):
        raise CorruptSnapshot("the snapshot does not say how far it goes")


def _applied(row: bytes) -> Applied:
    try:
        return Applied.decode(row)
    except CorruptIndex as error:
        raise CorruptSnapshot(str(error)) from error


def _nothing() -> None:
    """No-op callback."""

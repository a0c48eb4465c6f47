"""Restore: a new store from another one, at its last state or at an earlier point.

The state is rebuilt from the newest snapshot before that point and the log after it, and becomes
the first snapshot of a store with a uuid, a cluster id and a member id of its own: the new cluster
id tells clients that what they have cached may be invalid. Indexes, values, times, expirations and
the event history are those of the source; the history of the new store continues them.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kvd.storage import disk
from kvd.storage.directory.data_directory import DataDirectory
from kvd.storage.errors import OutOfReach
from kvd.storage.format import frame
from kvd.storage.format.applied import Applied
from kvd.storage.format.frame import PAGE_SIZE, WAL_MAGIC, Position, SegmentHeader
from kvd.storage.format.names import segment_name
from kvd.storage.format.sums import APPLIED_KEY
from kvd.storage.format.tables import TABLES
from kvd.storage.index.environment import Index
from kvd.storage.index.index_view import IndexView
from kvd.storage.index.integrity.completeness import proved
from kvd.storage.replay import Until, to_the_end
from kvd.storage.snapshot import directory as snapshot
from kvd.storage.snapshot.checkpoint import header_of
from kvd.storage.tools.backup import staged
from kvd.storage.tools.digest import digest
from kvd.storage.tools.source import Source, to_index, to_time


class Restored(NamedTuple):
    """A restored store: its last index, the time of its last batch, and its digest."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which is not used
    time_ns: int
    digest: str
    cluster_id: int


def restore(
    source: Source, target: Path, *, index: int | None = None, time_ns: int | None = None
) -> Restored:
    """Make a store in a directory that is new or empty; durable on return.

    Args:
        source: a data directory or a backup.
        target: the new data directory.
        index: restore the state after this index, even if it is in the middle of a batch.
        time_ns: restore the last state decided at or before this time, in nanoseconds since 1970.
            Without either, the last state is restored.

    Raises:
        OutOfReach: the source does not hold that state.
        StorageError: the source is damaged. There is no new store then.
    """
    fits, until = _bounds(index, time_ns)
    with staged(target) as draft:
        scratch = draft / "scratch"
        rebuilt = source.rebuild(scratch, fits, until)
        try:
            applied, held = state(rebuilt)
            applied = _with_new_place(rebuilt, applied)
        finally:
            rebuilt.env.close()
        if index is not None and applied.index != index:
            raise OutOfReach(
                f"{source.path}: the log ends with index {applied.index}, before {index}"
            )
        directory = DataDirectory.open(draft)
        try:
            found_store(directory, scratch, applied)
        finally:
            directory.close()
        shutil.rmtree(scratch)
        return Restored(applied.index, applied.wall_ns, held, directory.identity.cluster_id)


def found_store(directory: DataDirectory, index: Path, applied: Applied) -> None:
    """Write the snapshot and the first, empty segment of a new store; durable on return.

    Args:
        directory: a data directory with nothing but FORMAT in it.
        index: the directory of a closed index with the store's state.
        applied: the position applied, which is the beginning of the first segment.
    """
    header = header_of(applied, directory.identity)
    temporary = directory.snap / "first.tmp"
    snapshot.convert(index / "data.mdb", temporary, TABLES, header, through=proved)
    snapshot.install(temporary, directory.snap, header)
    position = applied.position
    page = SegmentHeader(
        store_uuid=directory.identity.store_uuid,
        number=position.segment,
        first_seq=position.seq + 1,
        first_index=applied.index + 1,
        chain=position.crc,
        salt=secrets.randbits(64),
        created_ns=disk.wall_clock_ns(),
    )
    disk.write_file_durably(
        directory.wal / segment_name(page.number, page.first_seq),
        frame.encode_segment_header(page, magic=WAL_MAGIC),
    )
    directory.begin_log()


def state(index: Index) -> tuple[Applied, str]:
    """Return the position that an index has applied, and its digest."""
    with index.env.begin() as txn:
        view = IndexView(txn, index.tables)
        return view.applied, digest(view)


def _bounds(
    index: int | None, time_ns: int | None
) -> tuple[Callable[[snapshot.Header], bool], Until]:
    if index is not None:
        return lambda header: header.index <= index, to_index(index)
    if time_ns is not None:
        return lambda header: header.time_ns <= time_ns, to_time(time_ns)
    return lambda _: True, to_the_end


def _with_new_place(index: Index, applied: Applied) -> Applied:
    """Move the index's position to the first segment of the new log; return it.

    The new log never begins with frame 1: without its snapshot it must be refused and not be taken
    for an empty store.
    """
    seq = max(applied.position.seq, 1)
    applied = applied._replace(position=Position(1, PAGE_SIZE, seq, applied.position.crc))
    sums = index.sums()
    with index.env.begin(write=True) as txn:
        txn.put(APPLIED_KEY, applied.encode_with(sums), db=index.tables[b"meta"])
    return applied

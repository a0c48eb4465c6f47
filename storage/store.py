"""A data directory as one thing: the log, the index applied from it, and the snapshots.

The order of a write, which `kvd.core.committer` keeps and this module serves:

    pending = store.begin()                     invisible
    pending.apply(...)                        once per record
    store.journal.encode(pending, records, time_ns)    as the payload of a frame
    position = store.journal.append(pending)    durable on return; on the sync thread
    store.state.merge(pending, position)        visible, in memory; on the thread that began
    store.flush()                               in the index; some hundred changes later

How it is opened is in recovery.py.

Invariants: the index is never ahead of the log, see index/state.py. `applied` is written in the
transaction whose effects it counts. Sequence, chain and position of each payload must follow those
of the one before it: another history is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kvd.storage import disk
from kvd.storage.directory.data_directory import DataDirectory, require_local
from kvd.storage.errors import LogFull, StorageError
from kvd.storage.failpoints import Faults
from kvd.storage.format.applied import HISTORY_BYTES_MAX, HISTORY_LIMIT, Applied
from kvd.storage.format.frame import Position
from kvd.storage.format.identity import NewIds
from kvd.storage.format.records import LoggedSetting, Record, Term, encode_record
from kvd.storage.index.environment import Index
from kvd.storage.index.errors import BROKEN, IndexRefused
from kvd.storage.index.index_view import IndexView
from kvd.storage.index.integrity.proof import Proof
from kvd.storage.index.pending import Pending
from kvd.storage.index.state import State
from kvd.storage.index.view import View
from kvd.storage.journal import Journal
from kvd.storage.recovery import Recovery, recover
from kvd.storage.snapshot.scrub import SnapshotScrubber
from kvd.storage.snapshot.snapshots import SNAPSHOTS_KEPT_MIN, LastSnapshot, Snapshots
from kvd.storage.wal.scrub import LogScrubber
from kvd.storage.wal.segment_writer import SegmentWriter
from kvd.storage.wal.wal import Wal

log = logging.getLogger(__name__)

SEGMENT_BYTES_MAX = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of an open store, and of its opening.

    Attributes:
        segment_bytes_max: Size of a segment of the log.
        snapshots_kept: How many, and the log since the oldest of them; at least two, should one be
            damaged.
        rebuild_index: Build the index again, even if it can be trusted.
        new_ids: What a store that is created is called; random ids without.
        must_exist: Create none.
        wal_dir: Where the log is to be, if not in the directory itself.
        allow_network_fs: Use the directory even on a network file system.
        watch_crashes: Gets the index's directory before anything in it is opened, and again when
            another has taken its place.
        on_sync: Called with the seconds that each sync of a frame took.
        faults: Those that are to be made in this store.
    """

    segment_bytes_max: int = SEGMENT_BYTES_MAX
    snapshots_kept: int = SNAPSHOTS_KEPT_MIN
    rebuild_index: bool = False
    new_ids: NewIds | None = None
    must_exist: bool = False
    wal_dir: Path | None = None
    allow_network_fs: bool = False
    watch_crashes: Callable[[Path], None] | None = None
    on_sync: Callable[[float], object] | None = None
    faults: Faults = field(default_factory=Faults)


class Store:
    """An open data directory. Everything but the journal's appends belongs to one thread."""

    def __init__(
        self,
        directory: DataDirectory,
        wal: Wal,
        recovered: tuple[Index, Recovery, Position],
        options: Options,
    ) -> None:
        index, self.recovery, self.read_from = recovered
        """Recovery has read the log from the last one on; what is kept before that was not read."""
        self.directory = directory
        self.identity = directory.identity
        self.faults = options.faults
        self.wal = wal
        self.journal = Journal(wal, writer=self.identity.member_id)
        self.state = State(index)
        """The committed state: what readers see."""
        self.unlogged_start: tuple[Record, ...] = ()
        """Records of this start that the log had no room for: part of the next batch."""
        self.index = index
        self.segment_bytes_max = options.segment_bytes_max
        self.snapshots = Snapshots(
            index.env, directory, kept=options.snapshots_kept, faults=options.faults
        )
        self.proof = Proof(index, self.state)

    @classmethod
    def open(cls, path: Path, options: Options | None = None) -> Store:
        """Open or create the store in a directory, with all that was acknowledged.

        Raises:
            StorageError: the directory cannot be used, or something in it is damaged; nothing was
                changed but, at most, the index, which can be built again.
        """
        options = options or Options()
        wal_dir, faults = options.wal_dir, options.faults
        watch = options.watch_crashes or _ignore
        if not options.allow_network_fs:
            require_local(path, path / "wal", *([wal_dir] if wal_dir else []))
        directory = DataDirectory.open(
            path, new_ids=options.new_ids, must_exist=options.must_exist, wal_dir=wal_dir
        )
        try:
            faults.reach("startAfterLock")
            watch(directory.index)
            wal = Wal.open(
                directory.wal,
                directory.quarantine,
                store_uuid=directory.identity.store_uuid,
                segment_bytes_max=options.segment_bytes_max,
                on_first=directory.begin_log,
                writer=SegmentWriter(faults, options.on_sync),
            )
            recovered = recover(directory, wal, faults, rebuild=options.rebuild_index)
            watch(directory.index)
            return cls(directory, wal, recovered, options)
        except IndexRefused as error:
            directory.close()
            raise _refused_at_start(path, error) from error
        except BaseException:
            directory.close()
            raise

    def log_scrubber(self) -> LogScrubber:
        """Return what this start has not read of the log, to be read now."""
        return LogScrubber(self.directory.wal, self.identity.store_uuid, self.read_from)

    def snapshot_scrubber(self) -> SnapshotScrubber:
        """Return the snapshots, to be read now."""
        return SnapshotScrubber(self.directory.snap, self.directory.wal, self.identity.store_uuid)

    @property
    def applied(self) -> Applied:
        """The committed state's place in the history."""
        return self.state.applied

    @property
    def view(self) -> State:
        """The committed state; what it yields is to be read before the next change."""
        return self.state

    def view_at(self, now_ns: int) -> View:
        """The committed state without what has ended by a time; as short-lived as `view`."""
        return self.state.at(now_ns)

    @contextmanager
    def long_view(self) -> Iterator[View]:
        """A view of its own for a read in slices: it stays as it was while others commit.

        What the index frees meanwhile cannot be used again before it ends: few of them at a time.
        """
        self.state.flushed()
        late = self.state.late_rows()
        with self.index.env.begin() as txn:
            yield IndexView(txn, self.index.tables, late)

    def begin(self) -> Pending:
        """Begin a batch; one at a time."""
        return Pending(self.state)

    def heartbeat(self, *, probe: bool = False) -> Position:
        """Give the last frame of the log a successor; see `Wal.heartbeat`. For the sync thread.

        Raises:
            LogFull, OSError: as for `Journal.append`.
        """
        self.wal.heartbeat(self.applied.index + 1, probe=probe)
        return self.wal.position

    def flush(self, *, free: int = 0) -> None:
        """Write to the index what it lacks, and free so many nodes of removed directories.

        Raises:
            IndexRefused: not now; memory has everything, so call it again.
            CorruptIndex, lmdb.Error: damage, one of `BROKEN`.
        """
        self.state.flush(free=free)

    def write_flush(self) -> Position:
        """Write to the index what it lacks. A call for the sync thread.

        Raises:
            IndexRefused, CorruptIndex, lmdb.Error: as for `flush`.
        """
        self.state.write_flush()
        return self.wal.position

    def start_records(self, history_limit: int, history_bytes_max: int | None) -> list[Record]:
        """Return the records of a new term, and of the limits that are other ones now."""
        records: list[Record] = [Term(self.applied.term + 1)]
        if history_limit != self.applied.history_limit:
            records.append(LoggedSetting(HISTORY_LIMIT, history_limit))
        if history_bytes_max is not None and history_bytes_max != self.state.history_bytes_max():
            records.append(LoggedSetting(HISTORY_BYTES_MAX, history_bytes_max))
        return records

    def start_term(
        self, time_ns: int, history_limit: int, history_bytes_max: int | None = None
    ) -> None:
        """Log this start: a new term, and the limits of the history that are other ones now.

        Without `history_bytes_max` that limit stays what it is.

        A full disk does not keep the store from being read: the old term then stays until there is
        room, and what could not be logged is `unlogged_start`.

        Raises:
            StorageError: the index cannot take it; it is logged, so the next start applies it.
            OSError: as for `Journal.append`.
        """
        self.faults.reach("startBeforeTerm")
        pending = self.begin()
        records = self.start_records(history_limit, history_bytes_max)
        for record in records:
            pending.apply(record, time_ns)
        self.journal.encode(pending, [*map(encode_record, records)], time_ns)
        try:
            position = self.journal.append(pending)
        except LogFull as error:
            self.unlogged_start = tuple(records)
            log.warning(
                "this start could not be logged, its term stays the old one for now: %s", error
            )
            return
        self.state.merge(pending, position)
        try:
            self.flush()
        except BROKEN:
            raise
        except IndexRefused as error:
            raise _refused_at_start(self.directory.path, error) from error

    def snapshot(self) -> int:
        """Take a snapshot of what the index holds, as `Snapshots.take`: flush before.

        Raises:
            DirectoryLost: the directory is not where it was.
            OSError, CorruptSnapshot: as for `Snapshots.take`.
        """
        self.require_place()
        return self.snapshots.take()

    def purge(self, seq: int) -> Position:
        """Delete the segments that end before a frame. A call for the sync thread."""
        self.wal.purge(seq)
        return self.wal.position

    def last_snapshot(self) -> LastSnapshot:
        """Describe the newest snapshot, as `Snapshots.last`."""
        return self.snapshots.last(self.wal.position, self.segment_bytes_max)

    @property
    def low_water_bytes(self) -> int:
        """The free space that a segment and another snapshot need."""
        return self.segment_bytes_max + self.snapshots.size

    def is_low_on_space(self, *, reserve: int = 0) -> bool:
        """Return whether a file system has less than `low_water_bytes` and `reserve` left."""
        try:
            free = min(map(self.faults.free_bytes, (self.directory.path, self.directory.wal)))
        except OSError:
            return False  # unknown; the log will meet it
        return free < self.low_water_bytes + reserve

    def probe_index(self) -> Position:
        """Find out whether there is room for the index to grow. A call for the sync thread.

        Raises:
            OSError: there is none; one of `disk.REFUSALS`.
        """
        self.index.probe()
        return self.wal.position

    def require_place(self) -> None:
        """Check that the directory, that of the log and the index are still where they were.

        Raises:
            DirectoryLost: they are not, or another process has taken them.
        """
        self.directory.require_place()
        self.index.require_place()

    def close(self) -> None:
        """Stop cleanly: everything on disk, and marked so. May take long for a large index.

        Raises:
            DirectoryLost: the directory is not where it was; what is there now is left alone.
        """
        self.faults.reach("stopBeforeLog")
        self.wal.close()
        clean = False
        try:
            self.require_place()
            clean = self._flush_at_stop()
        finally:
            self.state.end()
            try:
                self.index.close(clean=clean)
            finally:
                self.directory.close()

    def abandon(self) -> None:
        """Close as `kill -9` does: nothing is synced, flushed or marked as clean."""
        self.wal.abandon()
        try:
            self.state.end()
            self.index.close(clean=False)
        finally:
            self.directory.close()

    def _flush_at_stop(self) -> bool:
        """Flush; return whether the index has it all: if not, the next start applies the rest."""
        try:
            self.flush()
        except BROKEN as damage:
            log.warning("the index is damaged, the next start rebuilds it: %s", damage)
            self.index.distrust()
            return False
        except IndexRefused as error:
            log.warning("the index could not take everything, the next start does: %s", error)
            return False
        return True


def _ignore(index: Path) -> None:
    """No-op callback."""


def _refused_at_start(path: Path, error: Exception) -> StorageError:
    return StorageError(
        f"{path}: the index could not be written: {error}; is the disk full? "
        f"{disk.free_bytes(path)} bytes are free. Nothing is lost: start again with room"
    )

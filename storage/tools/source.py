"""A data directory or a backup, open for reading only: the input of the tools.

Nothing in it is changed. The log is append-only, so it can be read while a server writes to it
(`live`): a frame that was incomplete when it was read looks damaged, and is read once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from kvd.storage.directory.claim import require_plain
from kvd.storage.directory.data_directory import require_subdirectories
from kvd.storage.directory.format_file import read_format
from kvd.storage.directory.locks import SharedLocks, holder
from kvd.storage.errors import (
    EX_DATAERR,
    CorruptLog,
    CorruptSnapshot,
    DirectoryLocked,
    DirectoryUnusable,
    OutOfReach,
    StorageError,
)
from kvd.storage.evidence import Evidence, gather, require_log
from kvd.storage.format.applied import Applied
from kvd.storage.format.frame import Position
from kvd.storage.format.identity import Format
from kvd.storage.format.payload import Payload
from kvd.storage.format.records import Change
from kvd.storage.index.environment import Index
from kvd.storage.replay import Until, load, replay, to_the_end
from kvd.storage.snapshot import directory
from kvd.storage.snapshot.directory import Header
from kvd.storage.wal.segments import Frame, Scan, Segment, list_segments

Found = list[tuple[Path, Header | CorruptSnapshot]]
"""Snapshots, newest first: the header of each, or the error."""

_STALLS_MAX = 20


class Base(NamedTuple):
    """The start of a replay: a good snapshot, or None twice for the beginning of the log."""

    path: Path | None
    header: Header | None

    @property
    def position(self) -> Position | None:
        """The position in the log after the content of the base."""
        return self.header.position if self.header else None


class Source:
    """An open source, as returned by `reading`.

    Attributes:
        path: the directory; `wal`, `snap` and `index` are its subdirectories.
        identity: the identity in FORMAT.
        live: a server may be writing to it meanwhile.
        evidence: the frames that index, marks and snapshots name.
        scan: the last scan of the log, which knows the tail once it has ended.
    """

    def __init__(self, path: Path, found: Format, *, live: bool) -> None:
        self.path = path
        self.wal, self.snap, self.index = path / "wal", path / "snap", path / "index"
        self.identity, self.log_begun = found
        self.live = live
        self.evidence: Evidence = gather(
            self.index, self.snap, self.identity.store_uuid, log_begun=self.log_begun
        )
        self.scan: Scan | None = None

    def segments(self) -> list[Segment]:
        """Return the segments of the log.

        Raises:
            CorruptLog: one is missing, misnamed, damaged or of another store; or all are missing.
        """
        segments = list_segments(self.wal, self.identity.store_uuid)
        require_log(self.wal, segments, self.evidence)
        return segments

    def frames(self, start: Position | None = None) -> Iterator[Frame]:
        """Yield every frame after `start`, or of the whole log, except seals and heartbeats.

        Raises:
            CorruptLog: by the rules of storage/wal/segments.py; or the log ends before a frame that
                the evidence names.
            StorageError: a server has purged the next segment meanwhile.
        """
        position = start
        failed_at: object = self  # no position
        stalls = 0
        reach, witness = self.evidence.reach, self.evidence.witness
        while True:
            try:
                self.scan = Scan(self.wal, self.segments(), position)
                for frame in self.scan.frames(reach, witness):
                    position = frame.end
                    yield frame
            except (CorruptLog, FileNotFoundError) as error:
                if not self.live:
                    raise
                self._check_not_purged(position)
                # A server completes a frame before it begins the next one, so what is bad twice is
                # damaged. A file that was purged is missing from the next list of segments.
                stalls = stalls + 1 if position == failed_at else 0
                if stalls > _STALLS_MAX or (stalls and isinstance(error, CorruptLog)):
                    raise
                failed_at = position
            else:
                return

    def _check_not_purged(self, position: Position | None) -> None:
        numbers = [int(entry.name[:16], 16) for entry in self.wal.glob("*.wal")]
        if position is not None and numbers and min(numbers) > position.segment:
            raise StorageError(
                f"{self.path}: the server purged its log faster than it was read; try again"
            )

    def snapshots(self) -> Found:
        """Verify all snapshots; return the header or the error of each, newest first."""
        found: Found = []
        for path in directory.available(self.snap):
            try:
                header = directory.verify_own(path, self.identity.store_uuid)
            except CorruptSnapshot as error:
                found.append((path, error))
            except FileNotFoundError:
                if not self.live:
                    raise
            else:
                found.append((path, header))
        return found

    def bases(self, snapshots: Found | None = None) -> list[Base]:
        """Return the bases of a rebuild, newest first; the beginning of the log is one, too.

        Args:
            snapshots: the result of `snapshots`, if it was called already.
        """
        found = self.snapshots() if snapshots is None else snapshots
        bases = [Base(path, header) for path, header in found if isinstance(header, Header)]
        names = sorted(entry.name for entry in self.wal.glob("*.wal"))
        is_new = not names and not self.evidence.witness
        if is_new or (names and names[0].endswith(f"-{1:016x}.wal")):
            bases.append(Base(None, None))
        return bases

    def rebuild(self, scratch: Path, fits: Callable[[Header], bool], until: Until) -> Index:
        """Build an index of a state in a directory that does not exist yet.

        Args:
            scratch: the directory; an existing one is removed first.
            fits: whether a snapshot is early enough.
            until: the end of the replay.

        Raises:
            CorruptLog: the part of the log that has to be read is damaged.
            OutOfReach: no snapshot is early enough, and the beginning of the log was purged.
        """
        bases = self.bases()
        for base in bases:
            if base.header is None or fits(base.header):
                return self.rebuild_from(base, scratch, until)
        self.segments()
        if not bases:
            raise CorruptLog(
                f"{self.wal}: the log does not begin with frame 1, and there is no good snapshot "
                f"in {self.snap}"
            )
        oldest = bases[-1].header
        assert oldest is not None
        raise OutOfReach(
            f"{self.path}: the oldest state that can be rebuilt is that of index {oldest.index}"
        )

    def rebuild_from(self, base: Base, scratch: Path, until: Until) -> Index:
        """Build an index from one base; see `rebuild`."""
        index = Index.create(scratch)
        try:
            load(index, base.path)
            replay(index, self.frames(base.position), until)
        except BaseException:
            index.env.close()
            raise
        return index

    def latest(self, scratch: Path) -> Index:
        """Build an index of the last state; see `rebuild`."""
        return self.rebuild(scratch, lambda _: True, to_the_end)


def to_index(last: int) -> Until:
    """Return the end of a replay that stops after the change with this index."""

    def until(payload: Payload) -> int:
        for count, record in enumerate(payload.records):
            if isinstance(record, Change) and record.index > last:
                return count
        return len(payload.records)

    return until


def to_time(time_ns: int) -> Until:
    """Return the end of a replay that stops after the last batch up to a time, in ns since 1970."""
    return lambda payload: len(payload.records) if payload.wall_ns <= time_ns else 0


def place(applied: Applied) -> Position | None:
    """Return the position in the log up to which an index is applied, None for the beginning."""
    return applied.position if applied.position.seq else None


@contextmanager
def reading(path: Path, *, force: bool = False) -> Iterator[Source]:
    """Open a data directory or a backup for reading; no server can open it meanwhile.

    Args:
        path: the directory.
        force: read it even while a server has it.

    Raises:
        DirectoryLocked: another process has it.
        DirectoryUnusable: it is no data directory, or its FORMAT is damaged or unknown.
    """
    found = format_of(path)
    locks = SharedLocks(path)
    try:
        if locks.live and not force:
            raise DirectoryLocked(
                f"{path}: in use by {holder(path)}; --force reads it nevertheless"
            )
        yield Source(path, found, live=locks.live)
    finally:
        locks.close()


def format_of(path: Path) -> Format:
    """Return the FORMAT of a directory, after a check that it has the parts of a store.

    Raises:
        DirectoryUnusable: it is no data directory, or its FORMAT is damaged or unknown.
    """
    if not path.is_dir():
        raise DirectoryUnusable(f"{path}: is no directory")
    require_plain(path)
    require_subdirectories(path)
    try:
        return read_format(path)
    except OSError as error:
        raise DirectoryUnusable(
            f"{path}: FORMAT: {error.strerror}", exit_status=EX_DATAERR
        ) from error

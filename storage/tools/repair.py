"""Repair: the end of a log is cut off, so that the good part before it can be served again.

    quarantine/<UTC>-repair-<index>/
        MANIFEST     JSON: the pieces that were cut off, and their places
        tail         the piece cut off the last segment that stays, without the zeros at its end
        *.wal *.snap segments and snapshots that were removed as a whole

All that is cut off is kept there, bit for bit. To undo a repair, give the segment its size again,
write `tail` to its offset and move the files back, provided that no server has written to the
directory since. The index is not kept: the next start rebuilds it. Files that name a frame after
the new end of the log are removed too, even if the log itself ends there already: snapshots, and
the index with its marks (storage/evidence.py).

After a crash in the middle, a second run finishes the repair, in a directory of its own: pieces are
copied before they are cut, and whole files are moved, newest first, before the tail is cut.
"""

from __future__ import annotations

import errno
import json
import os
import re
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import NamedTuple

from kvd.storage import disk
from kvd.storage.directory import replica_file
from kvd.storage.directory.data_directory import DataDirectory
from kvd.storage.errors import CorruptLog, LogMissing, OutOfReach, StorageError
from kvd.storage.evidence import index_reach
from kvd.storage.format.frame import START
from kvd.storage.format.identity import Format
from kvd.storage.format.names import SEGMENT_NAME
from kvd.storage.index.reuse import forget
from kvd.storage.snapshot import directory as snapshot
from kvd.storage.tools.good_extent import Extent, good_extent
from kvd.storage.tools.source import Source, format_of, reading
from kvd.storage.wal.segments import Segment

_OF_A_REPLICA = (
    "This is a replica: the others have what a repair drops, or what an empty directory lacks, and "
    "it is fetched from them"
)


class Cut(NamedTuple):
    """The pieces that a repair cuts off: bytes of one segment, and whole files.

    `claim` is the frame after the new end that the index names, 0 if it names none.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which is not used
    segment: Path | None
    offset: int
    size: int
    whole: list[Path]
    claim: int = 0

    @property
    def is_nothing(self) -> bool:
        """Whether there is nothing to cut off."""
        return not self.size and not self.whole and not self.claim


def plan(source: Source, index: int) -> Cut:
    """Return the cut after which the log ends with an index. Changes nothing.

    Raises:
        OutOfReach: the log cannot end there: it is damaged before, or a batch crosses that index.
        CorruptLog: there is neither a good snapshot nor the beginning of the log.
    """
    extent = good_extent(source, index)
    if extent.index < index:
        reason = f"the log ends with index {extent.index}"
        if extent.problem:
            reason = f"the log is good up to index {extent.index} only: {extent.problem}"
        if extent.beyond and extent.beyond[0] <= index:
            first, last = extent.beyond
            reason = (
                f"indexes {first} to {last} were written as one batch, which cannot be cut: "
                f"truncate at {first - 1} or at {last}"
            )
        raise OutOfReach(f"{source.path}: {reason}")
    return _cut_behind(source, extent)


def repair(path: Path, index: int) -> tuple[Cut, Path]:
    """Make the cut of `plan`; return it and its directory in the quarantine. Durable on return.

    Raises:
        StorageError: as for `plan`, or a server has the directory.
        OSError: the disk failed; another run continues from there.
    """
    format_of(path)  # `open` would make a new store where there is none
    directory = DataDirectory.open(path)
    try:
        source = Source(path, Format(directory.identity, directory.log_begun), live=False)
        cut = plan(source, index)
        kept = _new_name(directory.quarantine, index)
        if not cut.is_nothing:
            _keep(cut, kept)
            _apply(directory, cut, kept)
    finally:
        directory.close()
    return cut, kept


def explained(error: StorageError, path: Path) -> str:
    """Return the text of an error, for a damaged log with the remedy. Never raises."""
    if not isinstance(error, CorruptLog):
        return str(error)
    text = str(error) if isinstance(error, LogMissing) else f"{error}. {advice(path)}"
    return f"{text}. {_OF_A_REPLICA}" if _is_replica(path) else text


def _is_replica(path: Path) -> bool:
    try:
        return replica_file.read(path) is not None
    except StorageError:
        return False


def advice(path: Path, *, starts: bool = False) -> str:
    """Return the remedy for a damaged log, in one line. Never raises.

    Args:
        path: the data directory.
        starts: a server can start, because another copy has the damaged part.
    """
    inspect = f"To inspect: kvdctl verify {path}"
    nowhere = f"{inspect}. To go on: restore a backup"
    try:
        with reading(path) as source:
            index, end, _, problem = good_extent(source)
    except (StorageError, OSError):
        return nowhere
    if starts and (problem is not None or end == START):
        # Only the index has the state after the damage.
        return (
            "Nothing is lost: start a server, which takes a snapshot at once; or restore a backup"
        )
    if starts:
        return (
            "Nothing is lost: the log has everything, and a server makes the rest again "
            "(kvd --rebuild-index builds the index at once)"
        )
    if end == START:  # nothing of the log is good, so there is no place to cut
        return nowhere
    return (
        f"Last good: index {index}. {inspect}. To drop index {index + 1} and everything later "
        f"(kept in quarantine/): kvdctl repair --truncate-at {index} {path}"
    )


def _cut_behind(source: Source, extent: Extent) -> Cut:
    """Return the cut of all after the good part, and of older files that do not connect to it."""
    end = extent.end
    is_whole = extent.beyond is None and extent.problem is None
    segments = sorted(source.wal.glob("*.wal"), reverse=True)
    kept, whole = _connected(source, segments, None if is_whole else end.segment)
    for path in snapshot.named(source.snap):
        if max(snapshot.claims(path, source.identity.store_uuid), default=0) > end.seq:
            whole.append(path)
    claim = index_reach(source.index, source.identity.store_uuid)[0]
    claim = claim if claim > end.seq else 0
    last = kept.get(end.segment)
    if is_whole or last is None:
        return Cut(extent.index, None, 0, 0, whole, claim)
    fd = disk.open_to_read(last)
    try:
        tail = disk.read_at(fd, last.stat().st_size - end.offset, end.offset)
    finally:
        os.close(fd)
    return Cut(extent.index, last, end.offset, len(tail.rstrip(b"\0")), whole, claim)


def _connected(
    source: Source, segments: list[Path], last: int | None
) -> tuple[dict[int, Path], list[Path]]:
    """Return the segments, newest first, that lead without a gap to `last`; and all others.

    A start checks the names and headers of all segments, even if it reads none of their frames.
    """
    kept: dict[int, Path] = {}
    others: list[Path] = []
    for path in segments:
        match = SEGMENT_NAME.fullmatch(path.name)
        number = int(match[1], 16) if match else 0
        expected = min(kept) - 1 if kept else last or number
        if number == expected and _has_good_header(source, path, match):
            kept[number] = path
        else:
            others.append(path)
    return kept, others


def _has_good_header(source: Source, path: Path, match: re.Match[str] | None) -> bool:
    if match is None:
        return False
    try:
        with Segment(path, int(match[1], 16), int(match[2], 16)).open() as reader:
            return reader.header.store_uuid == source.identity.store_uuid
    except CorruptLog:
        return False


def _new_name(quarantine: Path, index: int) -> Path:
    """Return a name that no earlier repair has used, not even one of the same second."""
    now = datetime.fromtimestamp(disk.wall_clock_ns() // 10**9, UTC)
    name = f"{now:%Y%m%dT%H%M%SZ}-repair-{index}"
    paths = (quarantine / (name if n == 1 else f"{name}-{n}") for n in count(1))
    return next(path for path in paths if not path.exists())


def _keep(cut: Cut, kept: Path) -> None:
    """Copy the tail to the quarantine, and list there what will be cut off."""
    kept.mkdir(mode=disk.DIRECTORY_MODE)
    disk.sync_directory(kept.parent)
    manifest: dict[str, object] = {
        "truncated_at_index": cut.index,
        "tail": None,
        "moved": [f"{path.parent.name}/{path.name}" for path in cut.whole],
    }
    if cut.segment is not None and cut.size:
        fd = disk.open_to_read(cut.segment)
        try:
            tail = disk.read_at(fd, cut.size, cut.offset)
        finally:
            os.close(fd)
        disk.write_file_durably(kept / "tail", tail)
        manifest["tail"] = {
            "file": f"wal/{cut.segment.name}",
            "offset": cut.offset,
            "file_size": cut.segment.stat().st_size,
        }
    disk.write_file_durably(kept / "MANIFEST", (json.dumps(manifest, indent=2) + "\n").encode())


def _apply(directory: DataDirectory, cut: Cut, kept: Path) -> None:
    forget(directory.index)
    disk.sync_directory(directory.index)
    # Snapshots first: after a crash, one that covers removed frames would be trusted.
    for path in sorted(cut.whole, reverse=True):
        if path.suffix != ".wal":
            _move(path, kept)
    for path in sorted(cut.whole, reverse=True):
        if path.suffix == ".wal":
            _move(path, kept)
    if cut.segment is not None and cut.size:
        fd = disk.open_to_write(cut.segment)
        try:
            disk.truncate(fd, cut.offset)
            disk.sync_file(fd)
        finally:
            os.close(fd)


def _move(path: Path, kept: Path) -> None:
    try:
        disk.rename(path, kept / path.name)
    except OSError as error:
        if error.errno != errno.EXDEV:  # the log may have a disk of its own
            raise
        disk.write_file_durably(kept / path.name, path.read_bytes())
        disk.remove(path)
    disk.sync_directory(kept)
    disk.sync_directory(path.parent)

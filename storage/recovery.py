"""Recovery: what a start does with a log, an index and snapshots, before anything is served.

1. Gather what names a frame of the log: so far it must go (evidence.py).
2. Refuse an empty log where there has been one.
3. Take the index that is there if it is vouched for, and neither the evidence nor the log behind it
   says otherwise: that log is read to its end, and nothing of it applied.
4. Else build a draft from the newest good snapshot, or from nothing where the log has its first
   frame, and the whole log behind it, which is applied while it is read; a snapshot that proves
   damaged is set aside.
5. Refuse a torn tail behind a clean stop.
6. Remove what stands before a snapshot that was installed in its place (tools/install.py).
7. Put the draft in the place of the index, and mark the index as in use.
8. Apply to an index of step 3 what step 3 has read.
9. Begin the log: cut a torn tail, which goes to `quarantine/`.
10. Have FORMAT say that there is a log.

Up to step 5 nothing is changed but an index that nothing vouches for, and snapshots that are
damaged. An index that proves damaged on the way is built again, from step 1.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from kvd.storage import disk
from kvd.storage.directory.data_directory import DataDirectory
from kvd.storage.errors import CorruptLog, CorruptSnapshot
from kvd.storage.evidence import Evidence, gather, left_behind, objection, require_log
from kvd.storage.failpoints import Faults
from kvd.storage.format.frame import PAGE_SIZE, START, Position
from kvd.storage.index.environment import Index
from kvd.storage.index.errors import BROKEN
from kvd.storage.index.integrity import durable
from kvd.storage.index.reuse import CLEAN_STOP, discard
from kvd.storage.replay import load, replay
from kvd.storage.snapshot import directory as snapshot
from kvd.storage.wal.segments import ADVICE
from kvd.storage.wal.wal import Wal

log = logging.getLogger(__name__)

# The index that is being built; a leftover of a crash goes with the other `*.tmp`.
_DRAFT = "index.tmp"


class Recovery(NamedTuple):
    """The outcome of a recovery: where the index came from, and the records replayed on it."""

    source: str
    records: int


def recover(
    directory: DataDirectory, wal: Wal, faults: Faults, *, rebuild: bool
) -> tuple[Index, Recovery, Position]:
    """Return the index with all that was acknowledged, and from where on the log was read.

    The log is ready for appends then.

    Raises:
        StorageError: something is damaged.
        IndexRefused: there is no room for the index.
    """
    try:
        return _recover(directory, wal, faults, rebuild=rebuild)
    except BROKEN as damage:
        log.warning("the index is damaged and is rebuilt: %s", damage)
        return _recover(directory, wal, faults, rebuild=True)


def _recover(
    directory: DataDirectory, wal: Wal, faults: Faults, *, rebuild: bool
) -> tuple[Index, Recovery, Position]:
    evidence = gather(
        directory.index,
        directory.snap,
        directory.identity.store_uuid,
        log_begun=directory.log_begun,
    )
    require_log(directory.wal, wal.segments, evidence)
    reused = None if rebuild else _reuse(directory, wal, evidence, faults)
    if reused is not None:
        (index, source), records = reused, 0
        read_from = index.applied().position
    else:
        index, source, records, read_from = _build(directory, wal, evidence, faults)
    try:
        _check_end(wal, stopped_cleanly=evidence.mark == CLEAN_STOP)
        faults.reach("startAfterScan")
        if reused is None:
            _drop_replaced(directory, wal, read_from)
            index = index.replace(directory.index)
        index.mark_running()
        durable.forget(index.env)
        faults.reach("startAfterMark")
        if reused is not None:
            # The second pass: nothing is applied before every byte has been looked at.
            records = replay(index, wal.scan(read_from))
        faults.reach("startAfterReplay")
        wal.begin()
    except BaseException:
        index.env.close()
        raise
    _note_log(directory, wal)
    return index, Recovery(source, records), read_from


def _note_log(directory: DataDirectory, wal: Wal) -> None:
    """Have FORMAT say that there is a log, where an older version has not; not on a full disk."""
    if wal.segments:
        try:
            directory.begin_log()
        except OSError as error:
            if error.errno not in disk.REFUSALS:
                raise


def _drop_replaced(directory: DataDirectory, wal: Wal, base: Position) -> None:
    """Remove the log and the snapshots before a snapshot that does not go on from them.

    Of one that was taken here the last frame stands in front of where the log goes on. One that was
    installed goes on at the beginning of a segment; a store that was restored has nothing else.
    """
    if base.seq and base.offset == PAGE_SIZE:
        for path in snapshot.available(directory.snap)[1:]:
            disk.remove(path)
        disk.sync_directory(directory.snap)
        wal.purge(base.seq + 1)


def _reuse(
    directory: DataDirectory, wal: Wal, evidence: Evidence, faults: Faults
) -> tuple[Index, str] | None:
    """Return the index in the directory and why it can be reused; None if it cannot.

    The log behind it has been looked at then, to its end.

    Raises:
        CorruptLog: the log is damaged, or ends before what is known to have been acknowledged.
    """
    own_uuid = directory.identity.store_uuid
    reused = Index.reuse(directory.index, own_uuid, faults)
    if reused is None:
        return None
    index, _ = reused
    try:
        applied = index.applied()
        problem = objection(
            evidence, applied, index.store_uuid, own_uuid=own_uuid, segments=wal.segments
        )
        if problem is None:
            reach, witness = evidence.reach, evidence.witness
            frames = wal.scan(applied.position, must_reach=reach, witness=witness)
            problem = left_behind(applied, frames)
    except BaseException:
        index.env.close()
        raise
    if problem is None:
        return reused
    index.env.close()
    log.warning("the index is not the one that was written last and is rebuilt: %s", problem)
    return None


def _build(
    directory: DataDirectory, wal: Wal, evidence: Evidence, faults: Faults
) -> tuple[Index, str, int, Position]:
    """Build a draft of the index from a snapshot and the whole log behind it.

    All is applied while it is being checked, in one pass: the draft only counts when every byte
    has been looked at.

    Args:
        directory: where the draft is made.
        wal: the log; its scan has come to its end on return.
        evidence: what is known of the log and the index. Where something vouches for the index that
            stands there, it may still be of use; else it goes first, because there may be no room
            for two.
        faults: those that are to be made in the index.

    Returns:
        The draft, what it was begun with, how many records were applied, and from where on.
    """
    own_uuid = directory.identity.store_uuid
    if evidence.mark is None:
        discard(directory.index, own_uuid)
    while True:
        newest, base = newest_snapshot(directory, wal)
        draft = Index.create(directory.path / _DRAFT, own_uuid, faults)
        try:
            load(draft, newest)
            frames = wal.scan(base, must_reach=evidence.reach, witness=evidence.witness)
            records = replay(draft, frames)
        except CorruptSnapshot as error:
            assert newest is not None
            draft.env.close()
            log.warning("%s", error)
            snapshot.set_aside(newest)
        except BaseException:
            draft.env.close()
            raise
        else:
            source = f"snapshot {newest.name}" if newest else "log"
            return draft, source, records, base or START


def _check_end(wal: Wal, *, stopped_cleanly: bool) -> None:
    """Refuse a torn tail where nothing was being written at the stop.

    Raises:
        CorruptLog: the log was damaged after a clean stop.
    """
    torn = wal.torn
    if torn is not None and stopped_cleanly:
        raise CorruptLog.at(
            torn.file,
            torn.offset,
            f"{torn.length} bytes that are no frame follow frame {torn.last_seq}, but the store "
            f"was stopped cleanly: the log was damaged afterwards. {ADVICE}",
        )


def newest_snapshot(directory: DataDirectory, wal: Wal) -> tuple[Path | None, Position | None]:
    """Return the newest snapshot and where the log goes on behind it, or twice None.

    Its rows have not been looked at.

    Raises:
        CorruptLog: there is none, and the beginning of the log is gone.
    """
    for path, header in snapshot.usable(directory.snap, directory.identity.store_uuid):
        return path, header.position
    if wal.first_seq != 1:
        raise CorruptLog(
            f"{directory.wal}: the log begins with frame {wal.first_seq}, expected frame 1 or a "
            f"good snapshot in {directory.snap}"
        )
    return None, None

"""Evidence of where the log ends, before it is read; and whether the index can be reused.

The server's start (storage/recovery.py) and the tools (storage/tools/source.py,
storage/tools/verify.py) decide by the functions of this module, so that they agree.

A frame is named only after it was durable, and frames are never taken back. So the log must reach
the highest of those that these name, whether the index is used or not:

    index/CLEAN, RUNNING, REACHED    the log at the last clean stop, at the last start, and what an
                                     index that was thrown away had reached
    index/data.mdb                   its row `applied`, even if nothing vouches for the file
    snap/*.snap, *.snap.broken       names and headers
    FORMAT                           that there was a segment: an empty log is no new store's then

What says that it is another store's names nothing. `kvdctl repair` removes what names a frame that
it cuts off.

An index that a mark vouches for is used, unless what it says of itself proves that it is not the
one that this store has written last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from kvd.storage.errors import LogMissing
from kvd.storage.format.applied import Applied
from kvd.storage.index import reuse
from kvd.storage.index.reuse import CLEAN, CLEAN_STOP, MARKS, RUNNING
from kvd.storage.index.unflushed import BEHIND_FACTOR, FLUSH_RECORDS
from kvd.storage.snapshot import directory
from kvd.storage.wal.segments import Frame, Segment

# So many records may be in memory only, and those of a last batch, each in a frame of its own.
BEHIND_MAX = FLUSH_RECORDS * BEHIND_FACTOR + 1000


class Evidence(NamedTuple):
    """Evidence in other files about the log.

    Attributes:
        mark: What vouches for the index, or None.
        reach: The last frame that is known to have been acknowledged.
        witness: What names that frame, or else what says that there was a log; empty for neither.
        floor: The frame that an index which is vouched for has reached at least.
    """

    mark: str | None
    reach: int
    witness: str
    floor: int


def gather(index: Path, snap: Path, store_uuid: bytes, *, log_begun: bool) -> Evidence:
    """Look at everything that names a frame of the log. Changes nothing.

    Args:
        index: the directory of the index.
        snap: the directory of the snapshots.
        store_uuid: whose they must be.
        log_begun: FORMAT says that the log has had a segment.
    """
    named = [index_reach(index, store_uuid)]
    named += [
        (seq, f"snap/{path.name}")
        for path in directory.named(snap)
        for seq in directory.claims(path, store_uuid)
    ]
    reach, witness = max(named, key=lambda pair: pair[0])
    if not reach:
        witness = "FORMAT" if log_begun else ""
    mark = reuse.reusable(index, store_uuid)
    mark_name = CLEAN if mark == CLEAN_STOP else RUNNING
    floor = reuse.marked_frame(index / mark_name, store_uuid) or 0
    return Evidence(mark, reach, witness, floor)


def index_reach(index: Path, store_uuid: bytes) -> tuple[int, str]:
    """Return the last frame that an index or its marks name, and which of them does."""
    named = [(reuse.marked_frame(index / name, store_uuid) or 0, name) for name in MARKS]
    named.append((reuse.reached(index, store_uuid), "data.mdb"))
    seq, name = max(named, key=lambda pair: pair[0])
    return seq, f"{index.name}/{name}"


def require_log(wal: Path, segments: Sequence[Segment], evidence: Evidence) -> None:
    """Refuse an empty log where there has been one.

    Raises:
        LogMissing: its disk is not mounted, or it was removed.
    """
    if segments or not evidence.witness:
        return
    what = f"names its frame {evidence.reach}" if evidence.reach else "says that it was begun"
    raise LogMissing(
        f"{wal}: there is no log, but {evidence.witness} {what}; is {wal.resolve()} mounted? "
        "Nothing was changed. If that log is lost, restore a backup"
    )


def objection(
    evidence: Evidence,
    applied: Applied,
    store_uuid: bytes | None,
    *,
    own_uuid: bytes,
    segments: Sequence[Segment],
) -> str | None:
    """Return why an index that is vouched for is not used nevertheless, or None.

    Args:
        evidence: what vouches for it.
        applied: how far it goes.
        store_uuid: whose it says it is, if it does.
        own_uuid: whose store this is.
        segments: the log.
    """
    if store_uuid not in (None, own_uuid):
        return "it is another store's"
    place = applied.position
    if place.seq < evidence.floor:
        return f"it ends with frame {place.seq}, but had reached frame {evidence.floor}"
    if place.seq and segments and place.segment < segments[0].number:
        return f"it ends with frame {place.seq}, before the log that is kept"
    return None


def left_behind(applied: Applied, frames: Iterable[Frame]) -> str | None:
    """Read on behind an index to the end of the log; return why it is not used, or None.

    A server that dies leaves the index at most `BEHIND_MAX` frames behind.
    """
    count = sum(1 for _ in frames)
    if count <= BEHIND_MAX:
        return None
    return f"it ends with frame {applied.position.seq}, {count} behind the log"

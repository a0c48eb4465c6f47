"""Verification of a whole data directory, and a forecast of the next start.

It reads more than a start does: every snapshot, the whole log, and the index in comparison with the
log. So damage is found while there is still another copy of the damaged data.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from kvd.storage.errors import Corrupt, CorruptLog, CorruptSnapshot
from kvd.storage.evidence import left_behind, objection
from kvd.storage.format.applied import Applied
from kvd.storage.format.frame import Position
from kvd.storage.format.names import SPARE_NAME
from kvd.storage.format.node import CorruptIndex
from kvd.storage.format.payload import CHAIN_START, next_chain
from kvd.storage.index.environment import Index
from kvd.storage.index.reuse import CLEAN_STOP, crash_of
from kvd.storage.replay import batch_in, decode, load, replay
from kvd.storage.tools.digest import IndexState, index_state, without_place
from kvd.storage.tools.restore import state
from kvd.storage.tools.source import Base, Source, place
from kvd.storage.wal import spare_segment
from kvd.storage.wal.segments import Frame, TornTail

_REBUILT = "Nothing is lost: a start, or its check in the background, rebuilds it"


class Verdict(StrEnum):
    """The verdict on one part."""

    GOOD = "good"
    NOTE = "note"
    DAMAGED = "DAMAGED"


class Finding(NamedTuple):
    """One line of the report: a part of the directory, the verdict, and its reason."""

    part: str
    verdict: Verdict
    text: str


def verify(source: Source, scratch: Path) -> Iterator[Finding]:
    """Yield the findings, part by part; the last one says whether a start would succeed.

    Args:
        source: the data directory.
        scratch: a directory for files that are as large as the index.

    Raises:
        OSError: a file cannot be read, which is no statement about its content.
    """
    yield Finding("FORMAT", Verdict.GOOD, f"store {source.identity.store_uuid.hex()}")
    snapshots = source.snapshots()
    for path, found in snapshots:
        name = f"snap/{path.name}"
        if isinstance(found, CorruptSnapshot):
            text = f"{found}. A start sets it aside and uses an older one"
            yield Finding(name, Verdict.DAMAGED, text)
        else:
            yield Finding(name, Verdict.GOOD, f"index {found.index}, frame {found.seq}")
    yield from _spare(source)
    yield from _log(source)
    bases = source.bases(snapshots)
    known, findings = _index(source)
    yield from findings
    if not bases:
        text = (
            "there is no good one, but the beginning of the log is gone: only the index holds what "
            "was before. A server that starts from that takes a new one at once"
        )
        yield Finding("snap", Verdict.DAMAGED, text)
    if bases:
        yield from _meaning(source, bases, known, scratch)
    try:
        text = _start(source, bases, known)
    except Corrupt as error:
        yield Finding("start", Verdict.DAMAGED, f"a server refuses to start: {error}")
    else:
        yield Finding("start", Verdict.GOOD, f"a server starts from {text}")


def _spare(source: Source) -> Iterator[Finding]:
    """Check that the space reserved for the next segment is empty."""
    if not source.live and (at := spare_segment.first_byte(source.wal)) is not None:
        text = f"holds something at offset {at}, which is no part of the log; a start clears it"
        yield Finding(f"wal/{SPARE_NAME}", Verdict.NOTE, text)


def _log(source: Source) -> Iterator[Finding]:
    """Check the bytes of the whole log: checksums, sequence, chain, seals."""
    frames = 0
    try:
        for _ in source.frames():
            frames += 1
    except CorruptLog as error:
        yield Finding("wal", Verdict.DAMAGED, str(error))
        return
    scan = source.scan
    assert scan is not None
    if scan.torn is not None:
        yield _torn(source, scan.torn)
    yield Finding("wal", Verdict.GOOD, f"{frames} frames with records, up to {scan.position.seq}")


def _torn(source: Source, torn: TornTail) -> Finding:
    part = f"wal/{torn.file.name}"
    where = f"{torn.length} bytes at offset {torn.offset}"
    if _was_stopped_cleanly(source):
        text = f"{where} are no frame, but the store was stopped cleanly"
        return Finding(part, Verdict.DAMAGED, text)
    text = f"{where} are a write that never finished; a start cuts them off and keeps them"
    return Finding(part, Verdict.NOTE, text)


def _was_stopped_cleanly(source: Source) -> bool:
    return not source.live and source.evidence.mark == CLEAN_STOP


def _meaning(
    source: Source, bases: list[Base], known: IndexState | None, scratch: Path
) -> Iterator[Finding]:
    """Replay the log from the oldest base; compare it with each snapshot and the index."""
    oldest, *newer = reversed(bases)
    try:
        index = source.rebuild_from(oldest, scratch / "replay", lambda _: 0)
    except Corrupt as error:
        yield Finding("replay", Verdict.DAMAGED, str(error))
        return
    try:
        stops: list[tuple[int, Base | IndexState]] = [
            (base.header.seq, base) for base in newer if base.header
        ]
        if known:
            stops.append((known.applied.position.seq, known))
        for seq, stop in sorted(stops, key=lambda pair: pair[0]):
            _replay_to(source, index, seq)
            yield _compare(state(index), stop, scratch)
        _replay_to(source, index, None)
        applied, held = state(index)
        text = f"the log gives index {applied.index} with digest {held}"
        yield Finding("replay", Verdict.GOOD, text)
    except CorruptLog as error:
        yield Finding("replay", Verdict.DAMAGED, str(error))
    finally:
        index.env.close()


def _index(source: Source) -> tuple[IndexState | None, list[Finding]]:
    """Read the index, unless a server is writing to it."""
    if source.live:
        return None, [Finding("index", Verdict.NOTE, "a server is using it: not looked at")]
    if source.evidence.mark is None:
        return None, [Finding("index", Verdict.NOTE, "nothing vouches for it: a start rebuilds it")]
    if crash := crash_of(source.index):
        text = f"it has ended a server ({crash}): a start rebuilds it"
        return None, [Finding("index", Verdict.NOTE, text)]
    try:
        known = index_state(source.index)
    except CorruptIndex as error:
        text = f"{error}. {_REBUILT}"
        return None, [Finding("index", Verdict.DAMAGED, text)]
    problem = _objection(source, known)
    if problem is None:
        return known, []
    text = f"{problem}. Nothing is lost: a start rebuilds it"
    return None, [Finding("index", Verdict.DAMAGED, text)]


def _objection(source: Source, known: IndexState) -> str | None:
    """Return why a start would not reuse a marked index; damage of the log is no reason."""
    try:
        problem = objection(
            source.evidence,
            known.applied,
            known.store_uuid,
            own_uuid=source.identity.store_uuid,
            segments=source.segments(),
        )
        return problem or left_behind(known.applied, source.frames(place(known.applied)))
    except CorruptLog:
        return None  # reported for the log


def _compare(replayed: tuple[Applied, str], stop: Base | IndexState, scratch: Path) -> Finding:
    """Compare the replayed state with that of a snapshot or the index at the same position."""
    if isinstance(stop, IndexState):
        part, held = "index", stop.digest
        same_place = without_place(stop.applied) == without_place(replayed[0])
        advice = _REBUILT
    else:
        assert stop.path is not None
        part = f"snap/{stop.path.name}"
        loaded = Index.create(scratch / "snapshot")
        try:
            load(loaded, stop.path)
            applied, held = state(loaded)
        finally:
            loaded.env.close()
        same_place = without_place(applied) == without_place(replayed[0])
        advice = "The log and this snapshot contradict each other"
    if same_place and held == replayed[1]:
        return Finding(part, Verdict.GOOD, "agrees with the log")
    text = f"holds digest {held}, but the log gives {replayed[1]}. {advice}"
    return Finding(part, Verdict.DAMAGED, text)


def _replay_to(source: Source, index: Index, seq: int | None) -> None:
    """Apply the log to an index up to a frame, or to its end."""
    frames = source.frames(place(index.applied()))
    replay(index, frames if seq is None else _up_to(frames, seq))


def _up_to(frames: Iterator[Frame], seq: int) -> Iterator[Frame]:
    for frame in frames:
        if frame.seq > seq:
            return
        yield frame


def _start(source: Source, bases: list[Base], known: IndexState | None) -> str:
    """Do the reading of a start; return the base that it would start from.

    Raises:
        CorruptLog: a start would be refused.
    """
    source.segments()
    if known is not None:
        start = place(known.applied)
        _read_on(source, start, known.applied.seq + 1, known.applied.chain)
        return "the index"
    if not bases:
        raise CorruptLog(
            f"{source.wal}: the log does not begin with frame 1, and there is no good snapshot"
        )
    path, header = bases[0]
    if path is None or header is None:
        _read_on(source, None, 1, CHAIN_START)
        return "the log"
    # A snapshot's header counts frames; the first batch after it has the number of batches.
    _read_on(source, header.position, None, header.chain)
    return f"snap/{path.name}"


def _read_on(source: Source, start: Position | None, seq: int | None, chain: bytes) -> None:
    """Read the log after a position, where batch `seq` continues `chain`, to its end."""
    for frame in source.frames(start):
        if seq is None:
            seq = batch_in(frame).seq
        decode(frame, seq - 1, chain)
        seq, chain = seq + 1, next_chain(chain, frame.payload)
    torn = source.scan.torn if source.scan else None
    if torn and _was_stopped_cleanly(source):
        raise CorruptLog.at(torn.file, torn.offset, f"{torn.length} bytes are no frame")

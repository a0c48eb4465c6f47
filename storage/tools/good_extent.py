"""The good part of a log: how far it can be read, whatever is damaged behind it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from kvd.storage.errors import CorruptLog, OutOfReach
from kvd.storage.format.frame import START, Position
from kvd.storage.format.names import SEGMENT_NAME
from kvd.storage.format.records import Change
from kvd.storage.replay import batch_in
from kvd.storage.tools.source import Base, Source
from kvd.storage.wal.segments import Frame, Scan, Segment


class Extent(NamedTuple):
    """The good part of a log: its last index, its end, and what follows it.

    `beyond` is the range of indexes of the next batch, None if there is none; `problem` says why
    the log cannot be read further, None if it ends there.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which is not used
    end: Position
    beyond: tuple[int, int] | None
    problem: str | None


def good_extent(source: Source, last_index: int | None = None) -> Extent:
    """Return the good part of the log, at most up to an index.

    Args:
        source: the data directory.
        last_index: stop after the last batch that ends with this index.

    Raises:
        CorruptLog: there is neither a good snapshot nor the beginning of the log.
        OutOfReach: the oldest state that can be rebuilt is later than `last_index`.
    """
    bases = source.bases()
    for base in bases:
        begins_at = base.header.index if base.header else 1
        if last_index is None or begins_at <= last_index:
            extent = _follow(source, base, last_index)
            if extent is not None:
                return extent
    if not bases or bases[-1].header is None or last_index is None:
        raise CorruptLog(f"{source.path}: the log goes on from no good snapshot")
    raise OutOfReach(
        f"{source.path}: the oldest state that can be rebuilt is that of index "
        f"{bases[-1].header.index}"
    )


def _follow(source: Source, base: Base, last_index: int | None) -> Extent | None:
    """Read the log after a base until damage, its end, or a batch after an index.

    Returns:
        None if the log does not continue this base.
    """
    index = base.header.index if base.header else 1
    end = base.position or START
    segments, problem = _readable(source, end.segment)
    scan = Scan(source.wal, segments, base.position or (None if segments else START))
    try:
        for frame in scan.frames(0):
            indexes = _indexes(frame)
            if indexes and last_index is not None and indexes[-1] > last_index:
                return Extent(index, end, (indexes[0], indexes[-1]), None)
            index = indexes[-1] if indexes else index
            end = frame.end
        if scan.torn is not None and problem is None:
            problem = f"{scan.torn.length} bytes behind it are no frame"
    except CorruptLog as error:
        if not scan.connected:
            return None
        problem = problem or str(error)
    return Extent(index, end, None, problem)


def _indexes(frame: Frame) -> list[int]:
    return [record.index for record in batch_in(frame).records if isinstance(record, Change)]


def _readable(source: Source, first: int) -> tuple[list[Segment], str | None]:
    """Return the segments from a number on with good names and headers, and what ends them."""
    segments: list[Segment] = []
    for path, number, first_seq in _named(source):
        if number < first:
            continue
        expected = first + len(segments)
        if number != expected:
            return segments, f"segment {expected} is missing"
        try:
            segment = Segment(path, number, first_seq)
            with segment.open() as reader:
                found = reader.header.store_uuid
        except CorruptLog as error:
            return segments, str(error)
        if found != source.identity.store_uuid:
            return segments, f"wal/{path.name} belongs to another store"
        segments.append(segment)
    return segments, None


def _named(source: Source) -> list[tuple[Path, int, int]]:
    found = [(path, SEGMENT_NAME.fullmatch(path.name)) for path in sorted(source.wal.glob("*.wal"))]
    return [(path, int(match[1], 16), int(match[2], 16)) for path, match in found if match]

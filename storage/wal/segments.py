"""The files of a log, and what reading them proves.

    wal/%016x-%016x.wal    segment number - seq of its first frame; numbers have no gaps

Every segment but the last ends with a SEAL frame and right there. The rules of `Scan` follow from
one rule of the writer: frame N+1 is never written before frame N is durable. So an intact frame
after a bad one proves that acknowledged writes are damaged, and a bad one without any successor was
never acknowledged:

    zeros to the end of the last segment                           the end
    bad bytes there, and no intact frame of a higher seq behind    a torn tail: may be cut
    anything else: a bad frame before an intact one, a segment     CorruptLog
    without seal, a gap, a wrong chain, an end before `must_reach`

A replica does not wait for its disk: another place has the frames that it has not synced. Each of
those has flag NOSYNC and says how many before it were not durable either, so that it proves no more
than it can: bad bytes are a torn tail, with all that follows, if no intact frame says that they
were durable. What was synced, and all that a store without replicas has written, is judged as
above.

The one case that these rules cannot tell apart is damage to the very last frame. A heartbeat, an
empty frame that follows when nothing was written for a second, gives that one a successor, too.

A read error is an `OSError` and never the end of the log.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from kvd.storage import disk
from kvd.storage.errors import CorruptLog
from kvd.storage.failpoints import Faults
from kvd.storage.format import frame
from kvd.storage.format.frame import (
    PAGE_SIZE,
    START,
    WAL_MAGIC,
    FrameState,
    Parsed,
    Position,
    SegmentHeader,
)
from kvd.storage.format.names import SEGMENT_NAME
from kvd.storage.frame_reader import FrameReader

_EMPTY = frame.SEAL | frame.HEARTBEAT
_KNOWN_FLAGS = frame.NOSYNC | frame.SNAPMARK | _EMPTY
# A named tuple's own constructor takes three times as long: too long for each frame of a log.
_new = tuple.__new__
ADVICE = "Nothing was changed"


class Frame(NamedTuple):
    """One intact frame of the log; `end` is its end."""

    seq: int
    first_index: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which is not needed
    flags: int
    payload: bytes
    end: Position


class TornTail(NamedTuple):
    """The remains, at the end of the log, of a write that never finished.

    `length` goes from `offset` to the last byte that is not zero.
    """

    file: Path
    offset: int
    length: int
    last_seq: int


class Segment(NamedTuple):
    """One file of the log, by what its name says."""

    path: Path
    number: int
    first_seq: int

    def open(self) -> FrameReader:
        """Open it for reading and check its header against its name.

        Raises:
            CorruptLog: the header is not good, or is another segment's.
        """
        try:
            reader = FrameReader(self.path, magic=WAL_MAGIC)
        except ValueError as error:
            raise CorruptLog.at(self.path, 0, f"{error}. {ADVICE}") from error
        header = reader.header
        if (header.number, header.first_seq) != self[1:]:
            reader.close()
            raise CorruptLog.at(
                self.path,
                0,
                f"the name says segment {self.number} from frame {self.first_seq} on, "
                f"the header {header.number} from {header.first_seq}. {ADVICE}",
            )
        return reader


def list_segments(directory: Path, store_uuid: bytes) -> list[Segment]:
    """Return the segments of a log in order, with their names, numbers and headers checked.

    Raises:
        CorruptLog: a segment is missing, misnamed, damaged or of another store.
    """
    segments: list[Segment] = []
    for path in sorted(directory.glob("*.wal")):
        match = SEGMENT_NAME.fullmatch(path.name)
        if match is None:
            raise CorruptLog.at(path, 0, f"this is no name of a segment. {ADVICE}")
        segment = Segment(path, int(match[1], 16), int(match[2], 16))
        if segments and segment.number != segments[-1].number + 1:
            raise CorruptLog.at(
                path, 0, f"segment {segments[-1].number + 1} before it is missing. {ADVICE}"
            )
        with segment.open() as reader:
            found = reader.header.store_uuid
        if found != store_uuid:
            raise CorruptLog.at(
                path, 0, f"belongs to store {found.hex()}, not {store_uuid.hex()}. {ADVICE}"
            )
        segments.append(segment)
    return segments


class Scan:
    """One pass through the log from a position on. It writes nothing.

    Attributes:
        tail: the end of the last intact frame met, seals and heartbeats included.
        position: the same without those at the end: what a snapshot may name as its end.
        sealed: the last segment has its seal, so the next frame goes into a new one.
        torn: the torn tail, once `frames` is exhausted.
        connected: the start was found in the log, or a whole log's beginning was.
    """

    def __init__(
        self, directory: Path, segments: Sequence[Segment], start: Position | None
    ) -> None:
        self._directory = directory
        self._segments = list(segments)
        self._start = START if start is not None and start.seq == 0 else start
        self.tail = self.position = self._start or START
        self.sealed = False
        self.torn: TornTail | None = None
        self.connected = False

    def frames(self, must_reach: int, witness: str = "") -> Iterator[Frame]:
        """Yield every frame but seals and heartbeats; see `Wal.scan`."""
        segments = self._segments_from_start()
        for segment in segments:
            with segment.open() as reader:
                self._enter(segment, reader)
                yield from self._read(segment, reader, is_last=segment is segments[-1])
        if self.tail.seq < must_reach:
            file = segments[-1].path if segments else self._directory
            raise CorruptLog.at(
                file,
                self.tail.offset,
                f"the log ends with frame {self.tail.seq}, but frame {must_reach} "
                f"was acknowledged{f' ({witness} names it)' if witness else ''}. {ADVICE}",
            )

    def _segments_from_start(self) -> list[Segment]:
        start = self._start
        if start is None or (start.seq == 0 and not self._segments):
            return self._segments
        segments = [segment for segment in self._segments if segment.number >= start.segment]
        if not segments or segments[0].number != start.segment:
            raise CorruptLog.at(
                self._directory,
                0,
                f"segment {start.segment}, which goes on after frame {start.seq}, "
                f"is missing. {ADVICE}",
            )
        return segments

    def _enter(self, segment: Segment, reader: FrameReader) -> None:
        """Check that a segment goes on where the one before it, or the start, ends."""
        header = reader.header
        start, self._start = self._start, None
        if start is not None:
            self._check_start(segment, reader, start)
            self.connected = True
            return
        if segment is self._segments[0]:
            self.tail = Position(segment.number, PAGE_SIZE, header.first_seq - 1, header.chain)
        elif (header.first_seq, header.chain) != (self.tail.seq + 1, self.tail.crc):
            raise CorruptLog.at(
                segment.path,
                0,
                f"starts with frame {header.first_seq} after a frame of checksum "
                f"{header.chain:08x}, expected frame {self.tail.seq + 1} "
                f"after {self.tail.crc:08x}. {ADVICE}",
            )
        self.tail = self.position = self.tail._replace(segment=segment.number, offset=PAGE_SIZE)
        self.sealed = False
        self.connected = True

    def _check_start(self, segment: Segment, reader: FrameReader, start: Position) -> None:
        """Check that frame `start.seq` ends at the start, without reading all before it."""
        header = reader.header
        fits = start.offset % 8 == 0 and PAGE_SIZE <= start.offset <= reader.size
        if fits and start.offset == PAGE_SIZE:
            fits = (header.first_seq, header.chain) == (start.seq + 1, start.crc)
        elif fits:
            reader.skip_to(start.offset)
            fits = start.seq >= header.first_seq and frame.ends_with_crc(
                reader.before(12), start.crc
            )
        if not fits:
            raise CorruptLog.at(
                segment.path,
                start.offset,
                f"frame {start.seq} with checksum {start.crc:08x}, which was acknowledged, "
                f"does not end here. {ADVICE}",
            )

    def _read(self, segment: Segment, reader: FrameReader, *, is_last: bool) -> Iterator[Frame]:
        last_seq, last_crc = self.tail.seq, self.tail.crc
        number, intact = segment.number, FrameState.INTACT
        while (parsed := reader.next()).state is intact:
            _, size, seq, first_index, count, flags, chain, crc, payload, _ = parsed
            if flags or seq != last_seq + 1 or chain != last_crc:
                _check_place(segment, reader.offset - size, parsed, last_seq, last_crc)
            last_seq, last_crc = seq, crc
            self.tail = end = _new(Position, (number, reader.offset, seq, crc))
            if flags & frame.SEAL:
                self.sealed = True
                break
            if flags & frame.HEARTBEAT:
                continue
            self.position = end
            yield _new(Frame, (seq, first_index, count, flags, payload, end))
        if is_last:
            self._judge_tail(segment, reader, parsed)
        elif not self.sealed:
            raise CorruptLog.at(
                segment.path,
                reader.offset,
                f"{_describe(parsed, last_seq + 1)}, but segment {segment.number + 1} "
                f"follows: acknowledged writes are damaged. {ADVICE}",
            )
        elif reader.offset != reader.size:
            raise CorruptLog.at(
                segment.path,
                reader.offset,
                f"the segment is sealed here, but has {reader.size} bytes. {ADVICE}",
            )

    def _judge_tail(self, segment: Segment, reader: FrameReader, parsed: Parsed) -> None:
        """Tell the end of the log from a torn tail, and that from damage."""
        rest = reader.rest()
        if not rest:
            return
        last_seq = self.tail.seq
        at = frame.find_proof(rest, 0, reader.header.salt, last_seq)
        if at is not None:
            intact_seq = frame.parse(rest, at, reader.header.salt).seq
            raise CorruptLog.at(
                segment.path,
                reader.offset,
                f"{_describe(parsed, last_seq + 1)}, but frame {intact_seq} at "
                f"{reader.offset + at} is intact: acknowledged writes are damaged. "
                f"Last good: frame {last_seq}. {ADVICE}",
            )
        self.torn = TornTail(segment.path, reader.offset, len(rest.rstrip(b"\0")), last_seq)


def _check_place(segment: Segment, offset: int, parsed: Parsed, seq: int, crc: int) -> None:
    """Check that an intact frame is the one that comes after frame `seq`."""
    if (parsed.seq, parsed.chain) != (seq + 1, crc):
        raise CorruptLog.at(
            segment.path,
            offset,
            f"frame {parsed.seq} after a frame of checksum {parsed.chain:08x} stands here, "
            f"expected frame {seq + 1} after {crc:08x}: frames are lost or moved. {ADVICE}",
        )
    is_odd = parsed.flags & _EMPTY and (parsed.payload or parsed.records)
    if parsed.flags & ~_KNOWN_FLAGS or is_odd:
        raise CorruptLog.at(
            segment.path,
            offset,
            f"frame {parsed.seq} has flags {parsed.flags:#x}, {parsed.records} records and "
            f"{len(parsed.payload)} bytes, which this version does not know. {ADVICE}",
        )


def _describe(parsed: Parsed, seq: int) -> str:
    if parsed.state is FrameState.BAD:
        return f"frame {seq} {parsed.reason}"
    if parsed.state is FrameState.END:
        return f"frame {seq} is missing"
    return f"something follows the seal, frame {seq - 1}"


def next_header(store_uuid: bytes, number: int, tail: Position, first_index: int) -> SegmentHeader:
    """Return the header of the segment that follows a log's last frame."""
    return SegmentHeader(
        store_uuid=store_uuid,
        number=number,
        first_seq=tail.seq + 1,
        first_index=first_index,
        chain=tail.crc,
        salt=secrets.randbits(64),
        created_ns=disk.wall_clock_ns(),
    )


def purge(
    directory: Path,
    segments: list[Segment],
    below_seq: int,
    require_place: Callable[[], None],
    faults: Faults,
) -> int:
    """Delete the oldest segments, from the list too, whose frames have lower sequence numbers.

    Each deletion is durable before the next one, so that no crash leaves a gap. `require_place`
    raises if the directory is no longer the log's. Returns how many were deleted.
    """
    deleted = 0
    while len(segments) > 1 and segments[1].first_seq <= below_seq:
        faults.reach("purgeBeforeUnlink")
        require_place()
        disk.remove(segments[0].path)
        faults.reach("purgeAfterUnlink")
        disk.sync_directory(directory)
        del segments[0]
        deleted += 1
    return deleted

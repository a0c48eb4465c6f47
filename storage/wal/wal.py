"""The log: the one truth of the store. Everything else can be built again from it and a snapshot.

    wal/%016x-%016x.wal    segments (storage/wal/segments.py); only the last one is written to
    wal/next.tmp           the next segment's space (storage/wal/spare_segment.py)
    quarantine/            every byte that recovery cuts off (storage/wal/quarantine.py)

Invariants:

- One append is one frame, one write and one fdatasync, and it is durable when it returns. Frame N+1
  is never written before frame N is durable, but for those of storage/wal/unsynced.py.
- Frames are contiguous: the sequence grows by one each, and each holds the checksum of the one
  before it.
- A frame that has no successor for a second gets one, an empty one (`heartbeat`), so that damage to
  it cannot be taken for a write that never finished.
- A segment always keeps room for its seal. A new one joins the log (its name becomes durable) only
  after the one before it is sealed, cut to its length and synced.
- What a refused or failed write leaves is said in storage/wal/segment_writer.py.
"""

import errno
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from kvd.storage.directory.locks import require_at
from kvd.storage.errors import LogFull
from kvd.storage.format import frame
from kvd.storage.format.frame import PAGE_SIZE, SEAL_SIZE, START, WAL_MAGIC, Position
from kvd.storage.format.names import segment_name
from kvd.storage.wal.segment_writer import SegmentWriter
from kvd.storage.wal.segments import (
    Frame,
    Scan,
    Segment,
    TornTail,
    list_segments,
    next_header,
    purge,
)
from kvd.storage.wal.spare_segment import Spare, refusals_as_log_full

SEGMENT_BYTES_DEFAULT = 64 * 1024 * 1024
SEGMENT_BYTES_MIN = 2 * PAGE_SIZE
_PREPARE_AGAIN_S = 0.5


class Wal:
    """The log of one store: `open`, `scan` to the end, `begin`, then `append`.

    `append`, `prepare_next`, `purge` and `close` belong to one thread at a time. `position`,
    `log_bytes` and `room` may be read by any other meanwhile.

    Attributes:
        writer: Appends to the newest segment; `begin_append` is its.
        max_payload: The longest payload that a frame of this log takes, in bytes.
        refusal: Why the next segment could not be prepared, or None: then `room` is all there is.
    """

    def __init__(  # noqa: PLR0917 -- as `open` names them
        self,
        directory: Path,
        quarantine: Path,
        segments: list[Segment],
        store_uuid: bytes,
        segment_bytes_max: int,
        on_first: Callable[[], object] | None,
        writer: SegmentWriter,
    ) -> None:
        self._directory, self._directory_status = directory, directory.stat()
        self._quarantine = quarantine
        self._segments = segments
        self._store_uuid = store_uuid
        room = (segment_bytes_max - PAGE_SIZE - SEAL_SIZE) & ~7
        self.max_payload = min(room - frame.essential_size(0), frame.MAX_PAYLOAD)
        self._scan: Scan | None = None
        self.writer, self._faults = writer, writer.faults
        # To be called before the first frame of all is written.
        self._on_first = None if segments else on_first
        self._spare = Spare(directory, segment_bytes_max, writer.faults)
        self.refusal: LogFull | None = None
        self._prepare_not_before = 0.0

    @classmethod
    def open(
        cls,
        directory: Path,
        quarantine: Path,
        *,
        store_uuid: bytes,
        segment_bytes_max: int = SEGMENT_BYTES_DEFAULT,
        on_first: Callable[[], object] | None = None,
        writer: SegmentWriter | None = None,
    ) -> "Wal":
        """Look at the files of a log and check their names and headers. Writes nothing.

        Args:
            directory: where the segments are; without any it is an empty log.
            quarantine: where `begin` keeps what it cuts off.
            store_uuid: 16 bytes; segments of another store are refused.
            segment_bytes_max: the size of new segments.
            on_first: called once the name of the first segment of all is durable, and before the
                first frame is written. What it raises is raised by `append`.
            writer: what appends to the newest segment; one that tells nothing and meets no faults
                without.

        Raises:
            CorruptLog: a segment is missing, damaged or of another store.
        """
        if segment_bytes_max < SEGMENT_BYTES_MIN:
            raise ValueError(f"a segment has at least {SEGMENT_BYTES_MIN} bytes")
        segments = list_segments(directory, store_uuid)
        writer = writer or SegmentWriter()
        return cls(directory, quarantine, segments, store_uuid, segment_bytes_max, on_first, writer)

    @property
    def segments(self) -> Sequence[Segment]:
        """The segments of the log, oldest first."""
        return self._segments

    @property
    def first_seq(self) -> int:
        """The sequence number of the first frame that the log holds, or will hold."""
        return self._segments[0].first_seq if self._segments else 1

    @property
    def room(self) -> int:
        """The longest payload that fits without asking the file system for more space."""
        there = 0 if self._spare.fd is None else self.max_payload
        return max(self.writer.room - frame.essential_size(0), there, 0)

    @property
    def position(self) -> Position:
        """The end of the last frame with a payload, from which a later `scan` can go on."""
        return self.writer.position

    @property
    def log_bytes(self) -> int:
        """The bytes of frames that have been appended since `open`; it only grows."""
        return self.writer.log_bytes

    @property
    def torn(self) -> TornTail | None:
        """The torn tail that the last `scan` found, or None."""
        return self._scan.torn if self._scan else None

    def scan(
        self, start: Position | None = None, *, must_reach: int = 0, witness: str = ""
    ) -> Iterator[Frame]:
        """Yield every intact frame from `start`, or from the oldest segment on; writes nothing.

        Seals and heartbeats are checked and left out. Memory is bounded by the largest frame. Each
        file is synced, and its cache dropped, before it is read: not while it is appended to.

        Args:
            start: a `position` of this log, or None.
            must_reach: the sequence number of a frame that is known to have been acknowledged.
            witness: what names that frame, for the message.

        Raises:
            CorruptLog: by the rules of storage/wal/segments.py, as far as the scan has come.
            OSError: a file cannot be read, which says nothing about what it holds.
        """
        scan = Scan(self._directory, self._segments, start)
        self._scan = None
        yield from scan.frames(must_reach, witness)
        self._scan = scan
        if not self.writer.is_writable:
            self.writer.tail, self.writer.position = scan.tail, scan.position

    def begin(self) -> None:
        """Make the log writable, after a `scan` that came to its end.

        Cuts off a torn tail: copies it to the quarantine, overwrites it with zeros, syncs, and
        logs one warning. The first segment is made by the first append.

        Raises:
            OSError: the disk failed; the state is that of a crash.
        """
        scan = self._scan
        if scan is None or self.writer.is_writable:
            raise RuntimeError("begin() follows a complete scan, once")
        self._spare.adopt()
        if self._segments:
            self._open_last(scan)
        self.writer.is_writable = True

    def append(
        self,
        payload: bytes,
        *,
        first_index: int,
        count: int,
        flags: int = 0,
        oversize: bool = False,
    ) -> Position:
        """Append one frame; it is durable on return.

        Args:
            payload: what a later `scan` yields.
            first_index: the first etcd index in it, or the next one where it has none.
            count: the number of records in it.
            flags: of storage/format/frame.py, but no SEAL.
            oversize: the payload may be longer than `max_payload`; it then gets a segment as large
                as it needs. For what must be logged though it was allowed under larger segments.

        Returns:
            The end of the frame.

        Raises:
            ValueError: the payload is longer than allowed, or a flag is the log's own.
            LogFull: there is no room. The frame is definitely not written; later ones may be.
            OSError: the disk failed and the state is unknown. Later appends are refused.
        """
        payload_max = frame.MAX_PAYLOAD if oversize else self.max_payload
        if len(payload) > payload_max:
            raise ValueError(f"a frame takes {payload_max} bytes, got {len(payload)}")
        if flags & (frame.SEAL | frame.HEARTBEAT):
            raise ValueError("the log writes its seals and heartbeats itself")
        self._append(payload, first_index, count, flags)
        self.writer.position = self.writer.tail
        return self.writer.position

    def heartbeat(self, first_index: int, *, probe: bool = False) -> None:
        """Give the last frame a successor, if it has none, by an empty frame; durable on return.

        Args:
            first_index: the next etcd index to be given.
            probe: prepare the next segment, and write the frame in any case: to find out whether
                the log takes writes again.

        Raises:
            LogFull, OSError: as for `append`.
        """
        if probe and self.refusal is not None:
            self._try_to_prepare()
            if self.refusal is not None:
                raise self.refusal
        writer = self.writer
        if probe or (writer.tail == writer.position and writer.has_segment):
            self._append(b"", first_index, 0, frame.HEARTBEAT)

    def prepare_next(self) -> None:
        """Reserve the next segment ahead of time, once the current one is more than half full.

        Failing is no error but is remembered in `refusal`: `append` will try again, and say so; so
        will this, in a while.
        """
        if self.writer.is_past_middle and time.monotonic() >= self._prepare_not_before:
            self._try_to_prepare()

    def _try_to_prepare(self) -> None:
        if self.writer.is_writable:
            try:
                self._require_place()
                self._spare.reserve()
            except LogFull as error:
                self.refusal = error
                self._prepare_not_before = time.monotonic() + _PREPARE_AGAIN_S
            except OSError:
                return
            else:
                self.refusal = None

    def purge(self, below_seq: int) -> int:
        """Delete the oldest segments whose frames are all older; return how many (`purge`)."""
        return purge(self._directory, self._segments, below_seq, self._require_place, self._faults)

    def close(self) -> None:
        """Leave the files as they are, without a trace of refused writes.

        Raises:
            OSError: they could not be left so; the next start may find a torn tail.
        """
        try:
            self.writer.close()
        finally:
            self._spare.close()

    def abandon(self) -> None:
        """Close the files as they are, as the end of the process would."""
        self.writer.abandon()
        self._spare.close()

    def extend(self, length: int, first_index: int, write: Callable[[], object]) -> None:
        """Call what writes a payload so long to the newest segment, or to a new one if need be.

        Raises:
            LogFull, OSError: as for `append`.
        """
        writer = self.writer
        if not writer.is_writable:
            raise OSError(errno.EIO, "the log is closed to writing")
        needed = frame.frame_size(length) + SEAL_SIZE
        writer.stop_appending()
        try:
            if frame.frame_size(length) > writer.room:
                self._cut(first_index, PAGE_SIZE + needed)
            if self._on_first is not None:
                # It is made known that the log has begun, before anything in it is acknowledged.
                with refusals_as_log_full(self._segments[-1].path):
                    self._on_first()
                self._on_first = None
            write()
        except OSError:
            writer.give_up()
            raise
        writer.begin_appending()

    # The rest runs in `begin` and `extend` only.

    def _append(self, payload: bytes, first_index: int, count: int, flags: int) -> None:
        write = partial(self.writer.append, payload, first_index, count, flags)
        self.extend(len(payload), first_index, write)

    def _cut(self, first_index: int, needed: int) -> None:
        """Seal the current segment, if there is one, and start the next of `needed` bytes or more.

        Space for the next one comes first: a full disk is met before anything is written. Where it
        is met later, the next append goes on from there.
        """
        try:
            self._require_place()
            self._spare.reserve(needed)
        except LogFull as error:
            self.refusal = error
            raise
        self.refusal = None
        if self.writer.has_segment:
            self.writer.append(b"", first_index, 0, frame.SEAL)
            self._faults.reach("segmentAfterSeal")
            self.writer.trim()
            self._faults.reach("segmentAfterTrim")
        self._start_segment(first_index)
        self._faults.reach("segmentAfterInstall")

    def _require_place(self) -> None:
        """Raise DirectoryLost unless the directory is this log's: before its names are changed."""
        require_at(self._directory, self._directory_status)

    def _start_segment(self, first_index: int) -> None:
        """Turn the prepared file into the next segment of the log; durable on return."""
        number = self._segments[-1].number + 1 if self._segments else START.segment
        header = next_header(self._store_uuid, number, self.writer.tail, first_index)
        path = self._directory / segment_name(header.number, header.first_seq)
        page = frame.encode_segment_header(header, magic=WAL_MAGIC)
        fd = self._spare.install(path, page)
        self.writer.start(fd, path, header, self._spare.reserved)
        self._segments.append(Segment(path, header.number, header.first_seq))

    def _open_last(self, scan: Scan) -> None:
        """Open the last segment to write to it, without its torn tail."""
        last = self._segments[-1]
        with last.open() as reader:
            salt, size = reader.header.salt, reader.size
        self.writer.reopen(last.path, salt, scan.torn, self._quarantine)
        if scan.sealed:
            self.writer.trim()
        else:
            self.writer.reserve(size, self._spare.size)

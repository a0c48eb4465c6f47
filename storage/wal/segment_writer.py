"""The end of the log: frames are appended to the newest segment, and synced.

Invariants:

- One append is one frame, one write and one fdatasync. Frame N+1 is never written before frame N
  is durable. What `unsynced.py` writes is the exception, and says so in its frames.
- Behind the last frame there are zeros only, written or reserved.
- After a refused write (`LogFull`) the log is as it was before. After any other error of a write or
  a sync nothing is known, so every later append is refused.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kvd.storage import disk
from kvd.storage.directory.locks import require_at
from kvd.storage.failpoints import NO_FAULTS, Faults
from kvd.storage.format import frame
from kvd.storage.format.frame import PAGE_SIZE, SEAL_SIZE, START, Position, SegmentHeader, seal
from kvd.storage.wal.quarantine import cut_off
from kvd.storage.wal.segments import TornTail
from kvd.storage.wal.slow_syncs import SLOW_SYNC_S, SlowSyncs
from kvd.storage.wal.spare_segment import log_full
from kvd.storage.wal.zeros_ahead import with_zeros

_new = tuple.__new__

_NO_FILE = -1
BEGUN_BYTES_MAX = 256 * 1024
"""A longer payload is not for `begin_append`: copying it would hold up the loop."""


class SegmentWriter:
    """Writes to the newest segment of a log; `Wal` decides which one that is.

    Everything belongs to one thread at a time. `position` and `log_bytes` may be read by any other.

    Attributes:
        faults: Those that are to be made in the log.
        is_writable: Whether appends are taken: not before `Wal.begin`, nor after an error.
        tail: The end of the last frame, seals and heartbeats included.
        position: The end of the last frame but those: from there a later scan can go on.
        log_bytes: How many bytes of frames have been appended since the start; it only grows.
        slow_syncs: Those that took long.
        sync_unsynced: Called before a frame is appended, where frames may not be durable yet.
    """

    def __init__(
        self, faults: Faults = NO_FAULTS, on_sync: Callable[[float], object] | None = None
    ) -> None:
        """Make a writer without a segment yet.

        Args:
            faults: those that are to be made in the log.
            on_sync: called with the seconds that each sync of a frame took.
        """
        self.faults, self._armed = faults, faults.armed
        self.is_writable = False
        # No file before the first append, and while the last segment is sealed and there is no
        # room for the next one.
        self._fd = _NO_FILE
        self._path = Path()
        self._salt = 0
        self._capacity = 0
        # The name under which the next start finds the segment, and its device and inode.
        self._name = ""
        self._place = (0, 0)
        # The end of what refused writes may have left behind the tail.
        self._dirty_end = 0
        # `begin_append` may write up to here: 0 before the first append, and after an error.
        self._ready_end = 0
        # Up to here the file has been written, and not only reserved.
        self._blank_end = 0
        # Where the log ends once the frame that was written last is durable.
        self.tail = self._begun = self.position = START
        self.log_bytes = 0
        self._on_sync = on_sync or _ignore
        self.slow_syncs = SlowSyncs()
        self.sync_unsynced: Callable[[], None] | None = None

    @property
    def has_segment(self) -> bool:
        """Whether there is a segment to write to."""
        return self._fd != _NO_FILE

    @property
    def room(self) -> int:
        """The bytes that the segment still takes in front of its seal."""
        return self._capacity - self.tail.offset - SEAL_SIZE if self.has_segment else 0

    @property
    def is_past_middle(self) -> bool:
        """Whether more than half of the segment is full."""
        return self.tail.offset * 2 > self._capacity

    def start(self, fd: int, path: Path, header: SegmentHeader, capacity: int) -> None:
        """Go on with a new segment that has only its header yet."""
        self._open(fd, path, header.salt)
        self._capacity, self._dirty_end = capacity, 0
        self.tail = self.tail._replace(segment=header.number, offset=PAGE_SIZE)

    def reopen(self, path: Path, salt: int, torn: TornTail | None, quarantine: Path) -> None:
        """Go on with the newest segment of a log that was scanned, without its torn tail."""
        self._open(disk.open_to_write(path), path, salt)
        if torn is not None:
            self.faults.reach("tailBeforeCut")
            cut_off(self._fd, torn, quarantine)
            self.faults.reach("tailAfterCut")

    def reserve(self, size: int, capacity: int) -> None:
        """Have such a segment, which has a size, take as many bytes as a new one."""
        self._capacity = max(size, capacity)
        if size < self._capacity:
            with suppress(OSError):  # an append will meet the full disk, and say so
                disk.preallocate(self._fd, self._capacity)

    def _open(self, fd: int, path: Path, salt: int) -> None:
        self._fd, self._path, self._salt = fd, path, salt
        self._name, self._place = str(path), os.fstat(fd)[1:3]
        self._blank_end = 0

    def begin_append(self, payload: bytes, first_index: int, count: int) -> int | None:
        """Write one short frame as `append` does, but leave the sync to the caller.

        Nothing else may be done to the log before `end_append`. A frame that does not fit the
        segment, or passes its middle, is not taken, and none is while a failpoint is armed:
        `append` does the rest, on a thread that prepares the next segment behind it.

        Returns:
            The file whose data is to be synced; None where nothing was done.

        Raises:
            LogFull, OSError: as for `append`.
        """
        segment, offset, seq, chain = self.tail
        data, crc = seal(payload, seq + 1, first_index, count, chain, self._salt)
        end = offset + len(data)
        if end > self._ready_end or self._armed:
            return None
        if end > self._blank_end:
            data, self._blank_end = with_zeros(data, end, self._capacity)
        # As `_put` does, without what is rare.
        try:
            if os.pwrite(self._fd, data, offset) < len(data):
                disk.write_at(self._fd, data, offset)
        except OSError as error:
            try:
                self._refused(error, end, offset + frame.essential_size(len(payload)))
                raise
            except OSError:
                self.give_up()
                raise
        self._begun = _new(Position, (segment, end, seq + 1, crc))
        return self._fd

    def end_append(self, took_s: float, code: int = 0) -> Position:
        """Take note that the data of the file has been synced since `begin_append`.

        Args:
            took_s: how long that took, in seconds.
            code: an errno if it failed.

        Returns:
            The end of the frame.

        Raises:
            OSError: it failed. Later appends are refused.
        """
        if code:
            self.give_up()
            raise OSError(code, os.strerror(code))
        self.position = tail = self._synced(took_s)
        return tail

    def sync_begun(self) -> Position:
        """Do what is left to do after `begin_append`, waiting for the disk.

        Raises:
            OSError: as for `append`.
        """
        try:
            self._sync()
        except OSError:
            self.give_up()
            raise
        self.position = self.tail
        return self.position

    def append(self, payload: bytes, first_index: int, count: int, flags: int) -> None:
        """Write one frame, which has to fit; durable on return.

        Raises:
            LogFull, OSError: as for `Wal.append`.
        """
        if self.sync_unsynced is not None:
            self.sync_unsynced()
        self._put(payload, first_index, count, flags)
        self._sync()

    def takes(self, length: int) -> bool:
        """Return whether a payload may be written here and now, for the reasons of `begin_append`.

        Not beside that: in one log either it or `put_unsynced` is used.
        """
        return self.tail.offset + frame.frame_size(length) <= self._ready_end and not self._armed

    def put_unsynced(self, payload: bytes, first_index: int, count: int, behind: int) -> Position:
        """Write one frame, which has to fit, and leave it to `sync_data` to make it durable.

        So many before it are not durable either. Raises as `append` does.
        """
        self._put(payload, first_index, count, frame.NOSYNC, behind)
        self.log_bytes += self._begun.offset - self.tail.offset
        self.tail = self.position = self._begun
        self._dirty_end = 0
        return self.position

    def sync_data(self) -> None:
        """Make all durable that was written before this call, where the next start finds it.

        More may be written meanwhile, on another thread, but no segment begun.

        Raises:
            OSError: it is not. Later appends are refused.
        """
        if not self.has_segment:
            return
        began = time.monotonic()
        try:
            self._fdatasync()
            require_at(self._name, os.fstat(self._fd))
        except OSError:
            self.give_up()
            raise
        self._on_sync(time.monotonic() - began)

    def begin_appending(self) -> None:
        """Let `begin_append` write as far as no other segment has to be prepared."""
        middle = self._capacity // 2
        self._ready_end = self._capacity - SEAL_SIZE if self.tail.offset > middle else middle

    def stop_appending(self) -> None:
        """Let `begin_append` write nothing until `begin_appending`."""
        self._ready_end = 0

    def give_up(self) -> None:
        """Take no further append: the log's end is unknown, or the log is closed."""
        self.is_writable = False
        self._ready_end = 0

    def trim(self) -> None:
        """Cut the segment, which is sealed, to its length and close it."""
        disk.truncate(self._fd, self.tail.offset)
        disk.sync_file(self._fd)
        os.close(self._fd)
        self._fd = _NO_FILE

    def close(self) -> None:
        """Leave the segment without a trace of refused writes, and close it.

        Raises:
            OSError: it could not be left so; the next start may find a torn tail.
        """
        try:
            if self.is_writable and self.has_segment:
                self._erase_dirty()
                disk.sync_data(self._fd)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close the segment as it is: the next start judges what it ends with."""
        self.give_up()
        if self.has_segment:
            os.close(self._fd)
            self._fd = _NO_FILE

    def _put(
        self, payload: bytes, first_index: int, count: int, flags: int, behind: int = 0
    ) -> None:
        """Write one frame at the tail, over what refused writes left there; durable once synced."""
        segment, offset, seq, chain = self.tail
        kind = count | flags << 24
        data, crc = seal(payload, seq + 1, first_index, kind, chain, self._salt, behind)
        length = len(data)
        end = offset + length
        if end < self._dirty_end:
            data += bytes(self._dirty_end - end)
        try:
            if self._armed:
                self.faults.reach_write("walBeforeWrite", self._fd, data[:length], offset)
            disk.write_at(self._fd, data, offset)
        except OSError as error:
            self._refused(error, end, offset + frame.essential_size(len(payload)))
            raise
        self._begun = _new(Position, (segment, end, seq + 1, crc))

    def _sync(self) -> None:
        began = time.monotonic()
        self._fdatasync()
        self._synced(time.monotonic() - began)
        self._dirty_end = 0

    def _fdatasync(self) -> None:
        self.faults.reach("walBeforeSync")
        disk.sync_data(self._fd)
        self.faults.reach("walAfterSync")

    def _synced(self, took_s: float) -> Position:
        """The frame that was put is durable: the log goes on behind it, where this returns.

        Raises:
            DirectoryLost: but the next start does not find it.
        """
        try:
            in_place = os.stat(self._name)[1:3] == self._place  # noqa: PTH116 -- for each frame
        except OSError:
            in_place = False
        if not in_place:
            ready_end = self._ready_end
            self.give_up()
            require_at(self._name, os.fstat(self._fd))
            self.is_writable, self._ready_end = True, ready_end
        tail = self._begun
        self.log_bytes += tail[1] - self.tail[1]
        self.tail = tail
        self._on_sync(took_s)
        if took_s > SLOW_SYNC_S:
            self.slow_syncs.note(took_s)
        return tail

    def _refused(self, error: OSError, end: int, intact_from: int) -> None:
        """Turn a refused write into `LogFull`; return where it is none."""
        if error.errno not in disk.REFUSALS:
            return
        self._dirty_end, self._ready_end = max(self._dirty_end, end), 0
        # Room is short: it is for frames.
        self._blank_end = self._capacity
        written = error.written if isinstance(error, disk.PartialWrite) else 0
        if self.tail.offset + written >= intact_from:
            # Only padding is missing, or zeros over what an earlier write left: a restart would
            # take the frame for a good one. What was taken can be written again, and no more.
            disk.write_at(self._fd, bytes(written), self.tail.offset)
            disk.sync_data(self._fd)
        raise log_full(error, self._path) from error

    def _erase_dirty(self) -> None:
        """Overwrite what refused writes may have left behind the tail."""
        if self._dirty_end > self.tail.offset:
            disk.write_at(self._fd, bytes(self._dirty_end - self.tail.offset), self.tail.offset)
        self._dirty_end = 0


def _ignore(seconds: float) -> None:
    """No-op callback."""

"""Frames that are written without waiting for the disk, and made durable later.

For a replica: what it has not synced stands in the log of all replicas, and is fetched again from
there. Each of these frames says how many before it were not durable either (flag NOSYNC,
storage/format/frame.py), so a start tells what a power loss has torn from damage
(storage/wal/segments.py).

Invariants:

- `durable` is never ahead of the disk. It moves after a sync, to what was written before that.
- Frames that are not durable stand in the newest segment only: its seal is written when all
  before it is durable, as any other frame of another kind is.
"""

import os
from functools import partial
from pathlib import Path

from kvd.storage import disk
from kvd.storage.wal.wal import Wal


class Unsynced:
    """Writes such frames to one log, whose scan has come to its end.

    `write` and `append` belong to one thread at a time, `sync` to the one that begins segments: it
    may run beside `write`.

    Attributes:
        durable: The sequence number of a frame up to which the log is durable.
    """

    def __init__(self, wal: Wal) -> None:
        """From here on; all that is there is durable, because a scan syncs what it reads."""
        self._wal, self._writer = wal, wal.writer
        self.durable = self._writer.tail.seq
        self._writer.sync_unsynced = self.sync

    def write(self, payload: bytes, first_index: int, count: int) -> bool:
        """Write a frame, unless a segment has to be begun or prepared; return whether it was.

        Raises:
            LogFull, OSError: as for `Wal.append`.
        """
        if not self._writer.takes(len(payload)):
            return False
        try:
            self._put(payload, first_index, count)
        except OSError:
            self._writer.give_up()
            raise
        return True

    def append(self, payload: bytes, first_index: int, count: int) -> None:
        """Write a frame, in the next segment where it does not fit the newest one.

        Raises:
            LogFull, OSError: as for `Wal.append`.
        """
        self._wal.extend(len(payload), first_index, partial(self._put, payload, first_index, count))

    def make_room(self, length: int, first_index: int) -> None:
        """Begin the next segment if a payload of so many bytes does not fit the newest one.

        Raises:
            LogFull, OSError: as for `Wal.append`.
        """
        self._wal.extend(length, first_index, _nothing)

    def sync(self) -> None:
        """Make all durable that was written before this call.

        Raises:
            OSError: it is not. Later appends are refused.
        """
        written = self._writer.tail.seq
        if written > self.durable:
            self._writer.sync_data()
            self.durable = written

    def _put(self, payload: bytes, first_index: int, count: int) -> None:
        behind = self._writer.tail.seq - self.durable
        self._writer.put_unsynced(payload, first_index, count, behind)


def sync_newest(directory: Path) -> None:
    """Make durable all frames that have been written to the log in a directory.

    From any thread, because it opens the newest segment for itself.

    Raises:
        OSError: it failed, and what writes the log will learn of it, too.
    """
    names = sorted(directory.glob("*.wal"))
    if names:
        fd = disk.open_to_read(names[-1])
        try:
            disk.sync_data(fd)
        finally:
            os.close(fd)


def _nothing() -> None:
    """No-op callback."""

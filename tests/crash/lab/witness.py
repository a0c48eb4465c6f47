"""Syncs that the kernel makes on its own, told of by system calls that strace sees.

strace shows that io_uring was entered, not which file it syncs, nor when that has ended: the end is
a number in shared memory. So a server that is asked for this tells of each sync by two writes to
/dev/null: one before it hands a file to the kernel, one after the kernel has said that the file is
durable. Both are on the safe side: what was written between the first and the real beginning, and
what happened between the real end and the second, does not count as synced.
"""

import os
from pathlib import Path

from kvd.core import log_writer
from kvd.storage.aio import DataSync
from kvd.storage.wal.ring_sync import RingSync

WITNESS = "KVD_LAB_WITNESS"
"""Names the way by which the log is to be synced: one of `WAYS`."""
WAYS = {"io_uring": RingSync, "aio": DataSync}
BEGUN, ENDED = b"sync begun ", b"sync ended "


class Witness:
    """Syncs one file at a time as `DataSync` does, and tells of it."""

    def __init__(self, way: str) -> None:
        self._kernel = WAYS[way]()
        self.fileno = self._kernel.fileno
        self._void = os.open(os.devnull, os.O_WRONLY)
        self._path = b""

    def submit(self, fd: int) -> None:
        """As `DataSync.submit`."""
        self._path = os.fsencode(Path(f"/proc/self/fd/{fd}").readlink())
        os.write(self._void, BEGUN + self._path)
        self._kernel.submit(fd)

    def wait(self, *, briefly: bool = False) -> int | None:
        """As `DataSync.wait`."""
        return self._reported(self._kernel.wait(briefly=briefly))

    def outcome(self) -> int | None:
        """As `DataSync.outcome`."""
        return self._reported(self._kernel.outcome())

    def clear(self) -> None:
        """As `DataSync.clear`."""
        self._kernel.clear()

    def close(self) -> None:
        """As `DataSync.close`."""
        self._kernel.close()
        os.close(self._void)

    def _reported(self, code: int | None) -> int | None:
        if code == 0:
            os.write(self._void, ENDED + self._path)
        return code


def report_syncs(way: str) -> None:
    """Have the log synced in one way, and told of."""
    log_writer.data_sync = lambda: Witness(way)  # type: ignore[assignment,return-value]


def is_available(way: str) -> bool:
    """Return whether the kernel has it here."""
    try:
        WAYS[way]().close()
    except OSError:
        return False
    return True

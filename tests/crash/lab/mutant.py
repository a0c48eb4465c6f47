"""Bugs to be caught: each is put into a server that is started here, and nowhere else.

    python -m tests.crash.lab.mutant NAME -- FLAGS OF KVD

The product has no switch for any of them: its functions are replaced in this process.
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from kvd import watch
from kvd.__main__ import main
from kvd.clock import Clock
from kvd.syncthread import SyncThread
from storage import disk, frame
from storage.index import Index

_sync_data, _write_at = disk.sync_data, disk.write_at


def late_write() -> None:
    """A frame is acknowledged first and written with the next one."""
    held: list[tuple[int, bytes, int]] = []

    def write_at(fd: int, data: bytes, offset: int) -> None:
        while held:
            _write_at(*held.pop())
        if data.startswith(frame.FRAME_MAGIC):
            held.append((fd, data, offset))
        else:
            _write_at(fd, data, offset)

    disk.write_at = write_at


def in_place() -> None:
    """Small files are replaced where they stand, without a new file and a rename."""

    def write_file_durably(path: Path, data: bytes) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        _write_at(fd, data[:8], 0)
        _write_at(fd, data[8:], 8)
        os.fsync(fd)
        os.close(fd)

    disk.write_file_durably = write_file_durably


def no_directory_fsync() -> None:
    """Names are never made durable."""
    disk.sync_directory = lambda path: None


def no_file_fsync() -> None:
    """Neither snapshots nor headers of segments are synced before they get their names."""
    disk.sync_file = lambda fd: None


def fsync_every_other() -> None:
    """Two frames share one sync, and the first is acknowledged without it."""
    turns = itertools.count()
    disk.sync_data = lambda fd: _sync_data(fd) if next(turns) % 2 else None


def no_fsync() -> None:
    """Frames are never synced."""
    disk.sync_data = lambda fd: None


def ack_before_fsync() -> None:
    """The sync comes after the answer: just before the next frame is written."""
    due: list[int] = []

    def write_at(fd: int, data: bytes, offset: int) -> None:
        while due:
            _sync_data(due.pop())
        _write_at(fd, data, offset)

    disk.sync_data = due.append
    disk.write_at = write_at


def retry_fsync() -> None:
    """A sync that failed is asked again, and believed."""

    def sync_data(fd: int) -> None:
        try:
            _sync_data(fd)
        except OSError:
            _sync_data(fd)

    disk.sync_data = sync_data


def no_crc() -> None:
    """Every checksum of a frame is 0, and found good."""
    frame.crc32 = lambda data, seed=0: 0


def die_when_full() -> None:
    """A full disk is taken for a broken one."""
    disk.REFUSALS = frozenset()


def sync_on_loop() -> None:
    """The event loop itself waits for the disk."""

    def run(self: SyncThread, job: Callable, done: Callable) -> None:
        try:
            outcome = job()
        except BaseException as error:  # noqa: BLE001 -- as the real one does
            outcome = error
        self._loop.call_soon(done, outcome)

    SyncThread.run = run


def drop_event() -> None:
    """One batch in thirty is not told to the watchers."""
    publish = watch.Hub.publish
    turns = itertools.count(1)

    def lossy(self: watch.Hub, events: list) -> object:
        return publish(self, [] if next(turns) % 30 == 0 else events)

    watch.Hub.publish = lossy


def wall_clock() -> None:
    """Leases follow the system's clock, wherever it is set."""
    Clock.now_ns = lambda self: time.time_ns()


def no_reuse() -> None:
    """The index is built anew at every start."""
    Index.reuse = staticmethod(lambda directory: None)


def none() -> None:
    """No bug: only what the environment asks for."""


MUTANTS: dict[str, Callable[[], None]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        *(late_write, in_place, no_directory_fsync, no_file_fsync, fsync_every_other, no_fsync),
        *(ack_before_fsync, retry_fsync, no_crc, die_when_full, sync_on_loop, drop_event),
        *(wall_clock, no_reuse, none),
    )
}

CLOCK_FILE = "KVD_LAB_CLOCK"
"""Names the file that holds how many seconds the system's clock is off."""

SLOW_SYNC = "KVD_LAB_SLOW_SYNC"
"""Names the seconds that each sync of the log takes longer."""


def slow_syncs(seconds: float) -> None:
    """Make each sync of the log take longer."""
    sync_data = disk.sync_data

    def slow(fd: int) -> None:
        time.sleep(seconds)
        sync_data(fd)

    disk.sync_data = slow


def step_clock(path: str) -> None:
    """Put the system's clock off by what a file says, now and whenever it changes."""
    real = time.time_ns

    def time_ns() -> int:
        return real() + int(json.loads(Path(path).read_text()) * 1e9)

    time.time_ns = time_ns


if __name__ == "__main__":
    MUTANTS[sys.argv[1]]()
    if CLOCK_FILE in os.environ:
        step_clock(os.environ[CLOCK_FILE])
    if SLOW_SYNC in os.environ:
        slow_syncs(float(os.environ[SLOW_SYNC]))
    sys.exit(main(sys.argv[3:]))

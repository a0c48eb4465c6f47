"""Bugs in the way of a write: its log, its syncs, its answer."""

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path

from kvd.core.disk_space import DiskSpace
from kvd.core.log_writer import Done, LogWriter
from kvd.core.watch import hub
from kvd.core.worker_thread import WorkerThread
from kvd.storage import disk
from kvd.storage.format import frame
from kvd.storage.index.pending import Pending

real_sync_data, real_write_at = disk.sync_data, disk.write_at


def late_write() -> None:
    """A frame is acknowledged first and written with the next one."""
    held: list[tuple[int, bytes, int]] = []

    def write_at(fd: int, data: bytes, offset: int) -> None:
        while held:
            real_write_at(*held.pop())
        if data.startswith(frame.FRAME_MAGIC):
            held.append((fd, data, offset))
        else:
            real_write_at(fd, data, offset)

    disk.write_at = write_at


def in_place() -> None:
    """Small files are replaced where they stand, without a new file and a rename."""

    def write_file_durably(path: Path, data: bytes) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        real_write_at(fd, data[:8], 0)
        real_write_at(fd, data[8:], 8)
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
    disk.sync_data = lambda fd: real_sync_data(fd) if next(turns) % 2 else None


def no_fsync() -> None:
    """Frames are never synced."""
    disk.sync_data = lambda fd: None


def ack_before_fsync() -> None:
    """The sync comes after the answer: just before the next frame is written."""
    due: list[int] = []

    def write_at(fd: int, data: bytes, offset: int) -> None:
        while due:
            real_sync_data(due.pop())
        real_write_at(fd, data, offset)

    disk.sync_data = due.append
    disk.write_at = write_at


def ack_before_end() -> None:
    """A sync by the kernel is taken for ended when it has begun; the next frame waits for it."""
    append = LogWriter.append

    def append_behind(self: LogWriter, batch: Pending, done: Done) -> bool:
        while self._vain and self._kernel is not None and self._kernel.wait() is None:
            pass
        self._vain = 0
        return append(self, batch, done)

    def wait(self: LogWriter) -> None:
        self._vain = 1
        self._end(0)

    LogWriter.append = append_behind
    LogWriter.wait = wait


def retry_fsync() -> None:
    """A sync that failed is asked again, and believed."""

    def sync_data(fd: int) -> None:
        try:
            real_sync_data(fd)
        except OSError:
            real_sync_data(fd)

    disk.sync_data = sync_data


def no_crc() -> None:
    """Every checksum of a frame is 0, and found good."""
    frame.crc32 = lambda data, seed=0: 0


def die_when_full() -> None:
    """A full disk is taken for a broken one."""
    disk.REFUSALS = frozenset()


def wait_when_full() -> None:
    """While there is no room, each batch waits for it a while, on the loop."""
    room = DiskSpace.room.__get__

    def waiting(self: DiskSpace) -> int:
        if self.refusal is not None:
            time.sleep(0.1)
        return room(self)

    DiskSpace.room = property(waiting)


def sync_on_loop() -> None:
    """The event loop itself waits for the disk."""

    def run(self: WorkerThread, job: Callable, done: Callable) -> None:
        try:
            outcome = job()
        except BaseException as error:  # noqa: BLE001 -- as the real one does
            outcome = error
        self._loop.call_soon(done, outcome)

    WorkerThread.run = run


def drop_event() -> None:
    """One batch in thirty is not told to the watchers."""
    publish = hub.Hub.publish
    turns = itertools.count(1)

    def lossy(self: hub.Hub, events: list) -> object:
        return publish(self, [] if next(turns) % 30 == 0 else events)

    hub.Hub.publish = lossy

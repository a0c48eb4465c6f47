"""disk_space.py: when users' writes are refused, and what removals keep room for."""

import errno
import os
import sys

import pytest

from kvd.core.disk_space import DiskSpace
from kvd.storage import disk
from kvd.storage.errors import LogFull
from kvd.v2.commands import Set
from tests.support.stores import SEGMENT, open_store, write

FULL = LogFull(errno.ENOSPC, "wal/next.tmp: No space left on device")
QUOTA = LogFull(errno.EDQUOT, "wal/next.tmp: Disk quota exceeded")


@pytest.fixture
def store(tmp_path):
    opened = open_store(tmp_path / "data")
    yield opened
    opened.close()


def fill(store, monkeypatch):
    """Write past the middle of a segment behind which the disk has none."""

    def refuse(fd, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write(store, Set(b"/a", b"x"))
    monkeypatch.setattr(disk, "preallocate", refuse)
    while store.wal.refusal is None:
        write(store, Set(b"/a", b"x" * (SEGMENT // 32)))
        store.wal.prepare_next()


def test_with_room_a_batch_of_any_size_needs_no_check(store):
    space = DiskSpace(store)
    assert space.room == sys.maxsize
    assert space.check(SEGMENT * 10) is None


def test_a_refusal_says_why_and_is_one_line_of_the_log(store, caplog):
    space = DiskSpace(store)
    space.enter(QUOTA)
    space.enter(FULL)
    (line,) = caplog.messages
    assert line.startswith("disk quota exceeded: writes are refused until there is room; ")
    assert (space.refusal.code, space.refusal.cause) == (300, b"no space left on device (wal)")
    assert space.room == 0
    caplog.clear()
    space.leave()
    space.leave()
    (line,) = caplog.messages
    assert line.startswith("disk space is available again after ")
    assert (space.refusal, space.room) == (None, sys.maxsize)
    caplog.clear()


def test_a_file_system_that_becomes_full_is_noticed_before_the_log_is_refused(store, caplog):
    space = DiskSpace(store)
    space.poll()
    assert space.refusal is None
    store.faults.free_bytes_max = store.low_water_bytes - 1
    space.poll()
    assert space.refusal.cause == b"no space left on device (wal)"
    space.poll()
    assert len(caplog.messages) == 1
    caplog.clear()


def test_the_end_of_the_log_is_kept_for_removals(store, monkeypatch, caplog):
    fill(store, monkeypatch)
    space = DiskSpace(store)
    there, kept = store.wal.room, store.wal.max_payload // 4
    assert space.room == there - kept
    assert space.check(there - kept) is None
    assert space.refusal is None
    assert space.check(there - kept + 1) is space.refusal
    assert space.refusal.code == 300
    caplog.clear()

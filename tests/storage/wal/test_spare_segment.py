"""spare_segment.py: space that is reserved is zeros, and is a segment only once it is durable."""

import errno
import os

import pytest

from kvd.storage import disk
from kvd.storage.errors import LogFull
from kvd.storage.failpoints import Faults
from kvd.storage.format.names import SPARE_NAME
from kvd.storage.wal.spare_segment import Spare, first_byte
from tests.support.logs import Fault

SIZE = 3 << 20
PAGE = b"header" + bytes(4090)


def spare(tmp_path, size=SIZE):
    return Spare(tmp_path, size, Faults())


def test_reserving_is_done_once(tmp_path):
    reserved = spare(tmp_path)
    fd = reserved.reserve()
    assert reserved.reserve(SIZE // 2) == fd
    assert (tmp_path / SPARE_NAME).stat().st_blocks * 512 >= SIZE
    assert first_byte(tmp_path) is None
    reserved.close()


def test_a_longer_frame_reserves_more(tmp_path):
    reserved = spare(tmp_path)
    reserved.reserve()
    reserved.reserve(SIZE + 1)
    assert reserved.reserved == SIZE + 1 == (tmp_path / SPARE_NAME).stat().st_size
    reserved.close()


@pytest.mark.parametrize("call", ["create", "preallocate"])
def test_a_disk_without_room_leaves_no_file(tmp_path, monkeypatch, call):
    fault = Fault(monkeypatch, call, errno.ENOSPC, times=1)
    reserved = spare(tmp_path)
    with pytest.raises(LogFull, match=r"next\.tmp: No space left on device"):
        reserved.reserve()
    assert list(tmp_path.iterdir()) == []
    fault.heal()
    reserved.reserve()
    reserved.close()


def test_what_an_earlier_run_reserved_is_adopted_as_zeros(tmp_path, caplog):
    caplog.set_level("INFO")
    left = spare(tmp_path)
    fd = left.reserve()
    disk.write_at(fd, b"left header", 0)
    disk.write_at(fd, b"left frame", (2 << 20) + 77)
    left.close()
    assert first_byte(tmp_path) == 0
    adopted = spare(tmp_path)
    adopted.adopt()
    assert adopted.fd is not None
    assert first_byte(tmp_path) is None
    assert (tmp_path / SPARE_NAME).read_bytes() == bytes(SIZE)
    assert len(caplog.messages) == 2
    adopted.close()


def test_the_first_byte_is_found_wherever_it_is(tmp_path):
    reserved = spare(tmp_path)
    disk.write_at(reserved.reserve(), b"\1", SIZE - 1)
    assert first_byte(tmp_path) == SIZE - 1
    reserved.close()


@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1])
def test_a_spare_of_another_size_is_not_adopted(tmp_path, size):
    left = spare(tmp_path, size)
    left.reserve()
    left.close()
    adopted = spare(tmp_path)
    adopted.adopt()
    assert adopted.fd is None


def test_without_a_spare_there_is_nothing_to_adopt(tmp_path):
    adopted = spare(tmp_path)
    adopted.adopt()
    assert (adopted.fd, first_byte(tmp_path)) == (None, None)


def test_a_spare_that_cannot_be_cleared_is_left(tmp_path, monkeypatch):
    left = spare(tmp_path)
    disk.write_at(left.reserve(), b"left", 0)
    left.close()
    Fault(monkeypatch, "write_at", errno.ENOSPC)
    adopted = spare(tmp_path)
    adopted.adopt()
    assert adopted.fd is None


def test_a_segment_has_its_name_and_its_page(tmp_path):
    reserved = spare(tmp_path)
    reserved.reserve()
    fd = reserved.install(tmp_path / "1.wal", PAGE)
    assert reserved.fd is None
    assert [path.name for path in tmp_path.iterdir()] == ["1.wal"]
    assert disk.read_at(fd, len(PAGE) + 1, 0) == PAGE + b"\0"
    os.close(fd)


@pytest.mark.parametrize("call", ["write_at", "rename"])
def test_a_segment_that_is_refused_has_not_happened(tmp_path, monkeypatch, call):
    reserved = spare(tmp_path)
    fd = reserved.reserve()
    Fault(monkeypatch, call, errno.ENOSPC, times=1)
    with pytest.raises(LogFull):
        reserved.install(tmp_path / "1.wal", PAGE)
    assert [path.name for path in tmp_path.iterdir()] == [SPARE_NAME]
    assert reserved.fd == fd
    reserved.close()


@pytest.mark.parametrize("call", ["sync_file", "sync_directory"])
def test_a_sync_that_fails_is_no_refusal(tmp_path, monkeypatch, call):
    reserved = spare(tmp_path)
    reserved.reserve()
    Fault(monkeypatch, call, errno.ENOSPC, times=1)
    with pytest.raises(OSError, match="No space left") as caught:
        reserved.install(tmp_path / "1.wal", PAGE)
    assert not isinstance(caught.value, LogFull)
    reserved.close()

"""Writes that the disk refuses or fails: what the log holds afterwards."""

import errno
import os
import resource
from contextlib import contextmanager

import pytest

from kvd.storage import disk
from kvd.storage.errors import LogFull
from kvd.storage.format import frame
from tests.support.logs import (
    SEGMENT,
    Fault,
    append,
    begin,
    fill,
    open_wal,
    payloads_of,
    refuse_appends,
    segments,
)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize(
    ("call", "skip"),
    [
        pytest.param("preallocate", 0, id="no room for a segment"),
        pytest.param("create", 0, id="no room for its name"),
        pytest.param("write_at", 0, id="the seal is refused"),
        pytest.param("write_at", 1, id="the header is refused"),
        pytest.param("rename", 0, id="the rename is refused"),
        pytest.param("write_at", 2, id="the frame is refused"),
    ],
)
def test_a_refused_append_leaves_the_log_usable(tmp_path, monkeypatch, call, skip, code):
    wal = begin(tmp_path)
    append(wal, b"x" * 3000)
    before = wal.position
    refuse_appends(monkeypatch, wal, call, code, skip=skip)
    assert wal.position == before
    assert payloads_of(tmp_path) == [b"x" * 3000]
    append(wal, b"y" * 3000)
    append(wal, b"w")
    wal.close()
    assert payloads_of(tmp_path) == [b"x" * 3000, b"y" * 3000, b"w"]


@pytest.mark.parametrize(
    ("call", "skip"), [("preallocate", 0), ("write_at", 1), ("rename", 0), ("write_at", 2)]
)
def test_a_crash_after_a_refused_append_loses_nothing(tmp_path, monkeypatch, call, skip):
    wal = begin(tmp_path)
    end = append(wal, b"x" * 3000)
    refuse_appends(monkeypatch, wal, call, errno.ENOSPC, skip=skip)
    again = begin(tmp_path)
    append(again, b"y" * 3000)
    again.close()
    assert payloads_of(tmp_path, end) == [b"y" * 3000]


def test_what_a_refused_write_left_is_overwritten_by_the_next_frame(tmp_path, monkeypatch):
    wal = begin(tmp_path)
    append(wal, b"x")
    refuse_appends(monkeypatch, wal, "write_at", errno.ENOSPC, b"z" * 2000, written=1500)
    append(wal, b"y")
    assert payloads_of(tmp_path) == [b"x", b"y"]
    assert b"zzzz" not in segments(tmp_path)[0].read_bytes()
    wal.close()


def test_what_a_refused_write_left_is_gone_after_a_clean_stop(tmp_path, monkeypatch):
    wal = begin(tmp_path)
    append(wal, b"x")
    refuse_appends(monkeypatch, wal, "write_at", errno.ENOSPC, b"z" * 2000, written=1500)
    wal.close()
    wal = open_wal(tmp_path)
    assert [f.payload for f in wal.scan()] == [b"x"]
    assert wal.torn is None


def test_a_refused_write_is_never_found_again_however_much_of_it_was_written(tmp_path, monkeypatch):
    wal = begin(tmp_path)
    append(wal, b"x")
    payload = b"z" * 5
    for written in range(frame.frame_size(len(payload)) + 1):
        refuse_appends(monkeypatch, wal, "write_at", errno.ENOSPC, payload, written=written)
        assert payloads_of(tmp_path) == [b"x"], f"{written} bytes"
    wal.close()


def test_a_small_frame_over_what_a_large_one_left_is_refused_like_it(tmp_path, monkeypatch):
    """The small one fits the room there is, the zeros over the rest of the large one do not."""
    wal = begin(tmp_path)
    append(wal, b"x")
    end = wal.position.offset + 100
    real = disk.write_at

    def up_to_the_end(fd, data, offset):
        room = max(0, end - offset)
        real(fd, data[:room], offset)
        if len(data) > room:
            raise disk.PartialWrite(OSError(errno.EFBIG, os.strerror(errno.EFBIG)), room)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_at", up_to_the_end)
        for payload in (b"z" * 500, b"y"):
            with pytest.raises(LogFull):
                append(wal, payload)
            assert payloads_of(tmp_path) == [b"x"]
    append(wal, b"y")
    assert payloads_of(tmp_path) == [b"x", b"y"]
    wal.close()


def test_a_full_disk_is_no_reason_to_keep_a_torn_tail(tmp_path, monkeypatch, caplog):
    ends = fill(tmp_path, [b"x", b"y"])
    os.truncate(segments(tmp_path)[0], ends[-1].offset - 8)
    Fault(monkeypatch, "create", errno.ENOSPC)
    wal = begin(tmp_path)
    assert "not kept: No space left" in caplog.text
    append(wal, b"z")
    wal.close()
    assert payloads_of(tmp_path) == [b"x", b"z"]


@contextmanager
def file_size_limit(size):
    """Let the system refuse any write behind `size`, and cut short those that cross it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_systems_own_short_writes_are_refusals(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(disk, "preallocate", lambda _fd, _length: None)
        wal = begin(tmp_path)
        append(wal, b"x")
    payload = b"z" * 100
    start = wal.position.offset
    for size in range(start, start + frame.frame_size(len(payload)), 3):
        with file_size_limit(size), pytest.raises(LogFull) as caught:
            append(wal, payload)
        assert caught.value.errno == errno.EFBIG
        assert payloads_of(tmp_path) == [b"x"]
    append(wal, b"y")
    wal.close()
    assert payloads_of(tmp_path) == [b"x", b"y"]


def test_a_limit_on_file_size_that_leaves_no_segment_is_a_refusal(tmp_path):
    wal = begin(tmp_path)
    with file_size_limit(SEGMENT - 1), pytest.raises(LogFull):
        append(wal, b"x")
    append(wal, b"y")
    wal.close()
    assert payloads_of(tmp_path) == [b"y"]


@pytest.mark.parametrize(
    ("call", "code", "payload"),
    [
        pytest.param("write_at", errno.EIO, b"y", id="write"),
        pytest.param("sync_data", errno.EIO, b"y", id="sync"),
        pytest.param("sync_data", errno.ENOSPC, b"y", id="sync with a full disk"),
        pytest.param("sync_data", errno.EIO, b"y" * 3000, id="sync of a seal"),
        pytest.param("sync_file", errno.ENOSPC, b"y" * 3000, id="sync of a cut"),
        pytest.param("truncate", errno.EIO, b"y" * 3000, id="cut"),
        pytest.param("preallocate", errno.EIO, b"y" * 3000, id="space"),
        pytest.param("rename", errno.EIO, b"y" * 3000, id="rename"),
        pytest.param("sync_directory", errno.EIO, b"y" * 3000, id="sync of a name"),
        pytest.param("sync_directory", errno.ENOSPC, b"y" * 3000, id="the same, full"),
    ],
)
def test_after_a_failure_nothing_is_appended_any_more(tmp_path, monkeypatch, call, code, payload):
    wal = begin(tmp_path)
    append(wal, b"x" * 3000)
    before = wal.position
    Fault(monkeypatch, call, code, times=1)
    with pytest.raises(OSError, match=os.strerror(code)):
        append(wal, payload)
    assert wal.position == before
    with pytest.raises(OSError, match="closed to writing"):
        append(wal, b"z")
    wal.close()
    assert payloads_of(tmp_path) in ([b"x" * 3000], [b"x" * 3000, payload])


def test_a_failed_sync_is_never_tried_again(tmp_path, monkeypatch):
    wal = begin(tmp_path)
    append(wal, b"x")
    fault = Fault(monkeypatch, "sync_data", errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        append(wal, b"y")
    left = fault.left
    wal.close()
    assert fault.left == left


def test_a_close_that_cannot_leave_the_log_clean_says_so(tmp_path, monkeypatch):
    wal = begin(tmp_path)
    append(wal, b"x")
    Fault(monkeypatch, "sync_data", errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        wal.close()

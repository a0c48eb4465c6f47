"""The zeros that are written behind a short frame, where the segment is only reserved so far."""

import errno
import os

import pytest

from kvd.storage.errors import LogFull
from tests.support.logs import append, begin, payloads_of, segments

SEGMENT = 1 << 20
AHEAD = 256 << 10
SECTOR = 512


@pytest.fixture
def writes(monkeypatch):
    """The offset and the length of each write, in order."""
    made = []
    pwrite = os.pwrite

    def noting(fd, data, offset):
        made.append((offset, len(data)))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", noting)
    return made


@pytest.fixture
def wal(tmp_path):
    """A log whose first segment is begun."""
    wal = begin(tmp_path, segment_bytes_max=SEGMENT)
    append(wal, b"first")
    return wal


def begun(wal, payload):
    """Append as the loop does; return the end of the frame, None if that takes a thread."""
    if wal.writer.begin_append(payload, first_index=2, count=0) is None:
        return None
    return wal.writer.end_append(0.0)


def test_one_append_of_many_writes_zeros_for_those_that_follow(wal, writes):
    start = wal.position.offset
    ends = [begun(wal, b"x" * 200).offset for _ in range(1200)]
    length = ends[0] - start
    assert [offset for offset, _ in writes] == [start, *ends[:-1]]
    ahead = [write for write in writes if write[1] != length]
    assert [size for _, size in ahead] == [length + AHEAD] * 2
    # The second is the first that does not lie wholly in what the first has written.
    assert 0 < ahead[1][0] + length - sum(ahead[0]) <= length


def test_a_long_frame_writes_nothing_ahead(wal, writes):
    start = wal.position.offset
    end = begun(wal, b"x" * (100 << 10)).offset
    assert writes == [(start, end - start)]


def test_zeros_never_make_a_segment_longer(tmp_path, wal, writes):
    while begun(wal, b"x" * 5000):
        pass
    append(wal, b"x" * 5000)  # passes the middle
    while begun(wal, b"x" * 5000):
        pass
    assert max(map(sum, writes)) == SEGMENT
    assert segments(tmp_path)[0].stat().st_size == SEGMENT


def test_zeros_are_no_part_of_the_log(tmp_path, wal):
    sent = [b"%d" % number for number in range(20)]
    for payload in sent:
        begun(wal, payload)
    wal.abandon()
    assert payloads_of(tmp_path) == [b"first", *sent]


def test_where_the_zeros_find_no_room_the_frames_that_follow_go_without(tmp_path, wal, monkeypatch):
    taken = os.pwrite

    def full(fd, data, offset):
        """Take no byte behind the next 1,000."""
        length = min(len(data), end - offset)
        if length <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return taken(fd, bytes(data)[:length], offset)

    end = wal.position.offset + 1000
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(LogFull):
            begun(wal, b"refused")
        append(wal, b"second")
        assert begun(wal, b"third")
    wal.abandon()
    assert payloads_of(tmp_path) == [b"first", b"second", b"third"]


@pytest.mark.usefixtures("no_sync")
def test_whatever_is_lost_of_a_frame_with_zeros_it_is_there_or_never_was(tmp_path, wal):
    """As a power loss may leave it that comes before the sync: any sectors, in any order."""
    start = wal.position.offset
    before = segments(tmp_path)[0].read_bytes()
    assert wal.writer.begin_append(b"x" * 1500, first_index=2, count=0) is not None
    wal.abandon()
    (file,) = segments(tmp_path)
    written = file.read_bytes()
    first = start // SECTOR * SECTOR
    frame_sectors = range(first, start + 1600, SECTOR)
    for chosen in range(1 << len(frame_sectors)):
        data = bytearray(before)
        for number, offset in enumerate(frame_sectors):
            if chosen >> number & 1:
                data[offset : offset + SECTOR] = written[offset : offset + SECTOR]
        data[frame_sectors[-1] + SECTOR :] = written[frame_sectors[-1] + SECTOR :]
        file.write_bytes(data)
        is_whole = data == written
        assert payloads_of(tmp_path) == [b"first", b"x" * 1500][: 1 + is_whole]

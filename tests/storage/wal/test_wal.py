"""storage/wal/wal.py: what was acknowledged comes back, and damage is refused, whatever happens."""

import errno
import os

import pytest

from kvd.storage.errors import CorruptLog, LogFull
from kvd.storage.format import frame
from kvd.storage.format.frame import START, Position
from tests.support.log_texts import log_text
from tests.support.logs import (
    SEGMENT,
    Fault,
    append,
    begin,
    fill,
    open_wal,
    payloads_of,
    segments,
    small_log,
)


def test_frames_come_back_in_order_over_many_segments(tmp_path):
    payloads, ends = small_log(tmp_path)
    found = list(open_wal(tmp_path).scan())
    assert [f.payload for f in found] == payloads
    assert [f.end for f in found] == ends
    # Two seals have consumed a number each.
    assert [f.seq for f in found] == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 13, 14, 15]


def test_what_stands_beside_a_payload_comes_back(tmp_path):
    wal = begin(tmp_path)
    end = wal.append(b"x", first_index=77, count=3, flags=frame.SNAPMARK)
    wal.close()
    (found,) = open_wal(tmp_path).scan()
    assert found == (1, 77, 3, frame.SNAPMARK, b"x", end)


def test_a_log_goes_on_after_each_reopening(tmp_path):
    payloads = [b"%d" % i * 300 for i in range(40)]
    for payload in payloads:
        fill(tmp_path, [payload])
    assert payloads_of(tmp_path) == payloads


def test_an_empty_directory_is_an_empty_log(tmp_path):
    wal = open_wal(tmp_path)
    assert list(wal.scan()) == []
    assert (wal.first_seq, wal.position, wal.torn) == (1, START, None)
    assert list(wal.scan(START)) == []
    assert list(wal.scan(Position(0, 0, 0, 0))) == []


def test_the_longest_payload_fits_and_one_more_byte_is_refused_before_anything_is_written(tmp_path):
    wal = begin(tmp_path)
    longest = b"x" * wal.max_payload
    append(wal, longest)
    before = wal.position
    with pytest.raises(ValueError, match="got"):
        append(wal, longest + b"x")
    assert wal.position == before
    append(wal, longest)
    wal.close()
    assert payloads_of(tmp_path) == [longest, longest]


def test_a_segment_of_the_default_size_takes_21_mib(tmp_path):
    payload = os.urandom(21 * 1024 * 1024)
    fill(tmp_path, [payload], segment_bytes_max=64 * 1024 * 1024)
    assert payloads_of(tmp_path) == [payload]


def test_files_are_private(tmp_path):
    small_log(tmp_path)
    assert {path.stat().st_mode & 0o777 for path in segments(tmp_path)} == {0o600}


def test_sealed_segments_are_cut_to_their_length(tmp_path):
    small_log(tmp_path)
    sizes = [path.stat().st_size for path in segments(tmp_path)]
    assert sizes[:2] == [4096 + 5 * 744 + 48] * 2
    assert sizes[2] == SEGMENT


def test_log_bytes_count_the_frames(tmp_path):
    wal = begin(tmp_path)
    append(wal, b"x" * 4)
    append(wal, b"x" * 5)
    assert wal.log_bytes == 48 + 56
    wal.close()


def test_the_segment_size_may_change_between_starts(tmp_path):
    first = [b"a" * 3000, b"b" * 3000]
    fill(tmp_path, first, segment_bytes_max=16384)
    second = [b"c" * 3000, b"d" * 3000]
    fill(tmp_path, second, segment_bytes_max=8192)
    third = [b"e" * 9000]
    fill(tmp_path, third, segment_bytes_max=16384)
    assert payloads_of(tmp_path) == first + second + third


def test_a_segment_too_small_to_be_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="8192"):
        open_wal(tmp_path, segment_bytes_max=4096)


def test_appending_needs_a_complete_scan(tmp_path):
    small_log(tmp_path)
    wal = open_wal(tmp_path)
    with pytest.raises(OSError, match="closed to writing"):
        append(wal, b"x")
    next(wal.scan())
    with pytest.raises(RuntimeError, match="complete scan"):
        wal.begin()


def test_a_caller_cannot_write_a_seal(tmp_path):
    wal = begin(tmp_path)
    with pytest.raises(ValueError, match="seals"):
        wal.append(b"", first_index=1, count=0, flags=frame.SEAL)
    wal.close()


def test_a_scan_goes_on_from_any_position(tmp_path):
    payloads, ends = small_log(tmp_path)
    for i, end in enumerate(ends):
        wal = open_wal(tmp_path)
        assert [f.payload for f in wal.scan(end)] == payloads[i + 1 :]
        assert wal.position == ends[-1]


def test_a_log_goes_on_after_a_scan_from_its_end(tmp_path):
    payloads, ends = small_log(tmp_path)
    wal = open_wal(tmp_path)
    assert list(wal.scan(ends[-1])) == []
    wal.begin()
    append(wal, b"next")
    wal.close()
    assert payloads_of(tmp_path) == [*payloads, b"next"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"crc": 1}, id="another checksum"),
        pytest.param({"offset": 4096 + 744 + 8}, id="not where a frame ends"),
        pytest.param({"offset": 4096 + 744 + 1}, id="not at a multiple of 8"),
        pytest.param({"offset": 7000}, id="in the zeros"),
        pytest.param({"offset": 2**40}, id="behind the file"),
        pytest.param({"offset": 0}, id="in the header"),
        pytest.param({"offset": 4096}, id="before the frame"),
        pytest.param({"segment": 2}, id="another segment"),
        pytest.param({"segment": 9}, id="no segment"),
        pytest.param({"seq": 5}, id="another frame"),
    ],
)
def test_a_position_that_does_not_fit_is_refused(tmp_path, change):
    _, ends = small_log(tmp_path)
    with pytest.raises(CorruptLog):
        list(open_wal(tmp_path).scan(ends[1]._replace(**change)))


def test_a_position_behind_a_lost_end_is_refused(tmp_path):
    _, ends = small_log(tmp_path)
    with segments(tmp_path)[-1].open("r+b") as file:
        file.seek(ends[-2].offset)
        file.write(bytes(ends[-1].offset - ends[-2].offset))
    with pytest.raises(CorruptLog, match="does not end here"):
        list(open_wal(tmp_path).scan(ends[-1]))


def test_a_log_that_does_not_reach_what_was_acknowledged_is_refused(tmp_path):
    _, ends = small_log(tmp_path)
    last = ends[-1].seq
    list(open_wal(tmp_path).scan(must_reach=last))
    with pytest.raises(CorruptLog, match=f"ends with frame {last}, but frame {last + 1}"):
        list(open_wal(tmp_path).scan(must_reach=last + 1))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorruptLog, match="frame 1 was acknowledged"):
        list(open_wal(tmp_path / "empty").scan(must_reach=1))


def test_the_next_segment_is_prepared_once_the_current_is_half_full(tmp_path):
    wal = begin(tmp_path)
    append(wal, b"x")
    spare = tmp_path / "wal" / "next.tmp"
    assert not spare.exists()
    while wal.position.offset <= SEGMENT / 2:
        append(wal, b"x" * 100)
    wal.prepare_next()
    assert spare.stat().st_size == SEGMENT
    assert wal.room == wal.max_payload
    append(wal, b"y" * wal.max_payload)
    assert not spare.exists()
    wal.close()


def test_what_was_prepared_is_kept_over_a_restart(tmp_path, monkeypatch):
    wal = begin(tmp_path)
    append(wal, b"x" * 3000)
    wal.prepare_next()
    wal.close()
    wal = begin(tmp_path)
    Fault(monkeypatch, "preallocate", errno.ENOSPC)
    append(wal, b"y" * 3000)
    wal.close()
    assert len(segments(tmp_path)) == 2


def test_an_unfinished_preparation_is_thrown_away(tmp_path):
    fill(tmp_path, [b"x" * 3000])
    (tmp_path / "wal" / "next.tmp").write_bytes(b"half")
    fill(tmp_path, [b"y" * 3000])
    assert payloads_of(tmp_path) == [b"x" * 3000, b"y" * 3000]


def test_a_preparation_that_fails_is_no_error(tmp_path, monkeypatch):
    wal = begin(tmp_path)
    append(wal, b"x" * 3000)
    Fault(monkeypatch, "preallocate", errno.EIO, times=1)
    wal.prepare_next()
    assert not (tmp_path / "wal" / "next.tmp").exists()
    append(wal, b"y" * 3000)
    wal.close()


def test_purge_deletes_covered_segments_only(tmp_path):
    payloads, ends = small_log(tmp_path)
    wal = begin(tmp_path)
    assert wal.purge(1) == 0
    assert wal.purge(6) == 0  # the seal of the first segment is frame 6
    assert wal.purge(7) == 1
    assert wal.first_seq == 7
    assert wal.purge(10**6) == 1
    assert len(segments(tmp_path)) == 1
    append(wal, b"next")
    wal.close()
    assert payloads_of(tmp_path) == [*payloads[10:], b"next"]
    assert payloads_of(tmp_path, ends[11]) == [*payloads[12:], b"next"]
    with pytest.raises(CorruptLog, match="segment 2, which goes on after frame"):
        payloads_of(tmp_path, ends[9])
    with pytest.raises(CorruptLog, match="segment 1, which goes on after frame 0"):
        payloads_of(tmp_path, START)


def test_a_position_outlives_the_purge_of_what_is_before_it(tmp_path):
    payloads, ends = small_log(tmp_path)
    for i, end in enumerate(ends):
        wal = open_wal(tmp_path)
        wal.purge(end.seq + 1)
        assert [f.payload for f in wal.scan(end)] == payloads[i + 1 :]


def test_a_heartbeat_follows_a_frame_once_and_is_no_part_of_what_the_log_says(tmp_path):
    wal = begin(tmp_path)
    wal.heartbeat(1)
    assert segments(tmp_path) == []  # nothing to prove yet
    end = append(wal, b"one")
    size = len(segments(tmp_path)[0].read_bytes().rstrip(b"\0"))
    wal.heartbeat(2)
    beaten = len(segments(tmp_path)[0].read_bytes().rstrip(b"\0"))
    assert beaten > size
    wal.heartbeat(2)
    assert len(segments(tmp_path)[0].read_bytes().rstrip(b"\0")) == beaten
    assert wal.position == end
    append(wal, b"two")
    wal.heartbeat(3)
    wal.close()
    assert payloads_of(tmp_path) == [b"one", b"two"]
    assert payloads_of(tmp_path, end) == [b"two"]
    wal = begin(tmp_path)
    append(wal, b"three")
    wal.close()
    assert payloads_of(tmp_path) == [b"one", b"two", b"three"]


def test_damage_to_the_last_frame_is_no_torn_tail_before_a_heartbeat(
    tmp_path,
):
    wal = begin(tmp_path)
    append(wal, b"one")
    end = append(wal, b"acknowledged")
    wal.heartbeat(3)
    wal.close()
    (path,) = segments(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"acknowledged", b"acknowledgee"))
    with pytest.raises(CorruptLog, match="acknowledged writes are damaged"):
        payloads_of(tmp_path)
    # A heartbeat that never finished is cut like any other frame.
    path.write_bytes(data[: end.offset + 30] + bytes(len(data) - end.offset - 30))
    assert payloads_of(tmp_path) == [b"one", b"acknowledged"]


def test_where_no_heartbeat_fits_the_seal_follows_the_frame(tmp_path):
    wal = begin(tmp_path)
    append(wal, b"x")
    while wal.room:
        append(wal, b"x" * min(500, wal.room))
    wal.heartbeat(9)
    append(wal, b"next")
    wal.close()
    assert payloads_of(tmp_path)[-1] == b"next"
    assert len(segments(tmp_path)) == 2


def test_a_probe_says_whether_the_log_takes_frames(tmp_path, monkeypatch):
    wal = begin(tmp_path)
    append(wal, b"x" * 2000)
    with monkeypatch.context() as patch:
        Fault(patch, "write_at", errno.ENOSPC)
        with pytest.raises(LogFull):
            wal.heartbeat(2, probe=True)
    wal.heartbeat(2, probe=True)
    append(wal, b"y" * 2000)
    with monkeypatch.context() as patch:
        Fault(patch, "preallocate", errno.EDQUOT)
        wal.prepare_next()
        with pytest.raises(LogFull):
            wal.heartbeat(3, probe=True)
        assert wal.refusal is not None
    wal.heartbeat(3, probe=True)
    assert wal.refusal is None
    wal.close()
    assert payloads_of(tmp_path) == [b"x" * 2000, b"y" * 2000]


def test_an_oversize_payload_gets_a_segment_of_its_size(tmp_path):
    wal = begin(tmp_path)
    append(wal, b"before")
    large = b"L" * (5 * SEGMENT)
    with pytest.raises(ValueError, match="a frame takes"):
        append(wal, large)
    wal.append(large, first_index=1, count=1, oversize=True)
    append(wal, b"after")
    wal.close()
    assert payloads_of(tmp_path) == [b"before", large, b"after"]
    assert [path.stat().st_size > 5 * SEGMENT for path in segments(tmp_path)] == [
        False, True, False,
    ]  # fmt: skip


def test_a_slow_sync_is_logged_but_not_each(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("kvd.storage.wal.segment_writer.SLOW_SYNC_S", 0.0)
    wal = begin(tmp_path)
    for _ in range(5):
        append(wal, b"x")
    wal.close()
    assert len([r for r in caplog.records if log_text("the disk is slow") in r.getMessage()]) == 1

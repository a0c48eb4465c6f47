"""Damage before the end of a log: lost, moved and foreign frames and segments."""

import os
import shutil
from itertools import pairwise

import pytest

from kvd.storage.errors import CorruptLog
from tests.support.logs import SEGMENT, begin, fill, open_wal, segments, small_log


def rearranged(tmp_path, order):
    """Rewrite the only segment with its frames in another order."""
    payloads = [b"frame %d" % i for i in range(6)]
    ends = fill(tmp_path, payloads)
    (file,) = segments(tmp_path)
    data = file.read_bytes()
    offsets = [4096, *(end.offset for end in ends)]
    frames = [data[a:b] for a, b in pairwise(offsets)]
    file.write_bytes((data[:4096] + b"".join(frames[i] for i in order)).ljust(SEGMENT, b"\0"))


@pytest.mark.parametrize(
    "order",
    [
        pytest.param([1, 2, 3, 4, 5], id="first lost"),
        pytest.param([0, 1, 3, 4, 5], id="one lost"),
        pytest.param([0, 1, 2, 3, 5], id="last but one lost"),
        pytest.param([0, 1, 1, 2, 3, 4, 5], id="one doubled"),
        pytest.param([0, 1, 2, 3, 4, 5, 5], id="last doubled"),
        pytest.param([0, 1, 2, 3, 4, 5, 0], id="first repeated at the end"),
        pytest.param([0, 2, 1, 3, 4, 5], id="two swapped"),
        pytest.param([0, 1, 2, 3, 5, 4], id="last two swapped"),
    ],
)
def test_lost_doubled_and_moved_frames_are_refused(tmp_path, order):
    rearranged(tmp_path, order)
    with pytest.raises(CorruptLog):
        list(open_wal(tmp_path).scan())


def test_a_frame_of_another_segment_is_refused(tmp_path):
    small_log(tmp_path)
    first, second, _ = segments(tmp_path)
    data = bytearray(second.read_bytes())
    data[4096 : 4096 + 744] = first.read_bytes()[4096 : 4096 + 744]
    second.write_bytes(data)
    with pytest.raises(CorruptLog):
        list(open_wal(tmp_path).scan())


def test_a_segment_of_another_store_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    small_log(tmp_path / "a")
    fill(tmp_path / "b", [b"A" * 700] * 13, store_uuid=bytes(16))
    for ours, theirs in zip(segments(tmp_path / "a"), segments(tmp_path / "b"), strict=True):
        saved = ours.read_bytes()
        shutil.copy(theirs, ours)
        with pytest.raises(CorruptLog, match=r"belongs to store 0{32},"):
            open_wal(tmp_path / "a")
        ours.write_bytes(saved)


def test_a_segment_of_another_log_of_the_same_store_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    small_log(tmp_path / "a")
    fill(tmp_path / "b", [b"z" * 700] * 13)
    for ours, theirs in zip(segments(tmp_path / "a"), segments(tmp_path / "b"), strict=True):
        saved = ours.read_bytes()
        shutil.copy(theirs, ours)
        with pytest.raises(CorruptLog, match="expected frame"):
            list(open_wal(tmp_path / "a").scan())
        ours.write_bytes(saved)


def test_a_missing_segment_is_refused(tmp_path):
    small_log(tmp_path)
    segments(tmp_path)[1].unlink()
    with pytest.raises(CorruptLog, match="segment 2 before it is missing"):
        open_wal(tmp_path)


def test_a_lost_last_segment_is_refused_where_evidence_names_it(tmp_path):
    _, ends = small_log(tmp_path)
    segments(tmp_path)[-1].unlink()
    with pytest.raises(CorruptLog, match="was acknowledged"):
        list(open_wal(tmp_path).scan(must_reach=ends[-1].seq))


@pytest.mark.parametrize("name", ["x.wal", f"{3:016x}.wal", f"{4:016X}-{0xA:016X}.wal"])
def test_a_misnamed_segment_is_refused(tmp_path, name):
    small_log(tmp_path)
    segments(tmp_path)[-1].rename(tmp_path / "wal" / name)
    with pytest.raises(CorruptLog):
        open_wal(tmp_path)


def test_a_renamed_segment_is_refused(tmp_path):
    small_log(tmp_path)
    last = segments(tmp_path)[-1]
    last.rename(last.with_name(f"{3:016x}-{99:016x}.wal"))
    with pytest.raises(CorruptLog, match="the name says"):
        open_wal(tmp_path)


@pytest.mark.parametrize("length", [0, 1, 79, 80, 4095])
def test_a_segment_without_its_header_is_refused(tmp_path, length):
    small_log(tmp_path)
    os.truncate(segments(tmp_path)[-1], length)
    with pytest.raises(CorruptLog, match="the header has 4096 bytes"):
        open_wal(tmp_path)


def test_a_segment_without_its_seal_is_refused(tmp_path):
    small_log(tmp_path)
    first = segments(tmp_path)[0]
    os.truncate(first, first.stat().st_size - 48)
    with pytest.raises(CorruptLog, match="frame 6 is missing, but segment 2 follows"):
        list(open_wal(tmp_path).scan())


def test_bytes_behind_a_seal_are_refused(tmp_path):
    small_log(tmp_path)
    with segments(tmp_path)[0].open("ab") as file:
        file.write(bytes(8))
    with pytest.raises(CorruptLog, match="is sealed here"):
        list(open_wal(tmp_path).scan())


def test_a_flag_of_the_future_is_refused(tmp_path):
    wal = begin(tmp_path)
    wal.append(b"x", first_index=1, count=1, flags=64)
    wal.close()
    with pytest.raises(CorruptLog, match="0x40"):
        list(open_wal(tmp_path).scan())

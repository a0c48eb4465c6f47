"""The end of a log: what is cut, what is damage, and what a flipped bit or a lost byte costs."""

import errno
import logging
import os

import pytest

from kvd.storage.errors import CorruptLog
from kvd.storage.format import frame
from kvd.storage.wal.segments import TornTail
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


def test_a_torn_tail_is_cut_and_kept(tmp_path, caplog):
    payloads, ends = small_log(tmp_path)
    last = segments(tmp_path)[-1]
    before = last.read_bytes()
    start, end = ends[-2].offset, ends[-1].offset
    last.write_bytes(before[: end - 100] + bytes(SEGMENT - end + 100))
    wal = open_wal(tmp_path)
    assert [f.payload for f in wal.scan()] == payloads[:-1]
    torn = wal.torn
    assert torn == TornTail(last, start, end - 100 - start, ends[-2].seq)
    assert caplog.records == []
    wal.begin()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"{last.name}: offset {start}: cut off {torn.length} bytes" in record.getMessage()
    (kept,) = (tmp_path / "quarantine").iterdir()
    assert kept.read_bytes() == before[start : end - 100]
    assert last.read_bytes() == before[:start] + bytes(SEGMENT - start)
    append(wal, b"next")
    wal.close()
    assert payloads_of(tmp_path) == [*payloads[:-1], b"next"]


def test_a_scan_alone_changes_no_byte(tmp_path):
    _, ends = small_log(tmp_path)
    with segments(tmp_path)[-1].open("r+b") as file:
        file.truncate(ends[-1].offset - 3)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    wal = open_wal(tmp_path)
    list(wal.scan())
    assert wal.torn
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("no_sync")
@pytest.mark.parametrize("refill", [False, True], ids=["cut", "cut and zeros"])
def test_every_truncation_of_the_last_frames_gives_exactly_the_prefix(tmp_path, refill):
    payloads = [b"first", b"second frame", b"the third", b"", b"x" * 61, b"last one"]
    ends = fill(tmp_path, payloads)
    (file,) = segments(tmp_path)
    whole = file.read_bytes()
    offsets = [4096, *(end.offset for end in ends)]
    for length in range(offsets[2], offsets[-1] + 1):
        file.write_bytes(whole[:length] + bytes(len(whole) - length if refill else 0))
        complete = sum(offset <= length for offset in offsets[1:])
        if refill and complete < len(payloads):
            # Where only padding was cut off, the zeros bring it back.
            needed = offsets[complete] + frame.essential_size(len(payloads[complete]))
            complete += length >= needed or not any(whole[length:needed])
        wal = open_wal(tmp_path)
        assert [f.payload for f in wal.scan()] == payloads[:complete], f"cut at {length}"
        clean = not any(whole[ends[complete - 1].offset : length])
        assert (wal.torn is None) == clean, f"cut at {length}"


@pytest.mark.usefixtures("no_sync")
def test_every_flipped_bit_is_refused_or_costs_the_last_frame_only(tmp_path):
    wal = begin(tmp_path)
    for payload in (b"a", b"bb" * 20, b"c" * 9, b"dd" * 11, b"eee"):
        append(wal, payload)
        if payload > b"bz":
            append(wal, b"x" * wal.room)  # up to the end of the segment
    end = append(wal, b"last").offset
    wal.close()
    expected = payloads_of(tmp_path)
    outcomes = {"refused": 0, "cut": 0}
    for path in segments(tmp_path):
        whole = path.read_bytes()
        is_last = path == segments(tmp_path)[-1]
        fd = os.open(path, os.O_RDWR)
        for bit in _interesting_bits(whole):
            changed = whole[bit // 8] ^ 1 << bit % 8
            os.pwrite(fd, bytes([changed]), bit // 8)
            try:
                found = payloads_of(tmp_path)
            except CorruptLog:
                outcomes["refused"] += 1
            else:
                assert is_last, f"{path.name}: bit {bit} was not refused"
                kept = expected if bit // 8 >= end else expected[:-1]
                assert found == kept, f"{path.name}: bit {bit}"
                outcomes["cut"] += 1
            os.pwrite(fd, whole[bit // 8 : bit // 8 + 1], bit // 8)
        os.close(fd)
    assert outcomes["refused"] > 10 * outcomes["cut"] > 0


def _interesting_bits(data):
    """Every bit, but one in 64 bytes only in long stretches of one byte."""
    for i, byte in enumerate(data):
        if data[max(0, i - 60) : i + 60] == bytes([byte]) * 120:
            if i % 64 == 0:
                yield i * 8 + i // 64 % 8
        else:
            yield from range(i * 8, i * 8 + 8)


def test_damage_before_an_intact_frame_is_refused_by_place_and_reason(tmp_path):
    _, ends = small_log(tmp_path)
    last = segments(tmp_path)[-1]
    data = bytearray(last.read_bytes())
    data[ends[-3].offset + 200] ^= 1
    last.write_bytes(data)
    with pytest.raises(CorruptLog) as caught:
        list(open_wal(tmp_path).scan())
    bad, intact = ends[-2].seq, ends[-1].seq
    message = str(caught.value)
    assert f"wal/{last.name}: offset {ends[-3].offset}: frame {bad} fails its checksum" in message
    assert f"frame {intact} at {ends[-2].offset} is intact" in message
    assert "\n" not in message
    assert caught.value.exit_status == 65


def test_a_value_that_holds_a_real_frame_never_confuses_recovery(tmp_path):
    fill(tmp_path, [b"the real one"])
    (file,) = segments(tmp_path)
    real = file.read_bytes()[4096 : 4096 + frame.frame_size(12)]
    planted = frame.encode_frame(
        b"planted", seq=3, first_index=1, count=1, flags=0, chain=0, salt=0
    )
    tail = b"".join([real, planted] * 3)
    (second,) = fill(tmp_path, [tail])
    whole = file.read_bytes()
    start = second.offset - frame.frame_size(len(tail))
    assert payloads_of(tmp_path) == [b"the real one", tail]
    for length in range(start + 1, second.offset - 8, 8):
        file.write_bytes(whole[:length].ljust(SEGMENT, b"\0"))
        wal = open_wal(tmp_path)
        assert [f.payload for f in wal.scan()] == [b"the real one"]
        assert wal.torn


def test_a_read_error_is_not_the_end_of_the_log(tmp_path, monkeypatch):
    small_log(tmp_path)
    wal = open_wal(tmp_path)
    Fault(monkeypatch, "read_at", errno.EIO, skip=4)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        list(wal.scan())


def test_damage_larger_than_a_window_is_distinguished_from_a_torn_tail(tmp_path):
    size = 8 * 1024 * 1024
    payloads = [os.urandom(3_000_000) for _ in range(2)]
    ends = fill(tmp_path, payloads, segment_bytes_max=size)
    assert payloads_of(tmp_path) == payloads
    (file,) = segments(tmp_path)
    with file.open("r+b") as opened:
        opened.seek(4096 + 1_500_000)
        opened.write(bytes(600_000))
    with pytest.raises(CorruptLog, match=f"frame 2 at {ends[0].offset} is intact"):
        list(open_wal(tmp_path).scan())


def test_a_seal_that_stands_twice_at_the_end_is_cut_and_kept(tmp_path, caplog):
    """Nothing acknowledged can stand behind the last seal, so it is a tail like any other."""
    payloads = [b"x" * 3000 for _ in range(40)]
    fill(tmp_path, payloads)
    *_, sealed, last = segments(tmp_path)
    last.unlink()
    held = payloads_of(tmp_path)
    whole = sealed.read_bytes()
    sealed.write_bytes(whole + whole[-frame.SEAL_SIZE :])
    wal = open_wal(tmp_path)
    assert [f.payload for f in wal.scan()] == held
    wal.begin()
    (record,) = caplog.records
    assert f"offset {len(whole)}: cut off" in record.getMessage()
    (kept,) = (tmp_path / "quarantine").iterdir()
    assert kept.read_bytes() == whole[-frame.SEAL_SIZE :].rstrip(b"\0")
    append(wal, b"next")
    wal.close()
    assert payloads_of(tmp_path) == [*held, b"next"]


def test_a_log_sealed_but_not_continued_goes_on_in_a_new_segment(tmp_path):
    payloads, ends = small_log(tmp_path)
    segments(tmp_path)[-1].unlink()
    second = segments(tmp_path)[-1]
    with second.open("ab") as file:
        file.write(bytes(500))  # the crash came before the truncation
    wal = open_wal(tmp_path)
    assert [f.payload for f in wal.scan()] == payloads[:10]
    assert (wal.torn, wal.position) == (None, ends[9])
    wal.begin()
    append(wal, b"next")
    wal.close()
    assert payloads_of(tmp_path) == [*payloads[:10], b"next"]
    assert payloads_of(tmp_path, ends[9]) == [b"next"]

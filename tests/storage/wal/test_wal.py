"""storage/wal/wal.py: what was acknowledged comes back, and damage is refused, whatever happens."""

import errno
import logging
import os
import resource
import shutil
from contextlib import contextmanager
from itertools import pairwise

import pytest

from kvd.storage import disk
from kvd.storage.errors import CorruptLog, LogFull
from kvd.storage.format import frame
from kvd.storage.format.frame import START, Position
from kvd.storage.wal.segments import TornTail
from kvd.storage.wal.wal import Wal

UUID = bytes(range(16))
SEGMENT = 8192


def open_wal(root, **options):
    for name in ("wal", "quarantine"):
        (root / name).mkdir(exist_ok=True)
    options = {"store_uuid": UUID, "segment_bytes_max": SEGMENT} | options
    return Wal.open(root / "wal", root / "quarantine", **options)


def begin(root, **options):
    wal = open_wal(root, **options)
    for _ in wal.scan():
        pass
    wal.begin()
    return wal


def append(wal, payload):
    return wal.append(payload, first_index=1, count=1)


def fill(root, payloads, **options):
    """Write a log; return where each of its frames ends."""
    wal = begin(root, **options)
    ends = [append(wal, payload) for payload in payloads]
    wal.close()
    return ends


def payloads_of(root, start=None, **options):
    return [found.payload for found in open_wal(root, **options).scan(start)]


def segments(root):
    return sorted((root / "wal").glob("*.wal"))


def small_log(root):
    """Write three segments of a few short frames each."""
    payloads = [bytes([65 + i]) * 700 for i in range(13)]
    ends = fill(root, payloads)
    assert [end.segment for end in ends] == [1] * 5 + [2] * 5 + [3] * 3
    return payloads, ends


@pytest.fixture
def no_sync(monkeypatch):
    """Skip the syncs in tests that read thousands of damaged logs."""
    for name in ("sync_file", "sync_data", "sync_directory", "drop_cache"):
        monkeypatch.setattr(disk, name, lambda _: None)


class Fault:
    """Lets a call of kvd.storage.disk fail, once or for good."""

    def __init__(self, monkeypatch, name, code, *, skip=0, times=10**9, written=None):
        self.left = times
        real = getattr(disk, name)

        def call(*args):
            nonlocal skip
            skip -= 1
            if skip >= 0 or self.left <= 0:
                return real(*args)
            self.left -= 1
            error = OSError(code, os.strerror(code))
            if written is None:
                raise error
            fd, data, offset = args
            real(fd, data[:written], offset)
            raise disk.PartialWrite(error, written)

        monkeypatch.setattr(disk, name, call)

    def heal(self):
        self.left = 0


# What is written comes back


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


# Going on from a position


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


# Torn tails and damage


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


def test_a_lost_last_segment_is_refused_by_who_knows_better(tmp_path):
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


def test_damage_larger_than_a_window_is_told_from_a_torn_tail(tmp_path):
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


# Cutting to a new segment


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


# A full disk


def refuse_appends(monkeypatch, wal, name, code, payload=b"z" * 3000, **options):
    """Let one append be refused; return what it raised."""
    fault = Fault(monkeypatch, name, code, times=1, **options)
    with pytest.raises(LogFull) as caught:
        append(wal, payload)
    fault.heal()
    assert caught.value.errno == code
    return caught.value


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


# A failing disk


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


# Heartbeats


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


def test_damage_to_the_last_frame_is_told_from_a_torn_tail_by_the_heartbeat_behind_it(tmp_path):
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


# Frames that were allowed under larger segments


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
    monkeypatch.setattr("kvd.storage.wal.wal._SLOW_SYNC_S", 0.0)
    wal = begin(tmp_path)
    for _ in range(5):
        append(wal, b"x")
    wal.close()
    assert len([r for r in caplog.records if "the disk is slow" in r.getMessage()]) == 1

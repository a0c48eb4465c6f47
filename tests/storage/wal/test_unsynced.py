"""Frames that are written without a sync: what a power loss may take, and what stays damage."""

import errno
import os
import random

import pytest

from kvd.storage.errors import CorruptLog
from kvd.storage.format import frame
from kvd.storage.wal.unsynced import Unsynced
from kvd.storage.wal.wal import Wal
from tests.support.logs import SEGMENT, UUID, Fault, append, begin, open_wal, payloads_of, segments
from tests.support.power_loss import Model


def unsynced(wal):
    """Return what writes to a log without syncs; each write says how long the log is then."""
    writer = Unsynced(wal)

    def write(payload):
        if not writer.write(payload, 1, 1):
            writer.append(payload, 1, 1)

    return writer, write


def mixed_log(root):
    """Write a log of three synced frames, two that were synced later, and three that were not.

    Return the payloads, where each frame ends, and the file.
    """
    wal = begin(root)
    ends = [append(wal, b"synced %d" % i * 9) for i in range(3)]
    writer, write = unsynced(wal)
    for i in range(5):
        write(b"unsynced %d" % i * 9)
        ends.append(wal.position)
        if i == 1:
            writer.sync()
    wal.close()
    (file,) = segments(root)
    return payloads_of(root), [end.offset for end in ends], file


def flags_of(root):
    return [found.flags for found in open_wal(root).scan()]


def test_what_was_not_synced_comes_back_when_nothing_was_lost(tmp_path):
    payloads, _, _ = mixed_log(tmp_path)
    assert payloads == [b"synced %d" % i * 9 for i in range(3)] + [
        b"unsynced %d" % i * 9 for i in range(5)
    ]
    assert flags_of(tmp_path) == [0] * 3 + [frame.NOSYNC] * 5


def test_a_frame_says_how_many_before_it_are_not_durable(tmp_path):
    _, ends, file = mixed_log(tmp_path)
    data = file.read_bytes()
    behind = [
        int.from_bytes(data[start + 36 : start + 40], "little") for start in [4096, *ends[:-1]]
    ]
    assert behind == [0, 0, 0, 0, 1, 0, 1, 2]


@pytest.mark.usefixtures("no_sync")
def test_each_byte_of_a_synced_frame_is_refused_before_frames_that_were_not(tmp_path):
    payloads, ends, file = mixed_log(tmp_path)
    whole = file.read_bytes()
    for at in range(4096, ends[4]):
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        file.write_bytes(data)
        with pytest.raises(CorruptLog, match="acknowledged writes are damaged"):
            payloads_of(tmp_path)
    file.write_bytes(whole)
    assert payloads_of(tmp_path) == payloads


@pytest.mark.parametrize("lost", [5, 6])
def test_a_lost_frame_that_was_not_synced_is_cut_with_all_behind_it(tmp_path, caplog, lost):
    payloads, ends, file = mixed_log(tmp_path)
    data = bytearray(file.read_bytes())
    data[ends[lost - 1] : ends[lost]] = bytes(ends[lost] - ends[lost - 1])
    file.write_bytes(data)
    wal = open_wal(tmp_path)
    assert [found.payload for found in wal.scan()] == payloads[:lost]
    wal.begin()
    wal.close()
    assert payloads_of(tmp_path) == payloads[:lost]
    assert not any(file.read_bytes()[ends[lost - 1] :])
    (kept,) = (tmp_path / "quarantine").iterdir()
    assert kept.read_bytes() == data[ends[lost - 1] :].rstrip(b"\0")
    (record,) = caplog.records
    assert "a write that never finished" in record.getMessage()


def test_a_synced_frame_proves_that_all_before_it_were_durable(tmp_path):
    wal = begin(tmp_path)
    append(wal, b"first")
    writer, write = unsynced(wal)
    write(b"a")
    write(b"b")
    synced = wal.append(b"a synced one again", first_index=1, count=1)
    assert writer.durable == synced.seq - 1
    write(b"c")
    wal.close()
    (file,) = segments(tmp_path)
    data = bytearray(file.read_bytes())
    data[data.index(b"KVDF", 4100) + 41] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptLog, match=r"frame 2 fails its checksum .* frame 4 at"):
        payloads_of(tmp_path)


def test_a_heartbeat_and_a_seal_wait_for_what_was_not_synced(tmp_path):
    wal = begin(tmp_path)
    append(wal, b"first")
    writer, write = unsynced(wal)
    write(b"x")
    wal.heartbeat(1)
    assert writer.durable == 2
    while len(wal.segments) == 1:
        write(b"y" * 700)
    assert writer.durable >= wal.segments[1].first_seq - 2
    wal.close()
    assert payloads_of(tmp_path)[:2] == [b"first", b"x"]


def test_after_a_sync_that_failed_nothing_is_written(tmp_path, monkeypatch):
    wal = begin(tmp_path)
    append(wal, b"first")
    writer, write = unsynced(wal)
    write(b"second")
    fault = Fault(monkeypatch, "sync_data", errno.EIO, times=1)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        writer.sync()
    fault.heal()
    assert writer.durable == 1
    with pytest.raises(OSError, match="closed to writing"):
        write(b"third")
    wal.abandon()
    assert payloads_of(tmp_path) == [b"first", b"second"]


def test_room_is_made_before_it_is_needed(tmp_path):
    wal = begin(tmp_path)
    append(wal, b"first")
    writer, write = unsynced(wal)
    for length in (100, 3000, 3000, 9000):
        writer.make_room(length, 1)
        assert wal.room >= length
        before = len(wal.segments)
        write(b"z" * length)
        assert len(wal.segments) == before
    wal.close()
    assert list(map(len, payloads_of(tmp_path))) == [5, 100, 3000, 3000, 9000]


class Life:
    """A life of a log that is synced now and then; counts what a power loss did that it may not."""

    def __init__(self, tmp_path, monkeypatch, seed, *, skip=()):
        self.random = random.Random(seed)
        self.live, self.crashed = tmp_path / "live", tmp_path / "crashed"
        self.quarantine = tmp_path / "quarantine"
        self.live.mkdir()
        self.quarantine.mkdir()
        self.written, self.durable, self.disks, self.violations = [], 0, 0, []
        self.model = Model(monkeypatch, self.step, skip=skip)

    def run(self, writes):
        wal = Wal.open(self.live, self.quarantine, store_uuid=UUID, segment_bytes_max=SEGMENT)
        list(wal.scan())
        wal.begin()
        writer, write = unsynced(wal)
        for i in range(writes):
            self.written.append(b"%d " % i + b"." * self.random.choice((0, 90, 700, 1500)))
            write(self.written[-1])
            if self.random.randrange(4) == 0:
                writer.sync()
                self.durable = len(self.written)
        wal.close()
        self.durable = len(self.written)

    def step(self, model):
        model.active = False
        odds = self.random.random()
        for keep in (lambda: False, lambda: self.random.random() < odds):
            model.lose_power(self.crashed, keep)
            self.disks += 1
            if problem := self.recover():
                self.violations.append(problem)
        model.active = True

    def recover(self):
        try:
            wal = Wal.open(
                self.crashed, self.quarantine, store_uuid=UUID, segment_bytes_max=SEGMENT
            )
            found = [read.payload for read in wal.scan()]
            wal.begin()
            wal.append(b"after", first_index=0, count=1)
            wal.close()
            wal = Wal.open(
                self.crashed, self.quarantine, store_uuid=UUID, segment_bytes_max=SEGMENT
            )
            again = [read.payload for read in wal.scan()]
        except CorruptLog as error:
            return f"refused: {error}"
        if again != [*found, b"after"]:
            return "the log cannot go on"
        if found != self.written[: len(found)] or len(found) < self.durable:
            return f"{len(found)} frames found, {self.durable} of {len(self.written)} durable"
        return None


@pytest.fixture
def life(tmp_path, monkeypatch):
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda _: None)

    def run(seed, writes=30, **options):
        life = Life(tmp_path, monkeypatch, seed, **options)
        life.run(writes)
        return life

    return run


def test_no_power_loss_takes_what_is_durable_or_is_taken_for_damage(life):
    lived = life(1)
    assert lived.disks > 150
    assert lived.violations == []


def test_syncs_that_are_left_out_are_noticed(life):
    assert life(1, writes=20, skip=("sync_data",)).violations

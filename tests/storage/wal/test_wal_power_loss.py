"""Power losses at every step of a log's life, by a model of what a disk has to keep.

The model knows the four assumptions at the head of storage/disk.py and nothing else. After each
call it makes disks as a power loss could leave them, and recovers from them: whatever was
acknowledged must be there, in order, with nothing else but the one append in flight.
"""

import errno
import os
import random
import shutil

import pytest

from kvd.storage import disk
from kvd.storage.errors import CorruptLog, LogFull
from kvd.storage.wal.wal import Wal

UUID = bytes(range(16))
SEGMENT = 8192
SECTOR = 512
CALLS = (
    *("create", "open_to_read", "open_to_write", "preallocate", "truncate", "write_at"),
    *("sync_data", "sync_file", "sync_directory", "rename", "remove"),
)


class Inode:
    """A file: its durable bytes, and what was done to it since."""

    def __init__(self):
        self.durable = bytearray()
        self.pending = []

    def write(self, offset, data):
        while data:
            length = SECTOR - offset % SECTOR
            self.pending.append((offset, bytes(data[:length])))
            offset, data = offset + length, data[length:]

    def content(self, keep):
        data = bytearray(self.durable)
        for change in self.pending:
            if not keep():
                continue
            match change:
                case int(size):
                    data = data[:size].ljust(size, b"\0")
                case offset, piece:
                    data = data.ljust(offset, b"\0")
                    data[offset : offset + len(piece)] = piece
        return data

    def sync(self):
        self.durable = self.content(lambda: True)
        self.pending = []


class Model:
    """One directory on a disk that may lose its power after any call."""

    def __init__(self, monkeypatch, on_step, *, skip=()):
        self.active = True
        self.on_step = on_step
        self.skip = skip
        self.refuse = 0
        self.files = {}
        self.names = {}
        self.pending = []
        self.open = {}
        self.real = {name: getattr(disk, name) for name in CALLS}
        for name in CALLS:
            monkeypatch.setattr(disk, name, lambda *args, name=name: self.call(name, *args))

    def call(self, name, *args):
        if not self.active:
            return self.real[name](*args)
        if self.refuse and name in ("preallocate", "write_at"):
            self.refuse -= 1
            if not self.refuse:
                return self.short_write(*args) if name == "write_at" else self.no_space()
        result = self.real[name](*args)
        if name not in self.skip:
            getattr(self, name)(result, *args)
        self.on_step(self)
        return result

    def no_space(self):
        raise OSError(errno.ENOSPC, "full")

    def short_write(self, fd, data, offset):
        written = len(data) - 16
        self.real["write_at"](fd, data[:written], offset)
        self.open[fd].write(offset, data[:written])
        self.on_step(self)
        raise disk.PartialWrite(OSError(errno.ENOSPC, "full"), written)

    def create(self, fd, path):
        self.open[fd] = self.files[path.name] = Inode()
        self.pending.append({path.name: self.open[fd]})

    def open_to_write(self, fd, path):
        self.open[fd] = self.files[path.name]

    open_to_read = open_to_write

    def preallocate(self, _, fd, size):
        self.open[fd].pending.append(size)

    truncate = preallocate

    def write_at(self, _, fd, data, offset):
        self.open[fd].write(offset, data)

    def sync_file(self, _, fd):
        self.open[fd].sync()

    sync_data = sync_file

    def rename(self, _, source, target):
        self.files[target.name] = self.files.pop(source.name)
        self.pending.append({source.name: None, target.name: self.files[target.name]})

    def remove(self, _, path):
        del self.files[path.name]
        self.pending.append({path.name: None})

    def sync_directory(self, *_):
        self.names = self.names_with(lambda: True)
        self.pending = []

    def names_with(self, keep):
        names = dict(self.names)
        for change in self.pending:
            if keep():
                names |= change
        return {name: inode for name, inode in names.items() if inode is not None}

    def lose_power(self, directory, keep):
        """Write the directory as it may be found afterwards."""
        if directory.exists():
            shutil.rmtree(directory)
        directory.mkdir()
        for name, inode in self.names_with(keep).items():
            (directory / name).write_bytes(inode.content(keep))


class Trial:
    """A scripted life of a log; counts the disks after which something acknowledged is wrong."""

    def __init__(self, tmp_path, monkeypatch, seed, *, skip=()):
        self.random = random.Random(seed)
        self.crashed = tmp_path / "crashed"
        self.live = tmp_path / "live"
        self.quarantine = tmp_path / "quarantine"
        self.live.mkdir()
        self.quarantine.mkdir()
        self.acked = []
        self.floor = 0
        self.in_flight = None
        self.disks = 0
        self.violations = []
        self.model = Model(monkeypatch, self.step, skip=skip)

    def run(self, appends):
        wal = self.open(self.live)
        for i in range(appends):
            self.in_flight = b"%d " % i + b"." * self.random.choice((0, 90, 700, 1500, 2900))
            self.model.refuse = self.random.choice((0, 0, 0, 1, 2, 3))
            try:
                wal.append(self.in_flight, first_index=i, count=1)
            except LogFull:
                self.in_flight = None
            else:
                self.acked.append(self.in_flight)
                self.in_flight = None
            self.model.refuse = 0
            match self.random.randrange(6):
                case 0:
                    wal.prepare_next()
                case 1:
                    self.floor = len(self.acked)
                    wal.purge(wal.position.seq + 1)
                case 2:
                    wal.close()
                    wal = self.open(self.live)
        wal.close()

    def open(self, directory):
        wal = Wal.open(directory, self.quarantine, store_uuid=UUID, segment_bytes_max=SEGMENT)
        for _ in wal.scan():
            pass
        wal.begin()
        return wal

    def step(self, model):
        model.active = False
        odds = self.random.random()
        chances = (lambda: False, lambda: True, lambda: self.random.random() < odds)
        for keep in chances:
            model.lose_power(self.crashed, keep)
            self.disks += 1
            problem = self.recover()
            if problem:
                self.violations.append(problem)
        model.active = True

    def recover(self):
        try:
            wal = self.open(self.crashed)
            found = [f.payload for f in wal.scan()]
            wal.append(b"after", first_index=0, count=1)
            wal.close()
            wal = self.open(self.crashed)
            again = [f.payload for f in wal.scan()]
            wal.close()
        except CorruptLog as error:
            return f"refused: {error}"
        if again != [*found, b"after"]:
            return "the log cannot go on"
        expected = [*self.acked, self.in_flight]
        for allowed in (expected[:-1], expected):
            if allowed[len(allowed) - len(found) :] == found and len(found) >= (
                len(allowed) - self.floor
            ):
                return None
        return f"{len(found)} frames found, {len(self.acked)} acknowledged, {self.floor} purged"


@pytest.fixture
def trial(tmp_path, monkeypatch):
    # What recovery itself does to the crashed disk needs no real disk.
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda _: None)

    def run(seed, appends=22, **options):
        trial = Trial(tmp_path, monkeypatch, seed, **options)
        trial.run(appends)
        return trial

    return run


@pytest.mark.parametrize("seed", range(2))
def test_no_power_loss_loses_anything(trial, seed):
    result = trial(seed)
    assert result.disks > 300
    assert result.violations == []


@pytest.mark.parametrize("call", ["sync_data", "sync_file", "sync_directory"])
def test_a_sync_that_is_left_out_is_noticed(trial, call):
    assert trial(0, appends=15, skip=(call,)).violations

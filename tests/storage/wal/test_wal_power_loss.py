"""Power losses at every step of a log's life, by a model of what a disk has to keep.

After each call the model makes disks as a power loss could leave them, and the log is recovered
from them: whatever was acknowledged must be there, in order, with nothing else but the one append
in flight.
"""

import os
import random

import pytest

from kvd.storage.errors import CorruptLog, LogFull
from kvd.storage.wal.wal import Wal
from tests.support.power_loss import Model

UUID = bytes(range(16))
SEGMENT = 8192


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

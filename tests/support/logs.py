"""Logs for tests of kvd.storage.wal: made, filled, and failing at a call."""

import os

import pytest

from kvd.storage import disk
from kvd.storage.errors import LogFull
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


def refuse_appends(monkeypatch, wal, name, code, payload=b"z" * 3000, **options):
    """Let one append be refused; return what it raised."""
    fault = Fault(monkeypatch, name, code, times=1, **options)
    with pytest.raises(LogFull) as caught:
        append(wal, payload)
    fault.heal()
    assert caught.value.errno == code
    return caught.value

"""A real power cut: ext4 on a loop device, told to shut down without writing anything more.

`EXT4_IOC_SHUTDOWN` (what xfstests calls godown) drops whatever the file system has not written; the
next mount replays its journal, as after a power cut. The machine and its clock go on.
"""

import ctypes
import fcntl
import os
import random
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path

from kvd.testing.crash import Clients, Ledger, Request
from tests.crash.lab.experiment import Experiment, Skipped, Trial, Violation
from tests.crash.lab.killing import FLAGS, start
from tests.crash.lab.process import Kvd

_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
_NO_LOG_FLUSH = 2
_WRITE_AND_WAIT = 7  # SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE and _WAIT_AFTER
_PAGE = 4096
_FORCED_CUTS = 12
_IMAGE_BYTES = 192 << 20
_OPTIONS = ("defaults", "commit=1", "data=writeback")


class LoopDisk:
    """A file system in a file, which may lose its power."""

    def __init__(self, image: Path, place: Path) -> None:
        self.image = image
        self.place = place

    def make(self, size: int = _IMAGE_BYTES, *options: str) -> None:
        """Make the file system; `Skipped` where the machine does not allow it."""
        if os.geteuid() != 0:
            raise Skipped("mounting a file system needs root")
        if shutil.which("mkfs.ext4") is None:
            raise Skipped("mkfs.ext4 is not installed")
        with self.image.open("wb") as file:
            file.truncate(size)
        made = subprocess.run(
            ["mkfs.ext4", "-q", "-F", *options, str(self.image)], capture_output=True, check=False
        )
        if made.returncode != 0:
            raise Skipped(f"mkfs.ext4 fails: {made.stderr.decode().strip()}")
        self.place.mkdir(exist_ok=True)

    def mount(self, options: str) -> None:
        """Mount it; the journal is replayed."""
        mounted = subprocess.run(
            ["mount", "-o", f"loop,{options}", str(self.image), str(self.place)],
            capture_output=True,
            check=False,
        )
        if mounted.returncode != 0:
            raise Skipped(f"no loop device can be mounted: {mounted.stderr.decode().strip()}")

    def cut_power(self) -> float:
        """Drop all that is not on the disk; nothing can be read or written any more.

        Return the monotonic time at which it began. A sync that ends while that goes on (some two
        milliseconds) is told to have succeeded though it is lost: so it is to any program that
        writes and syncs. What was acknowledged after that time proves nothing.
        """
        began = time.monotonic()
        fd = os.open(self.place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)
        return began

    def unmount(self) -> None:
        """Unmount it, waiting for whoever still has a file open."""
        for _ in range(100):
            if (
                subprocess.run(
                    ["umount", str(self.place)], capture_output=True, check=False
                ).returncode
                == 0
            ):
                return
            time.sleep(0.02)
        subprocess.run(["umount", "-l", str(self.place)], check=False)


@contextmanager
def loop_disk(
    directory: Path, *made: str, size: int = _IMAGE_BYTES, options: str = _OPTIONS[0]
) -> Iterator[LoopDisk]:
    """A mounted disk with its image in a directory, unmounted at the end."""
    disk = LoopDisk(directory / "disk.img", directory / "disk")
    disk.make(size, *made)
    disk.mount(options)
    try:
        yield disk
    finally:
        with suppress(OSError):
            disk.unmount()


def power_cut(trial: Trial) -> None:
    """Cut the power of the file system under 16 writers, at a random time, again and again."""
    ledger = Ledger()
    clients = Clients(16, trial.seed)
    with loop_disk(trial.directory) as disk:
        data = disk.place / "data"
        with Kvd(data, *FLAGS, mutant=trial.mutant) as kvd:
            start(kvd)
            for cuts in range(1, trial.rounds + 1):
                if cuts == 1 or trial.dice.random() < 0.3:
                    # An index that was synced once and not again is the one that looks good.
                    kvd.terminate()
                    start(kvd)
                clients.start(kvd.url)
                time.sleep(trial.dice.uniform(0.02, 0.6))
                _write_back_a_part(data / "index" / "data.mdb", trial.dice)
                cut_at = disk.cut_power()
                kvd.kill()
                ops = [op if op.end < cut_at else unanswered(op) for op in clients.join()]
                disk.unmount()
                options = trial.dice.choice(_OPTIONS)
                disk.mount(options)
                start(kvd)
                trial.sample("ready after a power cut", kvd.ready_s)
                # Clients are asked before anything else: what they were told must be there.
                ledger.check(ops, kvd.url)
                trial.count("torn tails cut off", kvd.stderr.count("cut off"))
                rebuilt = re.search(r"from (log|snapshot)", kvd.stderr) is not None
                trusted = not rebuilt or "rebuilt:" in kvd.stderr
                trial.check(
                    not trusted or trial.mutant == "trust-index",
                    f"after a power cut the index is trusted: {kvd.stderr[-300:]}",
                )
                trial.count("indexes rebuilt", int(rebuilt))
                trial.figures["power cuts"] = cuts
                trial.figures["acknowledged writes"] = ledger.acked
                trial.figures["lost"] = 0
                trial.progress(cuts)


def unanswered(op: Request) -> Request:
    """Return a request as one whose answer never came."""
    return Request(op.method, op.key, op.params, op.start)


def _write_back_a_part(path: Path, dice: random.Random) -> None:
    """Have the kernel write some pages of the index, as it does when it needs memory."""
    sync_file_range = ctypes.CDLL(None).sync_file_range
    fd = os.open(path, os.O_RDWR)
    try:
        for page in range(min(400, os.fstat(fd).st_size // _PAGE)):
            if dice.random() < 0.5:
                offset, length = ctypes.c_int64(page * _PAGE), ctypes.c_int64(_PAGE)
                sync_file_range(fd, offset, length, _WRITE_AND_WAIT)
    finally:
        os.close(fd)


def forced_reuse(trial: Trial) -> None:
    """Force a server to use its index after power cuts, until somebody notices."""
    for done in range(1, trial.rounds + 1):
        place = trial.directory / str(done)
        place.mkdir()
        mutant = trial.mutant or "trust-index"
        inner = Trial(place, trial.dice.randrange(1 << 32), rounds=_FORCED_CUTS, mutant=mutant)
        try:
            power_cut(inner)
        except (Violation, ConnectionError, HTTPException) as noticed:
            by_answers = isinstance(noticed, Violation) and "does not start" not in str(noticed)
            trial.count("noticed by comparing answers" if by_answers else "refused by kvd")
        else:
            # An index that kvd itself finds damaged is built anew.
            trial.check(
                mutant == "trust-index" and inner.figures["indexes rebuilt"],
                f"an index was used after {_FORCED_CUTS} power cuts, and nobody noticed",
            )
            trial.count("found damaged by kvd and rebuilt")
        trial.count("power cuts", int(inner.figures.get("power cuts", 0)) + 1)
        shutil.rmtree(place)
        trial.figures["forced"] = done
        trial.progress(done)


EXPERIMENTS = (
    Experiment(
        "power-cut",
        "after a power cut of a real ext4 no acknowledged write is lost, and an index that may "
        "have lost something is not used again",
        ("no-fsync", "clean-stays"),
        *(200, 2, "power cuts", power_cut),
    ),
    Experiment(
        "forced-reuse",
        "an index that is forced into use after a power cut is noticed: what it has lost is there "
        "to be seen",
        ("none",),
        *(20, 1, "indexes", forced_reuse),
    ),
)

"""A real power cut: ext4 on a loop device, told to shut down without writing anything more.

`EXT4_IOC_SHUTDOWN` (what xfstests calls godown) drops whatever the file system has not written; the
next mount replays its journal, as after a power cut. The machine and its clock go on.
"""

import fcntl
import os
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.crash.lab.experiment import Experiment, Skipped, Trial
from tests.crash.lab.killing import FLAGS, settle, start
from tests.crash.lab.ledger import Ledger
from tests.crash.lab.process import Kvd
from tests.crash.lab.workload import Clients

_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
_NO_LOG_FLUSH = 2
_IMAGE_BYTES = 192 << 20
_OPTIONS = ("defaults", "commit=1", "data=writeback")


class LoopDisk:
    """A file system in a file, which may lose its power."""

    def __init__(self, image: Path, place: Path) -> None:
        self._image = image
        self.place = place

    def make(self) -> None:
        """Make the file system; `Skipped` where the machine does not allow it."""
        if os.geteuid() != 0:
            raise Skipped("mounting a file system needs root")
        if shutil.which("mkfs.ext4") is None:
            raise Skipped("mkfs.ext4 is not installed")
        with self._image.open("wb") as file:
            file.truncate(_IMAGE_BYTES)
        made = subprocess.run(
            ["mkfs.ext4", "-q", "-F", str(self._image)], capture_output=True, check=False
        )
        if made.returncode != 0:
            raise Skipped(f"mkfs.ext4 fails: {made.stderr.decode().strip()}")
        self.place.mkdir()

    def mount(self, options: str) -> None:
        """Mount it; the journal is replayed."""
        mounted = subprocess.run(
            ["mount", "-o", f"loop,{options}", str(self._image), str(self.place)],
            capture_output=True,
            check=False,
        )
        if mounted.returncode != 0:
            raise Skipped(f"no loop device can be mounted: {mounted.stderr.decode().strip()}")

    def cut_power(self) -> None:
        """Drop all that is not on the disk; nothing can be read or written any more."""
        fd = os.open(self.place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)

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
def loop_disk(trial: Trial) -> Iterator[LoopDisk]:
    """A mounted disk, unmounted at the end."""
    disk = LoopDisk(trial.directory / "disk.img", trial.directory / "disk")
    disk.make()
    disk.mount(_OPTIONS[0])
    try:
        yield disk
    finally:
        with suppress(OSError):
            disk.unmount()


def power_cut(trial: Trial) -> None:
    """Cut the power of the file system under 16 writers, at a random time, again and again."""
    ledger = Ledger()
    clients = Clients(16, trial.seed)
    with loop_disk(trial) as disk:
        data = disk.place / "data"
        with Kvd(data, *FLAGS, mutant=trial.mutant) as kvd:
            start(kvd)
            for cuts in range(1, trial.rounds + 1):
                if trial.dice.random() < 0.3:
                    # An index that was synced once and not again is the one that looks good.
                    kvd.terminate()
                    start(kvd)
                clients.start(kvd.port)
                time.sleep(trial.dice.uniform(0.02, 0.6))
                disk.cut_power()
                kvd.kill()
                ops = clients.join()
                disk.unmount()
                options = trial.dice.choice(_OPTIONS)
                disk.mount(options)
                start(kvd)
                # Clients are asked before anything else: what they were told must be there.
                settle(ledger, ops, kvd.port)
                trial.count("torn tails cut off", kvd.stderr.count("cut off"))
                trial.count(
                    "indexes rebuilt", int(re.search(r"from (log|snap)", kvd.stderr) is not None)
                )
                trial.figures["power cuts"] = cuts
                trial.figures["acknowledged writes"] = ledger.acked
                trial.figures["lost"] = 0
                trial.progress(cuts)


EXPERIMENTS = (
    Experiment(
        "power-cut",
        "after a power cut of a real ext4 no acknowledged write is lost, and an index that may "
        "have lost something is not used again",
        ("no-fsync",),
        *(200, 2, "power cuts", power_cut),
    ),
)

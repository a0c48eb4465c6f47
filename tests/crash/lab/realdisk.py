"""Block devices of the kernel: syncs that fail, and snapshots of a device under load.

`fsync-lost`: ext4 on a loop device whose image lies, full of holes, on a file system too small for
it. ext4 believes that there is room; a sync finds out. The first one fails, the second succeeds,
reads show the bytes, and they are not on the disk.

`block-image`: a server is stopped amid its writes, its disk is copied, and it goes on. The copy is
what a power cut at that moment would have left.
"""

import copy
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvd.testing.crash import Clients, Ledger
from tests.crash.lab.experiment import Experiment, Skipped, Trial, Violation
from tests.crash.lab.killing import FLAGS, SMALL_FLAGS, check_directory, start
from tests.crash.lab.powercut import LoopDisk, loop_disk
from tests.crash.lab.powerloss import fast_directory
from tests.crash.lab.process import Kvd, NotListening

_EXIT_IO = 74
_END_S = 60.0
_ROOMY = "size=400m"
_EXT4_BYTES = 128 << 20
_EXT4 = ("-b", "4096", "-J", "size=4", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0")
_COMMITS = 400  # of the journal, which fill its 4 MB
_LEFT_BYTES = 3 << 19
# The log only grows, so that it needs room that the disk has not given yet.
_FLAGS = (*SMALL_FLAGS, "--snapshot-count", "1000000")
_IMAGE_BYTES = 48 << 20
# A life of more images writes more than the disk has room for, with an index that is built anew.
_IMAGES_PER_LIFE = 10


@contextmanager
def _tmpfs(place: Path) -> Iterator[Path]:
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"{_ROOMY},mode=700", "crashlab", str(place)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode != 0:
        raise Skipped(f"tmpfs cannot be mounted: {mounted.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def _resize(place: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{size}", str(place)], check=True)


def fsync_lost(trial: Trial) -> None:
    """Have a sync fail as thin disks fail; then give room, restart, and cut the power."""
    for done in range(1, trial.rounds + 1):
        place = trial.directory / f"thin-{done}"
        with _tmpfs(place), loop_disk(place, *_EXT4, size=_EXT4_BYTES) as disk:
            _make_thin(disk, place)
            with kept_on_violation(trial, disk.place / "data"):
                _meet_a_failing_sync(trial, place, disk, done)
        place.rmdir()
        trial.figures["failed syncs"] = done
        trial.figures["lost"] = 0
        trial.progress(done)


@contextmanager
def kept_on_violation(trial: Trial, data: Path) -> Iterator[None]:
    """Copy a data directory from a disk that will be gone, when a promise was broken there."""
    try:
        yield
    except Violation:
        shutil.copytree(data, trial.directory / "found")
        raise


def _make_thin(disk: LoopDisk, place: Path) -> None:
    """Take all room but a little from the disk's image.

    The journal gets its blocks before: it is the log's own bytes that shall find no room.
    """
    file = disk.place / "journal"
    for _ in range(_COMMITS):
        fd = os.open(file, os.O_WRONLY | os.O_CREAT)
        os.fsync(fd)
        os.close(fd)
        file.unlink()
    # Linux's loop device takes a request that its file took in part for done, and a sync then says
    # that all is well: let each request be one page, which is taken or not.
    stat = disk.place.stat()
    queue = Path(f"/sys/dev/block/{os.major(stat.st_dev)}:{os.minor(stat.st_dev)}/queue")
    (queue / "max_sectors_kb").write_text("4")
    used = shutil.disk_usage(place).used
    _resize(place, f"size={used + _LEFT_BYTES}")


def _meet_a_failing_sync(trial: Trial, place: Path, disk: LoopDisk, done: int) -> None:
    ledger = Ledger()
    clients = Clients(4, f"{trial.seed} {done}")
    with Kvd(disk.place / "data", *_FLAGS, mutant=trial.mutant) as kvd:
        start(kvd)
        clients.start(kvd.url)
        try:
            status = kvd.wait(_END_S)
        except subprocess.TimeoutExpired:
            raise Violation("a disk that has no room lets the server go on for a minute") from None
        ops = clients.join()
        trial.check(status == _EXIT_IO, f"exit status {status}: {kvd.stderr[-300:]}")
        _resize(place, _ROOMY)
        try:
            kvd.start()
        except NotListening as error:
            # The file system gave itself up, too; then the power cut is what helps.
            trial.check("Traceback" not in str(error), f"a bug: {error}")
            trial.count("restarts refused by the file system")
        else:
            ledger.check(ops, kvd.url)
            ops = []
            trial.count("restarts that served")
        served = ledger.state.index
        disk.cut_power()
        kvd.stop()
        disk.unmount()
        disk.mount("defaults")
        start(kvd)
        ledger.check(ops, kvd.url)
        trial.check(
            ledger.state.index >= served,
            f"index {served} was served, after a power cut it is {ledger.state.index}",
        )
        trial.count("acknowledged writes", ledger.acked)


def block_image(trial: Trial) -> None:
    """Copy the disk of a stopped server again and again; mount each copy and recover it."""
    with tempfile.TemporaryDirectory(dir=fast_directory()) as fast:
        for first in range(0, trial.rounds, _IMAGES_PER_LIFE):
            place = Path(fast) / str(first)
            place.mkdir()
            number = min(_IMAGES_PER_LIFE, trial.rounds - first)
            # Only syncs write: the journal's own timer must not while the copy is made.
            with loop_disk(place, *_EXT4, size=_IMAGE_BYTES, options="commit=600") as disk:
                _take_images(trial, disk, first, number)
            shutil.rmtree(place)


def _take_images(trial: Trial, disk: LoopDisk, first: int, number: int) -> None:
    clients = Clients(8, f"{trial.seed} {first}")
    received = []
    with Kvd(disk.place / "data", *FLAGS, mutant=trial.mutant) as kvd:
        start(kvd)
        clients.start(kvd.url)
        for done in range(first + 1, first + number + 1):
            time.sleep(trial.dice.uniform(0.005, 0.05))
            kvd.signal(signal.SIGSTOP)
            time.sleep(0.02)  # what is on its way to the disk arrives
            received = [copy.copy(op) for op in clients.requests]
            image = disk.image.with_name("image")
            shutil.copyfile(disk.image, image)
            kvd.signal(signal.SIGCONT)
            _look_at_image(trial, LoopDisk(image, disk.place.with_name("mounted")), received)
            trial.figures["images"] = done
            trial.figures["lost"] = 0
            trial.progress(done)
        kvd.kill()
    clients.join()
    trial.count("acknowledged writes", sum(op.acked for op in received))


def _look_at_image(trial: Trial, disk: LoopDisk, received: list) -> None:
    disk.place.mkdir(exist_ok=True)
    disk.mount("defaults")
    data = disk.place / "data"
    try:
        trial.check(data.exists(), "the data directory is not on the disk")
        with kept_on_violation(trial, data):
            check_directory(data, received)
    finally:
        disk.unmount()


EXPERIMENTS = (
    Experiment(
        "fsync-lost",
        "a sync that a full thin disk fails ends the server; what a restart serves is on the disk, "
        "also after a power cut",
        ("retry-fsync", "keep-cache"),
        *(20, 1, "failed syncs", fsync_lost),
    ),
    Experiment(
        "block-image",
        "a copy of the disk taken at any moment mounts, and recovers to all that was acknowledged "
        "by then",
        ("no-fsync",),
        *(200, 2, "images", block_image),
    ),
)

"""Bits of the index's file, turned under a server's feet; what it then tells its clients."""

from pathlib import Path
from random import Random
from struct import unpack_from

from kvd.storage.index.integrity.lmdb_file import look_up
from kvd.testing.crash import DISCONNECTED, Connection, File
from tests.crash.lab.damage import make_store
from tests.crash.lab.disks import Found
from tests.crash.lab.experiment import Experiment, Trial
from tests.crash.lab.process import Kvd, NotListening

_PAGE = 4096
_HEAD_BYTES = 16
_IS_LEAF, _UPPER_AT = 0x02, 14
_WRITES = 30
# So many of a hundred bits are turned before the server starts, the others while it runs.
_COLD = 10
# One in so many is turned in a row that is read next: most pages are free ones.
_IN_ROW_EACH = 3
_EXIT_BUG = 70


def leaves(file: Path, table: bytes) -> list[int]:
    """Return the pages of an index that hold the rows of a table now."""
    record = look_up(file, None, table)
    assert record is not None
    (root,) = unpack_from("<Q", record, 40)
    data, found, waiting = file.read_bytes(), [], [root]
    while waiting:
        page = waiting.pop()
        if page * _PAGE >= len(data):  # there is no row, so no page
            continue
        flags, lower = unpack_from("<HH", data, page * _PAGE + 10)
        if flags & _IS_LEAF:
            found.append(page)
            continue
        for at in unpack_from(f"<{(lower - _HEAD_BYTES) // 2}H", data, page * _PAGE + _HEAD_BYTES):
            low, high, top = unpack_from("<HHH", data, page * _PAGE + at)
            waiting.append(low | high << 16 | top << 32)
    return found


class Target:
    """A stopped store, its files as they were, and a server for it."""

    def __init__(self, directory: Path, whole: Found | None, mutant: str | None) -> None:
        self.whole = whole
        self.kvd = Kvd(directory, mutant=mutant)
        self._directory = directory
        self._kept = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
        self.file = directory / "index" / "data.mdb"
        # The marks speak of one inode, which a rebuild replaces.
        self._inode = directory.with_name("data.mdb")
        self._inode.hardlink_to(self.file)
        good = self._kept[self.file]
        self.pages = [
            page
            for page in range(len(good) // _PAGE)
            if any(good[page * _PAGE : (page + 1) * _PAGE])
        ]
        self._rows = [page * _PAGE for page in leaves(self.file, b"nodes")]

    def bit(self, dice: Random, *, in_row: bool) -> int:
        """Draw a bit of the file; with `in_row`, of what a row of `nodes` holds now."""
        if not in_row:
            return 8 * _PAGE * dice.choice(self.pages) + dice.randrange(8 * _PAGE)
        page = dice.choice(self._rows)
        (upper,) = unpack_from("<H", self._kept[self.file], page + _UPPER_AT)
        return 8 * page + dice.randrange(8 * upper, 8 * _PAGE)

    def restore(self) -> None:
        """End the server and put everything back, each file in its inode."""
        self.kvd.stop()
        for path in [path for path in self._directory.rglob("*") if path.is_file()]:
            if path not in self._kept:
                path.unlink()
        self.file.unlink()
        self.file.hardlink_to(self._inode)
        for path, content in self._kept.items():
            path.write_bytes(content)

    def flip(self, bit: int) -> None:
        """Turn one bit, in place."""
        with self.file.open("r+b", buffering=0) as file:
            file.seek(bit // 8)
            byte = file.read(1)[0]
            file.seek(bit // 8)
            file.write(bytes([byte ^ 1 << bit % 8]))


def index_flip(trial: Trial) -> None:
    """Turn a random bit of the index and GET every key: right, or the server ends.

    Rows have checksums, the pages by which LMDB finds them have none: a key may be missed there.
    """
    directory = trial.directory / "data"
    whole = make_store(directory, _WRITES, trial.mutant, clean=True, value_bytes=4000)
    target = Target(directory, whole, trial.mutant)
    with target.kvd as kvd:
        for done in range(1, trial.rounds + 1):
            in_row = done % _IN_ROW_EACH == 0
            bit = target.bit(trial.dice, in_row=in_row)
            live = in_row or trial.dice.randrange(100) >= _COLD
            # What has been read once is in memory: such a row must be read first by this server.
            if in_row or not live or not kvd.running():
                target.restore()
                if not live:
                    target.flip(bit)
                try:
                    kvd.start()
                except NotListening:
                    trial.count("starts refused")
            if kvd.running():
                _look(trial, target, bit, live=live)
            if not live:
                target.restore()
            trial.figures["bits"] = done
            trial.figures["wrong values"] = 0
            trial.progress(done)


def _look(trial: Trial, target: Target, bit: int, *, live: bool) -> None:
    """Read every key of a server whose index has a turned bit."""
    kvd = target.kvd
    if live:
        target.flip(bit)
    elif "rebuilt" in kvd.stderr:
        trial.count("starts that built the index anew")
    try:
        missing = _read_all(trial, target, bit)
    except DISCONNECTED:
        status = kvd.wait(20)
        trial.count("ended by a signal" if status < 0 else f"ended with {status}")
        trial.check(status != _EXIT_BUG, f"bit {bit}: a bug: {kvd.stderr[-600:]}")
    else:
        trial.count("keys said to be missing", missing)
        trial.count("some keys said to be missing" if missing else "all keys served right")
        if live:
            target.flip(bit)


def _read_all(trial: Trial, target: Target, bit: int) -> int:
    missing = 0
    with Connection(target.kvd.url, timeout_s=5) as connection:
        for key, file in target.whole.files.items():
            op = connection.get(key)
            node = op.body.get("node", {})
            if op.status == 404:
                missing += 1
                continue
            found = File(node.get("value", ""), node["createdIndex"], node["modifiedIndex"])
            trial.check(found == file, f"bit {bit}: {key} is served as {found}, expected {file}")
    return missing


EXPERIMENTS = (
    Experiment(
        "index-flip",
        "a turned bit of the index's file is never served: a value is the right one or not found, "
        "or the server ends or builds the index anew",
        ("no-index-crc",),
        *(10_000, 30, "bits", index_flip),
    ),
)

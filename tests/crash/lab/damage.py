"""Bytes that are not what they were: cut off, or with one bit the other way round."""

import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from kvd.storage import disk, replay, store
from kvd.storage.format import document, event, expiration, frame, node, sums
from kvd.storage.format.frame import PAGE_SIZE
from kvd.storage.index import environment as index
from kvd.storage.index import reuse
from kvd.storage.index.integrity import completeness
from kvd.storage.snapshot import directory as snapshot
from kvd.storage.tools import source, verify
from kvd.storage.wal import segments
from kvd.storage.wal.wal import Wal
from kvd.testing.crash import Connection
from tests.crash.lab.disks import SEGMENT_BYTES, Found, recover, verified
from tests.crash.lab.experiment import ALL, Experiment, Trial, Violation
from tests.crash.lab.killing import SMALL_FLAGS, start
from tests.crash.lab.mutant import MUTANTS
from tests.crash.lab.powerloss import fast_directory
from tests.crash.lab.process import Kvd

_VERIFY_EACH = 8
_CHANGED_BY_BUGS = (
    *(disk, frame, index, node, replay, segments, snapshot, source, store, verify),
    *(completeness, reuse, document, event, expiration, sums),
)


@contextmanager
def bug(name: str | None) -> Iterator[None]:
    """Put a bug into this very process for a while."""
    saved = [(module, dict(vars(module))) for module in _CHANGED_BY_BUGS]
    try:
        if name is not None:
            MUTANTS[name]()
        yield
    finally:
        for module, names in saved:
            vars(module).update(names)


def make_store(
    directory: Path,
    writes: int,
    mutant: str | None,
    *flags: str,
    clean: bool,
    with_snapshot: bool = False,
    value_bytes: int = 150,
) -> Found:
    """Have a server write a small store, one write a frame; return what is in it."""
    with Kvd(directory, *SMALL_FLAGS, *flags, mutant=mutant) as kvd:
        start(kvd)
        connection = Connection(kvd.url)
        for number in range(writes):
            value = f"{number}." + "v" * (number * 37 % value_bytes)
            if number % 5 == 4:
                connection.delete(f"/k/{number - 1}")
            else:
                connection.put(f"/k/{number}", value)
        connection.close()
        end = time.monotonic() + 20
        while with_snapshot and not list((directory / "snap").glob("*.snap")):
            if time.monotonic() > end:
                raise Violation("no snapshot was made")
            time.sleep(0.02)
        if clean:
            kvd.terminate()
        else:
            kvd.kill()
    copy = directory.with_name(directory.name + "-copy")
    shutil.copytree(directory, copy)
    with bug(mutant):
        found = recover(copy)
    shutil.rmtree(copy)
    if found.refusal:
        raise Violation(f"the store that is to be damaged is damaged: {found.refusal}")
    return found


def last_segment(directory: Path) -> Path:
    """Return the file of the log that is written to."""
    return max((directory / "wal").glob("*.wal"))


def frame_ends(directory: Path) -> list[tuple[int, int]]:
    """Return offset and last etcd index of each frame of the last segment."""
    uuid = bytes.fromhex(
        json.loads((directory / "FORMAT").read_text().split("\n")[0])["store_uuid"]
    )
    wal = Wal.open(
        directory / "wal",
        directory / "quarantine",
        store_uuid=uuid,
        segment_bytes_max=SEGMENT_BYTES,
    )
    frames = [f for f in wal.scan() if f.end.segment == wal.position.segment]
    # The frame of a start tells the next index and has no event of its own; every other frame here
    # is one write.
    return [(f.end.offset, f.first_index) for f in frames]


class Bench:
    """A place where a pristine directory is laid out, damaged and recovered."""

    def __init__(self, pristine: Path, place: Path) -> None:
        self.pristine = pristine
        self.place = place
        self._turns = 0

    def recover(self, file: Path, data: bytes) -> Found:
        """Recover the directory with other bytes in one of its files, without its index.

        Every few times `kvdctl verify` is asked before, which has to foresee whether a start
        succeeds.
        """
        shutil.rmtree(self.place, ignore_errors=True)
        ignore = shutil.ignore_patterns("index", "next.tmp")
        shutil.copytree(self.pristine, self.place, ignore=ignore)
        (self.place / file.relative_to(self.pristine)).write_bytes(data)
        self._turns += 1
        starts = verified(self.place)[1] if self._turns % _VERIFY_EACH == 1 else None
        found = recover(self.place)
        if starts is not None and starts == bool(found.refusal):
            raise Violation(
                f"`kvdctl verify` foresees that a start {'succeeds' if starts else 'is refused'}, "
                f"but it does the opposite: {found.refusal or found.index}"
            )
        return found


@contextmanager
def bench(trial: Trial, pristine: Path) -> Iterator[Bench]:
    """A bench in memory."""
    with tempfile.TemporaryDirectory(dir=fast_directory()) as place, bug(trial.mutant):
        try:
            yield Bench(pristine, Path(place) / "data")
        except Violation:
            shutil.copytree(Path(place) / "data", trial.directory / "damaged")
            raise


def sample(dice: random.Random, cases: list, number: int) -> list:
    """Return all cases, or some of them in their order."""
    if len(cases) <= number:
        return cases
    return [cases[place] for place in sorted(dice.sample(range(len(cases)), number))]


def truncate(trial: Trial) -> None:
    """Cut the last segment at every byte of its last frames; with nothing, zeros or dice behind."""
    pristine = trial.directory / "data"
    whole = make_store(pristine, 40, trial.mutant, "--snapshot-count", "1000000", clean=False)
    segment = last_segment(pristine)
    data = segment.read_bytes()
    with bug(trial.mutant):
        ends = frame_ends(pristine)
    fills: dict[str, Callable[[int], bytes]] = {
        "nothing": lambda at: b"",
        "zeros": lambda at: bytes(len(data) - at),
        "dice": lambda at: trial.dice.randbytes(len(data) - at),
    }
    cuts = [(at, fill) for at in range(ends[-9][0], ends[-1][0]) for fill in fills]
    cuts = sample(trial.dice, cuts, trial.rounds)
    trial.rounds = len(cuts)
    with bench(trial, pristine) as table:
        for done, (at, fill) in enumerate(cuts, 1):
            found = table.recover(segment, data[:at] + fills[fill](at))
            expected = max(index for end, index in ends if end <= at)
            # What is missing may be no more than the zeros behind a frame.
            padding = any(end - 8 < at < end for end, _ in ends)
            where = f"cut at {at}, {fill} behind"
            trial.check(not found.refusal, f"{where}: refused: {found.refusal}")
            good = found.index == expected or (padding and found.index == expected + 1)
            trial.check(good, f"{where}: index {found.index}, expected {expected}")
            _check_prefix(trial, whole, found, where)
            trial.figures["cuts"] = done
            trial.figures["wrong"] = 0
            trial.progress(done)


class Harm(NamedTuple):
    """One byte of a file that is not what it was."""

    offset: int
    value: int


def _harms(data: bytes, end: int) -> list[Harm]:
    """Return every bit turned, and every byte set to 0 or 255, up to a place.

    Behind the last frame, and behind the fields of the header, there are zeros for kilobytes: few
    of them stand for all.
    """
    harms = []
    for offset in range(end):
        bits = range(1) if 80 < offset < PAGE_SIZE else range(8)
        if offset % 8 and 80 < offset < PAGE_SIZE:
            continue
        values = {data[offset] ^ 1 << bit for bit in bits} | {0x00, 0xFF}
        harms += [Harm(offset, value) for value in sorted(values - {data[offset]})]
    return harms


def bitflip(trial: Trial) -> None:
    """Turn every bit of a small log, set every byte to 0 and 255; and bits of its snapshots."""
    pristine = trial.directory / "data"
    flags = ("--snapshot-count", "1000000")
    whole = make_store(pristine, 12, trial.mutant, *flags, clean=False, value_bytes=40)
    segment = last_segment(pristine)
    data = segment.read_bytes()
    with bug(trial.mutant):
        ends = frame_ends(pristine)
    harms = _harms(data, ends[-1][0] + 64)
    # Half of what is drawn is in the last write, which nothing behind it vouches for.
    last = [harm for harm in harms if harm.offset >= ends[-2][0]]
    if len(harms) > trial.rounds:
        drawn = sample(trial.dice, last, trial.rounds // 2)
        harms = sorted({*drawn, *sample(trial.dice, harms, trial.rounds - len(drawn))})
    trial.rounds = len(harms)
    with bench(trial, pristine) as table:
        for done, (offset, value) in enumerate(harms, 1):
            found = table.recover(segment, data[:offset] + bytes([value]) + data[offset + 1 :])
            where = f"byte {offset} of {segment.name} made {value:#x}"
            if found.refusal:
                trial.count("log: refused")
            else:
                _check_prefix(trial, whole, found, where)
                lost = whole.index - found.index
                trial.check(
                    lost == 0 or (lost == 1 and offset >= ends[-2][0]),
                    f"{where}: {lost} acknowledged writes are cut off",
                )
                trial.count("log: cut" if lost else "log: whole")
            trial.progress(done)
    _flip_snapshots(trial)
    trial.figures["wrong values"] = 0


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _flip_snapshots(trial: Trial) -> None:
    pristine = trial.directory / "snapshots"
    whole = make_store(pristine, 130, trial.mutant, clean=True, with_snapshot=True)
    files = sorted((pristine / "snap").glob("*.snap"))
    with bench(trial, pristine) as table:
        for _ in range(max(20, trial.rounds // 10)):
            file = trial.dice.choice(files)
            data = file.read_bytes()
            bit = trial.dice.randrange(8 * len(data))
            found = table.recover(file, _flipped(data, bit))
            where = f"bit {bit} of {file.name} turned"
            if found.refusal:
                trial.count("snapshot: refused")
                continue
            trial.check(found.files == whole.files, f"{where}: the files are not the same")
            trial.check(found.index == whole.index, f"{where}: index {found.index}")
            trial.count("snapshot: older one or log used")


def _check_prefix(trial: Trial, whole: Found, found: Found, where: str) -> None:
    facts = whole.facts[: max(0, found.index - 1)]
    trial.check(found.facts == facts, f"{where}: an event is served that did not happen so")


EXPERIMENTS = (
    Experiment(
        "truncate",
        "a log cut at any byte opens with exactly the writes before the cut",
        ("no-crc",),
        *(ALL, 90, "cuts", truncate),
    ),
    Experiment(
        "bitflip",
        "a turned bit, or a byte made 0 or 255, is refused or costs no more than the last write; "
        "no wrong value is served",
        ("no-crc",),
        *(ALL, 90, "bits and bytes", bitflip),
    ),
)

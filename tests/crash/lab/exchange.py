"""Files and directories of a stopped store that are missing, or another's, or of another time.

Each case is one damage to a store, and what comes of it is one of two things: all that was
acknowledged is served, or the start is refused with one line and the status that the README gives
it. `kvdctl verify` foresees which, and what a refusal advises works.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import permutations, product
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from kvd.storage.errors import StorageError
from kvd.storage.format.applied import HISTORY_LIMIT_DEFAULT
from kvd.storage.index import reuse
from kvd.storage.store import Options, Store
from kvd.storage.tools.repair import explained, repair
from kvd.v2.commands import Set
from tests.crash.lab.damage import bug, sample
from tests.crash.lab.disks import SEGMENT_BYTES, Found, recover, verified
from tests.crash.lab.experiment import ALL, Experiment, Trial, Violation
from tests.crash.lab.powerloss import fast_directory
from tests.support.stores import NOW_NS, write

_STATUSES = (65, 73, 78)
_MARKS = ("FORMAT", "index/CLEAN", "index/RUNNING")
_INDEX, _CLEAN, _RUNNING = "index/data.mdb", "index/CLEAN", "index/RUNNING"
_IGNORED = ("LOCK", "index/lock.mdb")
_COMMAND = "kvdctl repair --truncate-at "

Files = dict[str, bytes]


class Life(NamedTuple):
    """A store at one moment: its files, by their names, and how it was stopped."""

    stop: str
    files: Files


class Case(NamedTuple):
    """One damage: to which store, what to call it, and what it does to a directory."""

    life: Life
    name: str
    harm: Callable[[Path], object]

    @property
    def strange_index(self) -> bool:
        """Whether another whole index stands in place of the store's, with good marks."""
        other = f"{_INDEX} older", f"{_INDEX} another store's"
        is_other = self.name in other or self.name.startswith(f"older: {_INDEX}")
        return is_other and self.life.stop in ("clean", "killed")


class Logged(logging.Handler):
    """What is logged as a warning while a store is opened."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.lines.append(record.getMessage())


def exchange(trial: Trial) -> None:
    """Damage a stopped store in one way after the other; start it, and do what is advised."""
    older, lives, other = _lives(trial)
    with tempfile.TemporaryDirectory(dir=fast_directory()) as place:
        data = Path(place) / "data"
        lay_out(data, lives[0])
        whole = recover(data)
        trial.check(not whole.refusal, f"the store that is to be damaged is: {whole.refusal}")
        cases = _draw(trial, [case for life in lives for case in _cases(life, older, other)])
        trial.rounds = len(cases)
        with bug(trial.mutant):
            for done, case in enumerate(cases, 1):
                lay_out(data, case.life)
                case.harm(data)
                try:
                    trial.count(_outcome(trial, data, whole))
                except Violation as violation:
                    shutil.copytree(data, trial.directory / "damaged")
                    raise Violation(f"{case.life.stop}: {case.name}: {violation}") from None
                trial.figures["less than acknowledged"] = 0
                trial.progress(done)


def _draw(trial: Trial, cases: list[Case]) -> list[Case]:
    """Return some of the cases; a fifth are those in which an index is of another time or store.

    There are few of them, and nothing but the evidence against such an index meets it.
    """
    strange = [case for case in cases if case.strange_index]
    drawn = sample(trial.dice, strange, trial.rounds // 5)
    others = [case for case in cases if not case.strange_index]
    return drawn + sample(trial.dice, others, trial.rounds - len(drawn))


# The stores


def _lives(trial: Trial) -> tuple[Life, list[Life], Life]:
    """Return a store as it was earlier, as it is after each kind of stop, and another store."""
    data = trial.directory / "data"
    _live(data, range(60), snapshots=1)
    older = Life("clean", _read(data))
    _live(data, range(60, 200), snapshots=2)
    clean = _read(data)
    _live(trial.directory / "other", range(100), snapshots=2)
    other = Life("clean", _read(trial.directory / "other"))
    # The marks of both stops are made in `lay_out`: they name the file that is there.
    killed = {name: data for name, data in clean.items() if name != _CLEAN}
    cut = {name: data for name, data in killed.items() if not name.startswith("index/")}
    lives = [Life("clean", clean), Life("killed", killed), Life("copied", killed)]
    return older, [*lives, Life("power cut", cut)], other


def _live(directory: Path, numbers: range, *, snapshots: int) -> None:
    store = Store.open(directory, Options(segment_bytes_max=SEGMENT_BYTES))
    store.start_term(NOW_NS, HISTORY_LIMIT_DEFAULT)
    for number in numbers:
        write(store, Set(b"/k/%d" % (number % 50), b"%d." % number + b"v" * (number * 37 % 3000)))
    for _ in range(snapshots):
        store.flush()
        store.purge(store.snapshot())
        write(store, Set(b"/snapshots", b""))
    store.close()


def _read(directory: Path) -> Files:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def lay_out(directory: Path, life: Life) -> None:
    """Put a store into a directory, with marks that vouch for its index as its stop left them."""
    shutil.rmtree(directory, ignore_errors=True)
    for room in ("wal", "snap", "index", "quarantine"):
        (directory / room).mkdir(parents=True)
    for name, data in life.files.items():
        (directory / name).write_bytes(data)
    if life.stop == "clean":
        _vouch(directory, _CLEAN, with_size=True)
    if life.stop in ("clean", "killed"):
        _vouch(directory, _RUNNING, with_size=False)


def _vouch(directory: Path, name: str, *, with_size: bool) -> None:
    fingerprint = reuse.fingerprint(directory / "index", with_size=with_size)
    path = directory / name
    if fingerprint is None or not path.exists():
        path.unlink(missing_ok=True)  # this kernel has no name for a mount
    else:
        _write_fields(path, _fields(path.read_bytes()) | fingerprint)


# The cases


def _cases(life: Life, older: Life, other: Life) -> Iterator[Case]:
    # Without an index to name its last frames, the end of the log may be a torn tail.
    is_ambiguous = life.stop == "power cut"
    last = _segments(life)[-1]
    for case in (
        *_cases_of_files(life, older, other),
        *_cases_of_rooms(life, older, other),
        *_cases_of_moments(life, older),
        *_cases_of_marks(life),
    ):
        if not (is_ambiguous and case.name in (f"{last} cut", f"{last} older", "wal/ older")):
            yield case


def _cases_of_files(life: Life, older: Life, other: Life) -> Iterator[Case]:
    for name in life.files:
        if name not in _IGNORED:
            for way, data in _ways(name, life, older, other):
                yield Case(life, f"{name} {way}", _writing(name, data))


def _cases_of_rooms(life: Life, older: Life, other: Life) -> Iterator[Case]:
    for room in ("wal", "snap", "index", "quarantine"):
        yield Case(life, f"{room}/ missing", _replacing(room, None))
        yield Case(life, f"{room}/ emptied", _replacing(room, {}))
        yield Case(life, f"{room}/ another store's", _replacing(room, _of(room, other)))
        yield Case(life, f"{room}/ older", _replacing(room, _of(room, older)))
    yield Case(life, "wal/ emptied, index/ missing", _together(("wal", {}), ("index", None)))


def _cases_of_moments(life: Life, older: Life) -> Iterator[Case]:
    """Yield several files of the same earlier moment, in their inodes."""
    for marks in ((), (_CLEAN,)):
        if not life.files.keys() >= {*marks}:
            continue  # it is the same as without them
        names = [_INDEX, _segments(older)[-1], *marks]
        files = {name: older.files[name] for name in names if name in life.files}
        if _INDEX in files:
            yield Case(life, f"older: {', '.join(files)}", _writing_all(files))


def _cases_of_marks(life: Life) -> Iterator[Case]:
    marks = [name for name in _MARKS if name in life.files]
    for name, source in permutations(marks, 2):
        yield Case(life, f"{name} with all of {source}", _copying(source, name))
        fields = product(_fields(life.files[source]), _fields(life.files[name]))
        for field, target in fields:
            text = f"{name}: {target} is {field} of {source}"
            yield Case(life, text, _mixing(source, field, name, target))


def _ways(name: str, life: Life, older: Life, other: Life) -> Iterator[tuple[str, bytes | None]]:
    """Yield what becomes of one file: its new content, or None where it is missing."""
    good = life.files[name]
    yield "missing", None
    yield "emptied", b""
    yield "cut", good[: len(good) // 2]
    if older.files.get(name, good) != good:
        yield "older", older.files[name]
    room, _, suffix = name.partition("/")[0], *name.rpartition(".")[1:]
    peers = [peer for peer in other.files if peer.startswith(room) and peer.endswith(suffix)]
    if peers:
        yield "another store's", other.files.get(name, other.files[peers[-1]])


def _segments(life: Life) -> list[str]:
    return [name for name in life.files if name.startswith("wal/") and name.endswith(".wal")]


def _of(room: str, life: Life) -> Files:
    start = f"{room}/"
    return {name: data for name, data in life.files.items() if name.startswith(start)}


def _write(path: Path, data: bytes | None) -> None:
    """Give a file another content, in its inode."""
    if data is None:
        path.unlink()
    elif path.exists():
        with path.open("r+b") as file:
            file.write(data)
            file.truncate()
    else:
        path.write_bytes(data)


def _writing(name: str, data: bytes | None) -> Callable[[Path], object]:
    return lambda directory: _write(directory / name, data)


def _writing_all(files: Files) -> Callable[[Path], object]:
    def harm(directory: Path) -> None:
        for name, data in files.items():
            _write(directory / name, data)
            if name == _CLEAN:
                _vouch(directory, _CLEAN, with_size=True)

    return harm


def _replacing(room: str, files: Files | None) -> Callable[[Path], object]:
    def harm(directory: Path) -> None:
        shutil.rmtree(directory / room)
        if files is not None:
            (directory / room).mkdir()
            for name, data in files.items():
                (directory / name).write_bytes(data)

    return harm


def _together(*rooms: tuple[str, Files | None]) -> Callable[[Path], object]:
    harms = [_replacing(room, files) for room, files in rooms]
    return lambda directory: [harm(directory) for harm in harms]


def _copying(source: str, name: str) -> Callable[[Path], object]:
    return lambda directory: _write(directory / name, (directory / source).read_bytes())


def _mixing(source: str, field: str, name: str, target: str) -> Callable[[Path], object]:
    def harm(directory: Path) -> None:
        value = _fields((directory / source).read_bytes())[field]
        path = directory / name
        _write_fields(path, _fields(path.read_bytes()) | {target: value})

    return harm


def _fields(data: bytes) -> dict[str, object]:
    fields: dict[str, object] = json.loads(data[: data.rindex(b"}") + 1])
    return fields


def _write_fields(path: Path, fields: dict[str, object]) -> None:
    """Write a mark, or a FORMAT, with a good checksum."""
    line = json.dumps(fields, sort_keys=path.name != "FORMAT")
    separator = "\n" if path.name == "FORMAT" else " "
    _write(path, f"{line}{separator}{crc32(line.encode()):08x}\n".encode())


# What comes of it


def _outcome(trial: Trial, data: Path, whole: Found) -> str:
    """Start a damaged store; return what came of it, and raise where that may not be."""
    good, starts = verified(data)
    error, warnings = _try(data)
    if error is not None:
        trial.check(not starts, f"`kvdctl verify` foresees a start, but: {error}")
        return _refused(trial, data, error)
    trial.check(starts, "`kvdctl verify` foresees a refusal, but it starts")
    for turn in range(2):
        found = recover(data)
        same = (found.index, found.files, found.facts) == (whole.index, whole.files, whole.facts)
        trial.check(same, f"start {turn + 1} serves index {found.index} of {whole.index}")
    trial.check(not good or not warnings, f"`kvdctl verify` finds nothing, a start: {warnings}")
    return "served whole, after repairs of its own" if warnings else "served whole"


def _try(data: Path) -> tuple[StorageError | None, list[str]]:
    """Open a store as a start does; return why it is refused, and what is warned of."""
    logged, logger = Logged(), logging.getLogger("kvd.storage")
    disabled = logging.root.manager.disable
    logging.disable(logging.NOTSET)
    logger.addHandler(logged)
    try:
        store = Store.open(data, Options(segment_bytes_max=SEGMENT_BYTES))
        store.last_snapshot()  # as housekeeping does
        store.close()
    except StorageError as error:
        return error, logged.lines
    except Exception as error:
        raise Violation(f"a start meets a bug: {error!r}") from error
    finally:
        logger.removeHandler(logged)
        logging.disable(disabled)
    return None, logged.lines


def _refused(trial: Trial, data: Path, error: StorageError) -> str:
    """Check a refusal, and do what it advises."""
    text = explained(error, data)
    trial.check("\n" not in text, f"the refusal has more than one line: {text!r}")
    trial.check(error.exit_status in _STATUSES, f"ends with {error.exit_status}: {text}")
    again, _ = _try(data)
    trial.check(again is not None, f"refused once and then served: {text}")
    if _COMMAND not in text:
        return "refused"
    last = int(text.split(_COMMAND)[1].split()[0])
    repair(data, last)
    error_after, _ = _try(data)
    trial.check(error_after is None, f"the advice does not work: {text}; then: {error_after}")
    found = recover(data)
    trial.check(found.index == last, f"the advice gives index {found.index}: {text}")
    return "refused, and what is advised works"


EXPERIMENTS = (
    Experiment(
        "exchange",
        "a store with a file or a directory that is missing, empty, older or another store's, or a "
        "mark with another's field, serves all that was acknowledged or is refused, as `kvdctl "
        "verify` says, and what the refusal advises works",
        ("no-evidence",),
        *(ALL, 20, "damages", exchange),
    ),
)

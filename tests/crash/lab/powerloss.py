"""Power loss, on a model: what a disk may hold at each moment of a real server's life.

A server is run under strace, written to by several clients, killed, recovered and stopped. The
trace gives one order of system calls: writes, syncs, names, and the answers on sockets. The model
of the disk knows the assumptions of storage/disk.py and nothing else:

- a file is its durable bytes and a list of sector writes and lengths that no sync has covered yet;
- a directory is its durable names and a list of names made, changed and removed since;
- fsync and fdatasync cover what was written before they began, when they have returned;
- nothing else is ordered: of what is not covered, any part may be there after a power loss, and a
  sector that was being written may hold garbage.

After each step disks are made as a power loss there could leave them. Each is recovered, in this
process, and must hold a prefix of the true history that is not shorter than the last index any
client had been told by then.
"""

import logging
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from tests.crash.lab.disks import recover
from tests.crash.lab.experiment import Experiment, Trial, Violation, need_strace
from tests.crash.lab.killing import SMALL_FLAGS, events_between
from tests.crash.lab.ledger import Fact, State
from tests.crash.lab.process import Kvd, NotListening
from tests.crash.lab.workload import Clients, Connection

SECTOR = 512
_WAYS = 14  # to lose a part, beside losing all and nothing
CALLS = (
    *("openat", "mkdir", "rmdir", "write", "pwrite64", "pwritev", "ftruncate", "fallocate"),
    *("rename", "renameat2", "unlink", "unlinkat", "fsync", "fdatasync", "sendto", "sendmsg"),
)
_BEGUN = re.compile(r"(\d+) +(\w+)\((.*)$")
_RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)$")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_OF_FD = re.compile(r"^\d+<((?:\\x[0-9a-f]{2})*)>")
_TOLD = re.compile(rb"X-Etcd-Index: (\d+)")
_DIRECTORY = -1


class Call(NamedTuple):
    """One step of the trace: a call as it begins (`done` False), or as it has returned."""

    name: str
    args: str
    done: bool
    failed: bool
    number: int


def read_trace(path: Path) -> Iterator[Call]:
    """Yield the beginnings and the ends of all calls, in their order."""
    open_calls: dict[str, tuple[str, str, int]] = {}
    number = 0
    with path.open(encoding="ascii", errors="replace") as lines:
        for line in lines:
            if begun := _BEGUN.match(line):
                thread, name, rest = begun.groups()
                number += 1
                if rest.endswith("<unfinished ...>"):
                    open_calls[thread] = name, rest, number
                    yield Call(name, rest, done=False, failed=False, number=number)
                else:
                    yield Call(name, rest, done=False, failed=False, number=number)
                    yield Call(name, rest, done=True, failed=_failed(rest), number=number)
            elif (resumed := _RESUMED.match(line)) and resumed[1] in open_calls:
                name, rest, begun_at = open_calls.pop(resumed[1])
                yield Call(name, rest, done=True, failed=_failed(resumed[3]), number=begun_at)


def _failed(rest: str) -> bool:
    # A call that was cut short by the end of the process has the result `?`.
    return re.search(r"= (-1 |\?)[^=]*$", rest) is not None


def _unhex(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


@dataclass
class Inode:
    """A file: its durable bytes, and what was done to it since, oldest first."""

    durable: bytes = b""
    pending: list[tuple[int, bytes] | int] = field(default_factory=list)
    written: int = 0

    def write(self, offset: int, data: bytes) -> None:
        self.written = max(self.written, offset + len(data))
        while data:
            length = SECTOR - offset % SECTOR
            self.pending.append((offset, data[:length]))
            offset, data = offset + len(data[:length]), data[length:]

    def content(self, keep: Callable[[object], object]) -> bytes:
        """Return the bytes with some of what is pending; `keep` may also return other bytes."""
        data = bytearray(self.durable)
        for change in self.pending:
            kept = keep(change)
            if not kept:
                continue
            if isinstance(change, int):
                data = data[:change].ljust(change, b"\0")
                continue
            offset, piece = change
            if isinstance(kept, bytes):
                piece = kept
            data = data.ljust(offset, b"\0")
            data[offset : offset + len(piece)] = piece
        return bytes(data)

    def sync(self, number: int) -> None:
        """Make the oldest `number` of what is pending durable."""
        late = self.pending[number:]
        self.pending = self.pending[:number]
        self.durable = self.content(lambda _: True)
        self.pending = late


class Disk:
    """The model of one data directory; the index is left out, it is built anew after power loss."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._inodes: list[Inode] = []
        self._live: dict[str, int] = {}
        self._durable: dict[str, int] = {}
        self._pending: list[dict[str, int | None]] = []
        self._syncs: dict[int, int] = {}

    def step(self, call: Call) -> bool:
        """Take one call; return whether the disk may look different after a power loss now."""
        # What a name is made durable by, and what is told, counts when it has happened; a write may
        # have reached the disk as soon as it has begun.
        if call.name in ("fsync", "fdatasync"):
            return self._sync(call)
        if call.name in ("write", "pwrite64", "pwritev", "ftruncate", "fallocate"):
            return not call.done and self._change(call)
        if call.done and not call.failed:
            return self._name(call)
        return False

    def _inside(self, data: bytes) -> str | None:
        """Return a path relative to the directory, `.` for itself; None for anything else."""
        path = os.fsdecode(data).removesuffix(" (deleted)")
        if path == self._root:
            return "."
        if not path.startswith(self._root + "/"):
            return None
        name = path[len(self._root) + 1 :]
        return None if name.startswith("index") or name.endswith("scratch.tmp") else name

    def _file(self, call: Call) -> str | None:
        found = _OF_FD.match(call.args)
        return self._inside(_unhex(found[1])) if found else None

    def _change(self, call: Call) -> bool:
        name = self._file(call)
        if name is None or name not in self._live:
            return False
        inode = self._inodes[self._live[name]]
        if call.name in ("ftruncate", "fallocate"):
            numbers = re.findall(r", (\d+)", call.args)
            inode.pending.append(int(numbers[-1]))
            return True
        string = _STRING.search(call.args, call.args.index(">"))
        if string is None:
            raise ValueError(f"a call that the model does not know: {call.name} {call.args[:200]}")
        offset = inode.written
        if call.name == "pwrite64":
            offset = int(re.findall(r", (\d+)", call.args[string.end() :])[1])
        inode.write(offset, _unhex(string[1]))
        return True

    def _sync(self, call: Call) -> bool:
        name = self._file(call)
        if name is None:
            return False
        is_directory = name == "." or self._live.get(name) == _DIRECTORY
        if not is_directory and name not in self._live:
            return False
        inode = None if is_directory else self._inodes[self._live[name]]
        if not call.done:
            self._syncs[call.number] = len(inode.pending if inode else self._pending)
            return False
        number = self._syncs.pop(call.number)
        if call.failed:
            return False
        if inode is not None:
            inode.sync(number)
        else:
            self._sync_names(name, number)
        return True

    def _sync_names(self, directory: str, number: int) -> None:
        late: list[dict[str, int | None]] = []
        for place, change in enumerate(self._pending):
            if place < number and os.path.dirname(next(iter(change))) == directory.strip("."):  # noqa: PTH120
                self._durable = _with(self._durable, change)
            else:
                late.append(change)
        self._pending = late

    def _name(self, call: Call) -> bool:
        paths = [self._inside(_unhex(string)) for string in _STRING.findall(call.args)]
        if not paths or paths[0] in (None, "."):
            return False
        first = paths[0]
        assert first is not None
        change: dict[str, int | None]
        if call.name == "openat":
            if "O_CREAT" not in call.args or first in self._live:
                return False
            self._inodes.append(Inode())
            change = {first: len(self._inodes) - 1}
        elif call.name == "mkdir":
            change = {first: _DIRECTORY}
        elif call.name in ("rename", "renameat2"):
            second = paths[1]
            assert second is not None
            change = {first: None, second: self._live[first]}
        elif call.name in ("unlink", "unlinkat", "rmdir"):
            change = {first: None}
        else:
            return False
        self._live = _with(self._live, change)
        self._pending.append(change)
        return True

    @property
    def volatile(self) -> int:
        """How many things a power loss may take or leave."""
        files = {number for number in self._live.values() if number != _DIRECTORY}
        return len(self._pending) + sum(len(self._inodes[number].pending) for number in files)

    def after_power_loss(self, keep: Callable[[object], object]) -> dict[str, bytes | None]:
        """Return the files (None: a directory) of one disk as it may be found."""
        names = self._durable
        for change in self._pending:
            if keep(change):
                names = _with(names, change)
        found: dict[str, bytes | None] = {}
        for name, number in sorted(names.items()):
            parent = os.path.dirname(name)  # noqa: PTH120
            if not parent or parent in names:
                found[name] = None if number == _DIRECTORY else self._inodes[number].content(keep)
        return found


def _with(names: dict[str, int], change: dict[str, int | None]) -> dict[str, int]:
    merged = {**names, **change}
    return {name: number for name, number in merged.items() if number is not None}


def told_by(call: Call) -> int:
    """Return the highest index that a client is told by a call that sends, 0 for any other."""
    if call.done or call.name not in ("write", "sendto", "sendmsg"):
        return 0
    data = b"".join(_unhex(string) for string in _STRING.findall(call.args))
    return max(map(int, _TOLD.findall(data)), default=0)


def keeps(dice: random.Random, number: int) -> Iterator[Callable[[object], object]]:
    """Yield ways of losing: all, nothing, some at random, and sectors half written."""
    yield lambda _: False
    yield lambda _: True
    for turn in range(number):
        odds = dice.random()
        torn = turn % 3 == 0

        def keep(change: object, odds: float = odds, torn: bool = torn) -> object:
            if dice.random() >= odds:
                return False
            if torn and isinstance(change, tuple) and dice.random() < 0.3:
                whole = change[1]
                cut = dice.randrange(len(whole) + 1)
                return whole[:cut] + dice.randbytes(len(whole) - cut)
            return True

        yield keep


class Truth(NamedTuple):
    """What the run was: its trace, its directory, and every event of it in order."""

    trace: str
    root: str
    facts: list[Fact]


class Outcome(NamedTuple):
    """What one worker found."""

    steps: int
    states: int
    distinct: int
    longest: int
    violation: str


def explore(truth: Truth, seed: int, part: int, parts: int, share: float) -> Outcome:
    """Make and recover the disks of every `parts`-th step, `share` of them."""
    logging.disable(logging.WARNING)
    disk = Disk(Path(truth.root))
    seen: dict[bytes, int] = {}
    judge = Judge(truth.facts)
    dice = random.Random(f"{seed} {part}")
    told = steps = states = longest = 0
    with tempfile.TemporaryDirectory(dir=fast_directory()) as scratch:
        for call in read_trace(Path(truth.trace)):
            now_told = told_by(call)
            told = max(told, now_told)
            if not (disk.step(call) or now_told):
                continue
            steps += 1
            if steps % parts != part or dice.random() >= share:
                continue
            volatile = disk.volatile
            longest = max(longest, volatile)
            # With n things that may be there or not, there are 2^n disks, and torn ones.
            ways = min(_WAYS, 2 ** min(volatile, 10))
            for keep in islice(keeps(dice, ways), 1 if volatile == 0 else ways + 2):
                states += 1
                found = disk.after_power_loss(keep)
                name = _digest(found)
                problem = ""
                if name not in seen:
                    lay_out(Path(scratch) / "data", found)
                    seen[name], problem = judge.judge(Path(scratch) / "data", states)
                if not problem and seen[name] < told:
                    problem = f"a client had been told index {told}, it ends at {seen[name]}"
                if problem:
                    lay_out(Path(truth.trace).with_name("after-power-loss"), found)
                    where = f"power loss at step {steps} ({call.name}): {problem}"
                    return Outcome(steps, states, len(seen), longest, where)
    return Outcome(steps, states, len(seen), longest, "")


class Judge:
    """Recovers disks and compares them with the true history."""

    def __init__(self, facts: list[Fact]) -> None:
        self._facts = facts
        state = State()
        self._files = [dict(state.files)]
        for fact in facts:
            state.apply(fact)
            self._files.append(dict(state.files))

    def judge(self, directory: Path, turn: int) -> tuple[int, str]:
        """Return the index that a directory recovers to, and what is wrong with it."""
        try:
            found = recover(directory)
        except Violation as violation:
            return 0, str(violation)
        if found.refusal:
            return 0, f"recovery refuses: {found.refusal}"
        if found.index > len(self._facts) + 1:
            return found.index, "this index was never reached"
        problem = ""
        if list(found.facts) != self._facts[: found.index - 1]:
            problem = "the events are not those that happened"
        elif found.files != self._files[found.index - 1]:
            problem = "the files are not what the events made"
        elif turn % 16 == 0 and recover(directory, rebuild_index=True) != found:
            problem = "a second recovery finds something else than the first"
        return found.index, problem and f"at index {found.index}: {problem}"


def lay_out(directory: Path, found: dict[str, bytes | None]) -> None:
    """Write a disk as it was found after a power loss."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    for name, content in found.items():
        if content is None:
            (directory / name).mkdir()
        else:
            (directory / name).write_bytes(content)


def _digest(found: dict[str, bytes | None]) -> bytes:
    digest = blake2b(digest_size=16)
    for name, content in found.items():
        digest.update(f"{name} {'/' if content is None else len(content)}\n".encode())
        digest.update(content or b"")
    return digest.digest()


def fast_directory() -> str | None:
    """Return a directory in memory, None where there is none."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def record(directory: Path, seed: int, mutant: str | None, requests: int) -> Truth:
    """Run a server through three lives under strace: killed, killed again, stopped."""
    data = directory / "data"
    data.mkdir(mode=0o700)
    trace = directory / "trace.txt"
    strace = (
        *("-f", "-y", "-xx", "-s", "4000000", "-A", "-o", str(trace)),
        *("-e", f"trace={','.join(CALLS)}", "-e", "signal=none"),
    )
    clients = Clients(8, seed, keys=6)
    facts: list[Fact] = []
    with Kvd(data, *SMALL_FLAGS, mutant=mutant) as kvd:
        for life in range(3):
            try:
                kvd.start(straces={"MainThread": strace})
            except NotListening as error:
                raise Violation(f"the server does not start again: {error}") from None
            clients.start(kvd.port, requests // 3 // 8 + 1)
            clients.join()
            if life < 2:
                kvd.kill()
                continue
            connection = Connection(kvd.port)
            last = connection.get("/", quorum="true").index
            connection.close()
            facts = events_between(kvd.port, 2, last)
            kvd.terminate()
    return Truth(str(trace), str(data), facts)


def _steps(truth: Truth) -> int:
    disk = Disk(Path(truth.root))
    return sum(1 for call in read_trace(Path(truth.trace)) if disk.step(call) or told_by(call))


def power_loss(trial: Trial) -> None:
    """Record runs and explore their crash states until there are as many as asked for."""
    need_strace()
    parts = os.cpu_count() or 1
    states = 0
    plot: list[tuple[float, float]] = []
    started = time.monotonic()
    with ProcessPoolExecutor(parts, mp_context=get_context("spawn")) as pool:
        for run in range(1000):
            place = trial.directory / f"run-{run}"
            place.mkdir()
            requests = 60 if trial.rounds < 5000 else 400
            truth = record(place, trial.dice.randrange(1 << 32), trial.mutant, requests)
            # A short run looks at few steps, but all along the way.
            share = min(1.0, (trial.rounds - states) / (_steps(truth) * 7))
            jobs = [
                pool.submit(explore, truth, trial.seed + run, part, parts, share)
                for part in range(parts)
            ]
            for outcome in [job.result() for job in jobs]:
                states += outcome.states
                trial.count("states", outcome.states)
                trial.count("distinct disks recovered", outcome.distinct)
                most = max(outcome.longest, int(trial.figures.get("most volatile at once", 0)))
                trial.figures["most volatile at once"] = most
                trial.check(not outcome.violation, outcome.violation)
            trial.count("recorded runs")
            trial.count("events", len(truth.facts))
            trial.figures["violations"] = 0
            plot.append((round(time.monotonic() - started, 2), states))
            trial.series["power-loss states explored / s"] = plot
            trial.progress(min(states, trial.rounds))
            shutil.rmtree(place)
            if states >= trial.rounds:
                return


EXPERIMENTS = (
    Experiment(
        "power-loss",
        "whatever part of the unsynced writes and names a power loss takes, the store recovers to "
        "a prefix of the true history that holds all that was told",
        (
            *("no-directory-fsync", "no-file-fsync", "fsync-every-other", "ack-before-fsync"),
            *("no-fsync", "purge-early"),
        ),
        *(50_000, 600, "states", power_loss),
    ),
)

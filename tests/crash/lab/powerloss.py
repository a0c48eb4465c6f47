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
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from hashlib import blake2b
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from kvd.testing.crash import Clients, Connection, Fact
from kvd.testing.crash.facts import State, events_between
from tests.crash.lab.disks import recover
from tests.crash.lab.experiment import Experiment, Skipped, Trial, Violation, need_strace
from tests.crash.lab.killing import SMALL_FLAGS
from tests.crash.lab.lossy_disk import Disk, keeps, reported_by
from tests.crash.lab.process import Kvd, NotListening
from tests.crash.lab.strace import CALLS, read_trace
from tests.crash.lab.witness import WAYS, WITNESS, is_available

_WAYS = 14  # to lose a part, beside losing all and nothing


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
    received = steps = states = longest = 0
    with tempfile.TemporaryDirectory(dir=fast_directory()) as scratch:
        for call in read_trace(Path(truth.trace)):
            now_received = reported_by(call)
            received = max(received, now_received)
            if not (disk.step(call) or now_received):
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
                if not problem and seen[name] < received:
                    problem = f"a client had been told index {received}, it ends at {seen[name]}"
                if problem:
                    lay_out(Path(truth.trace).with_name(f"after-power-loss-{part}"), found)
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


def record(
    directory: Path, seed: int, mutant: str | None, requests: int, way: str | None = None
) -> Truth:
    """Run a server through three lives under strace: killed, killed again, stopped.

    Its log is synced in one of the kernel's ways, or without one by fdatasync on a thread.
    """
    data = directory / "data"
    data.mkdir(mode=0o700)
    trace = directory / "trace.txt"
    strace = (
        *("-f", "-y", "-xx", "-s", "4000000", "-A", "-o", str(trace)),
        *("-e", f"trace={','.join(CALLS)}", "-e", "signal=none"),
    )
    env = None if way is None else {WITNESS: way}
    clients = Clients(8, seed, keys=6)
    facts: list[Fact] = []
    with Kvd(data, *SMALL_FLAGS, mutant=mutant) as kvd:
        for life in range(3):
            try:
                kvd.start(straces={"MainThread": strace}, env=env)
            except NotListening as error:
                raise Violation(f"the server does not start again: {error}") from None
            clients.start(kvd.url, requests // 3 // 8 + 1)
            clients.join()
            if life < 2:
                kvd.kill()
                continue
            connection = Connection(kvd.url)
            last = connection.get("/", quorum="true").index
            connection.close()
            facts = events_between(kvd.url, 2, last)
            kvd.terminate()
    return Truth(str(trace), str(data), facts)


def _steps(truth: Truth) -> int:
    disk = Disk(Path(truth.root))
    return sum(1 for call in read_trace(Path(truth.trace)) if disk.step(call) or reported_by(call))


def power_loss(trial: Trial) -> None:
    """Record runs and explore their crash states until there are as many as asked for."""
    _explore_runs(trial, [None])


def power_loss_kernel(trial: Trial) -> None:
    """The same where the kernel syncs the log, with zeros ahead of it, by each of its ways."""
    ways = [way for way in WAYS if is_available(way)]
    if not ways:
        raise Skipped("the kernel syncs no file on its own here")
    _explore_runs(trial, ways)


def _explore_runs(trial: Trial, ways: Sequence[str | None]) -> None:
    need_strace()
    parts = os.cpu_count() or 1
    states = 0
    started = time.monotonic()
    with ProcessPoolExecutor(parts, mp_context=get_context("spawn")) as pool:
        for run in range(1000):
            place = trial.directory / f"run-{run}"
            place.mkdir()
            requests = 60 if trial.rounds < 5000 else 400
            way = ways[run % len(ways)]
            truth = record(place, trial.dice.randrange(1 << 32), trial.mutant, requests, way)
            # A short run looks at few steps, but all along the way; and each way has its part.
            asked = trial.rounds // len(ways) if run + 1 < len(ways) else trial.rounds - states
            share = min(1.0, asked / (_steps(truth) * 7))
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
            if way is not None:
                trial.count(f"runs by {way}")
            trial.count("events", len(truth.facts))
            trial.figures["violations"] = 0
            spent = time.monotonic() - started
            trial.point("crash states", "explored", spent, states, axes=("s", "states"))
            trial.progress(min(states, trial.rounds))
            shutil.rmtree(place)
            if states >= trial.rounds and run + 1 >= len(ways):
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
    Experiment(
        "power-loss-kernel",
        "the same where the kernel syncs the log, by io_uring and by Linux AIO, with zeros written "
        "ahead of it",
        ("ack-before-end",),
        *(50_000, 400, "states", power_loss_kernel),
    ),
)

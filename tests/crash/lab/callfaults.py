"""Faults at each system call: the process is killed there, or the system refuses or fails it."""

import errno
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kvd.testing.crash import Request
from tests.crash.lab.calls import (
    CHANGES,
    LIFE_FLAGS,
    READS,
    Life,
    Point,
    changes,
    in_parallel,
    injection,
    record,
    start_to_fail,
    write_through,
)
from tests.crash.lab.experiment import ALL, Experiment, Trial, Violation, need_strace
from tests.crash.lab.killing import check_directory
from tests.crash.lab.process import Kvd

_KILL = "signal=KILL"
_KILLED = -signal.SIGKILL
_EXIT_BUG, _EXIT_IO = 70, 74
# A stop that cannot write its index out gives up after ten seconds; that is known and not waited
# for at each point.
_STOP_S = 1.5
_END_S = 2.0
_WAYS_TO_START = ((), ("--rebuild-index",))


def whole_life(ops: list[Request]) -> Callable[[Kvd], None]:
    """Return what a life is: writing, and a clean stop."""

    def live(kvd: Kvd) -> None:
        write_through(kvd.url, kvd.data_dir, ops)
        kvd.terminate()

    return live


def short_life(ops: list[Request]) -> Callable[[Kvd], None]:
    """Return what the life after a crash is: three writes, and a clean stop."""

    def live(kvd: Kvd) -> None:
        write_through(kvd.url, kvd.data_dir, ops, writes=3)
        kvd.terminate()

    return live


def crash_with_a_torn_tail(data: Path, mutant: str | None, ops: list[Request]) -> Kvd:
    """Leave a directory in which a write was under way; return its server, which has ended."""
    kvd = Kvd(data, *LIFE_FLAGS, mutant=mutant)
    with kvd:
        kvd.start("--enable-failpoints", "--failpoint", "walBeforeWrite=tear:100@20")
        write_through(kvd.url, data, ops, writes=30)
    return kvd


class Case(NamedTuple):
    """A point to be killed at: of the first life (`flags` is None), or of a recovery."""

    point: Point
    flags: tuple[str, ...] | None


def kill_syscall(trial: Trial) -> None:
    """SIGKILL at each call of a life; at each of a recovery, and twice more in the next ones."""
    need_strace()
    first = changes(record(trial, "first", whole_life([])))
    cases = [Case(point, None) for point in first]
    recoveries: dict[tuple[str, ...], list[Point]] = {}
    for number, flags in enumerate(_WAYS_TO_START):
        torn = crash_with_a_torn_tail(trial.directory / f"torn-{number}", None, [])
        life = record(trial, f"recovery-{number}", short_life([]), *flags, prepare=torn)
        recoveries[flags] = changes(life)
        cases += [Case(point, flags) for point in recoveries[flags]]
    if len(cases) > trial.rounds:
        # Where the store is made, what is left half there must not be in the way.
        making = [case for case in cases if case.point.path.startswith("FORMAT")][:6]
        cases = [*making, *trial.dice.sample(cases, trial.rounds)][: max(8, trial.rounds)]
    else:
        trial.figures["calls of a life"] = len(first)
        trial.figures["calls of two recoveries"] = len(cases) - len(first)

    def kill(number: int, case: Case) -> None:
        data = trial.directory / f"data-{number}"
        dice = random.Random(f"{trial.seed} {number}")
        try:
            _kill_at(trial, data, case, recoveries, dice)
        except Violation as error:
            raise Violation(f"killed at {case.point}: {error}; see {data.name}") from None
        shutil.rmtree(data, ignore_errors=True)

    in_parallel(trial, kill, cases)
    trial.figures["lost"] = 0


def _kill_at(
    trial: Trial,
    data: Path,
    case: Case,
    recoveries: dict[tuple[str, ...], list[Point]],
    dice: random.Random,
) -> None:
    ops: list[Request] = []
    if case.flags is None:
        with Kvd(data, *LIFE_FLAGS, mutant=trial.mutant) as kvd:
            killed = _live(kvd, case.point, (), whole_life(ops))
        trial.count("killed" if killed else "ended before")
    else:
        with crash_with_a_torn_tail(data, trial.mutant, ops) as kvd:
            points = [case.point, *dice.choices(recoveries[case.flags], k=2)]
            for depth, point in enumerate(points, 1):
                if _live(kvd, point, case.flags, short_life(ops)):
                    trial.count(f"killed in recovery {depth}")
    check_directory(data, ops)


def _live(kvd: Kvd, point: Point, flags: tuple[str, ...], live: Callable[[Kvd], None]) -> bool:
    """Let a server live until it is killed; return whether it was."""
    straces = injection(point, _KILL, kvd.data_dir, ())
    if start_to_fail(kvd, *flags, straces=straces):
        live(kvd)
    return kvd.wait() == _KILLED


class Refusal(NamedTuple):
    """An error that is made: at which calls, and what it must not do."""

    code: str
    calls: tuple[str, ...]
    must_end: bool
    """Whether the server has to end when a frame cannot be written or synced with it."""


_SYNCS = ("fsync", "fdatasync")
_WRITES = tuple(call for call in CHANGES if call not in _SYNCS)
_ROOM = ("write", "writev", "pwrite64", "pwritev", "fallocate", "ftruncate", "openat", "mkdir")
ERRORS = {
    "eio": (Refusal("EIO", (*CHANGES, *READS), must_end=True),),
    "no-space": (
        Refusal("ENOSPC", (*_ROOM, "rename"), must_end=False),
        Refusal("EDQUOT", (*_ROOM, "rename"), must_end=False),
    ),
    "refusals": (
        Refusal("EMFILE", ("openat",), must_end=False),
        Refusal("ENFILE", ("openat",), must_end=False),
        Refusal("EROFS", ("openat", "mkdir", "rename", "unlink", "fallocate"), must_end=False),
        Refusal("EINTR", _WRITES, must_end=False),
    ),
}


class Trouble(NamedTuple):
    """One run: an error at a point, once or from there on."""

    refusal: Refusal
    point: Point
    lasting: bool


def fail_syscalls(kind: str) -> Callable[[Trial], None]:
    """Return the experiment that makes each call fail in one of the ways of `ERRORS`."""

    def experiment(trial: Trial) -> None:
        need_strace()
        life = record(trial, "life", whole_life([]))
        troubles = [
            Trouble(refusal, point, lasting)
            for refusal in ERRORS[kind]
            for point in life.points
            if point.path and point.call in refusal.calls
            for lasting in (False, True)
            if not (lasting and refusal.code == "EINTR")  # a signal comes and goes
        ]
        if len(troubles) > trial.rounds:
            # Frames that are surely written, and some that no snapshot covers later.
            frames = [t for t in troubles if _is_frame(t.point)]
            frames = [*frames[len(frames) // 2 :][:2], *frames[-5:]] if frames else []
            troubles = [*frames, *trial.dice.sample(troubles, trial.rounds)][: trial.rounds]

        def fail(number: int, trouble: Trouble) -> None:
            data = trial.directory / f"data-{number}"
            lasting = "from there on" if trouble.lasting else "once"
            try:
                _fail_at(trial, data, life, trouble)
            except Violation as error:
                where = f"{trouble.refusal.code} {lasting} at {trouble.point}"
                raise Violation(f"{where}: {error}; see {data.name}") from None
            shutil.rmtree(data, ignore_errors=True)

        in_parallel(trial, fail, troubles)
        trial.figures["lost"] = 0

    return experiment


def _is_frame(point: Point) -> bool:
    """Return whether a call writes or syncs frames: all that the sync thread does to a segment."""
    calls = ("pwrite64", *_SYNCS)
    return point.thread == "kvd-sync" and point.call in calls and point.path.endswith(".wal")


def _fail_at(trial: Trial, data: Path, life: Life, trouble: Trouble) -> None:
    ops: list[Request] = []
    refusal, point, lasting = trouble
    trace = data.with_suffix(".strace")
    straces = injection(
        point, f"error={refusal.code}", data, life.paths, lasting=lasting, output=trace
    )
    with Kvd(data, *LIFE_FLAGS, mutant=trial.mutant) as kvd:
        listened = start_to_fail(kvd, straces=straces)
        if listened:
            write_through(kvd.url, data, ops)
        status = _end(kvd, is_due=refusal.must_end and _is_frame(point))
        said = kvd.stderr
    was_met = "(INJECTED)" in trace.read_text(errors="replace")
    outcome = {0: "stopped cleanly", _KILLED: "went on"}.get(status, f"ended with {status}")
    outcome = outcome if listened else "did not start"
    trial.count(f"{refusal.code}: {outcome if was_met else 'not met'}")
    trial.check("Traceback" not in said and status != _EXIT_BUG, f"a bug: {said[-600:]}")
    if was_met and _is_frame(point):
        _check_end(trial, refusal, status, listened, said)
    for op in ops:
        fine = op.status < 500 or op.in_doubt or op.body.get("errorCode") == 300
        trial.check(fine, f"a client was told {op.status} {op.body}")
    check_directory(data, ops)
    trace.unlink()


def _check_end(trial: Trial, refusal: Refusal, status: int, listened: bool, said: str) -> None:
    """Check how a server ended that could not write or sync a frame."""
    if refusal.must_end:
        trial.check(status == _EXIT_IO, f"exit status {status}, expected 74: {said[-300:]}")
    elif listened:
        trial.check(status in (0, _KILLED), f"it ended with {status}: {said[-300:]}")


def _end(kvd: Kvd, *, is_due: bool) -> int:
    """Wait for the end if it is due, else stop the server, by force if need be; its status."""
    end = time.monotonic() + _END_S
    while is_due and kvd.running() and time.monotonic() < end:
        time.sleep(0.01)
    if kvd.running():
        kvd.signal(signal.SIGTERM)
    try:
        return kvd.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        kvd.kill()
        return kvd.wait()


assert all(hasattr(errno, r.code) for refusals in ERRORS.values() for r in refusals)

EXPERIMENTS = (
    Experiment(
        "kill-syscall",
        "SIGKILL at any system call that changes the disk or tells a client, from the first start "
        "to the clean stop and three deep in recovery, loses nothing that was acknowledged",
        ("in-place",),
        *(ALL, 8, "system calls", kill_syscall),
    ),
    Experiment(
        "syscall-eio",
        "EIO at any system call on a file, once or for good, loses nothing; a frame that cannot be "
        "written or synced ends the server within 2 s with status 74",
        ("shrug",),
        *(ALL, 8, "failing calls", fail_syscalls("eio")),
    ),
    Experiment(
        "syscall-enospc",
        "ENOSPC or EDQUOT at any system call that needs room, once or for good, loses nothing; a "
        "frame that finds no room is refused and the server goes on",
        ("die-when-full", "shrug"),
        *(ALL, 8, "refused calls", fail_syscalls("no-space")),
    ),
    Experiment(
        "syscall-refused",
        "EMFILE, ENFILE, EROFS or EINTR at any system call on a file loses nothing that was "
        "acknowledged and shows nobody a traceback",
        ("no-retry",),
        *(ALL, 8, "refused calls", fail_syscalls("refusals")),
    ),
)

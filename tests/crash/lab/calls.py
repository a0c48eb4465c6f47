"""Every system call of a server's life: first written down, then made to fail, one by one.

A life is recorded with a strace for each thread. From that the points are known at which the disk
is changed or a client is told something, as *the Nth call of this name by this thread*, which is
what strace can inject a fault at. Lives are short and made by one client, so that they go nearly
the same way each time; a point that is not met is counted.
"""

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from kvd.testing.crash import DISCONNECTED, Connection, Request
from tests.crash.lab.experiment import Trial
from tests.crash.lab.process import Kvd, NotListening

LIFE_FLAGS = (
    *("--wal-segment-bytes", "65536", "--snapshot-count", "14"),
    *("--event-history-limit", "1000000"),
)
CHANGES = (
    *("openat", "mkdir", "rmdir", "write", "writev", "pwrite64", "pwritev", "ftruncate"),
    *("fallocate", "rename", "renameat2", "unlink", "unlinkat", "fsync", "fdatasync"),
)
READS = ("pread64",)
SENDS = ("sendto", "sendmsg", "write")
_FD = re.compile(r"^\d+<([^>]*)>")
_NAMES = re.compile(r'"((?:[^"\\]|\\.)*)"')
_WRITES = 44
_SNAPSHOT_S = 1.0  # it takes 0.2 s
_SNAPSHOTS_AT = {15: 1, 30: 2, 43: 3}

T = TypeVar("T")


class Point(NamedTuple):
    """A call of a life.

    Attributes:
        number: Which of the calls of this name by this thread it is, from 1 on.
        in_data: Which of those that concern files of the life, 0 where it concerns none.
        path: The file below the data directory, or "" where a client is told something.
    """

    thread: str
    call: str
    number: int
    in_data: int
    path: str

    def __str__(self) -> str:
        return f"{self.call} number {self.number} of {self.thread} ({self.path or 'an answer'})"


class Life(NamedTuple):
    """What is known of a life: its points in the order of each thread, and all its files."""

    points: list[Point]
    paths: list[str]


def write_through(url: str, data: Path, book: list[Request], *, writes: int = _WRITES) -> None:
    """Let one client write through cuts, snapshots and purges, until it is done or the end."""
    connection = Connection(url, timeout_s=1.0)
    waits = True
    with contextlib.suppress(*DISCONNECTED):
        for number in range(writes):
            op = _choose(number)
            book.append(op)
            connection.request(op)
            if waits and number in _SNAPSHOTS_AT:
                # Where one has failed, there will be none for a while.
                waits = _wait_for_snapshots(connection, data, _SNAPSHOTS_AT[number])
    connection.close()


def _choose(number: int) -> Request:
    key, value, now = f"/k/{number % 7}", f"0.{number}." + "x" * (number % 5 * 1500), time.monotonic
    match number % 6:
        case 0:
            return Request("POST", "/q/0", {"value": value}, now())
        case 1:
            return Request("PUT", key, {"value": value, "ttl": "5000"}, now())
        case 2 if number % 12 == 2:
            return Request("DELETE", "/q/0", {"recursive": "true"}, now())
        case 3:
            return Request("DELETE", f"/k/{(number - 1) % 7}", {}, now())
    return Request("PUT", key, {"value": value}, now())


def _wait_for_snapshots(connection: Connection, data: Path, number: int) -> bool:
    """Wait until so many have been made, so that the log is purged; return whether they are."""
    newest = min(number, 2)
    end = time.monotonic() + _SNAPSHOT_S
    while time.monotonic() < end:
        made = list((data / "snap").glob("*.snap"))
        if len(made) >= newest and not list((data / "snap").glob("*.tmp")):
            return True
        connection.get("/k")  # which fails when the server has gone
        time.sleep(0.005)
    return False


def record(
    trial: Trial, name: str, work: Callable[[Kvd], None], *flags: str, prepare: Kvd | None = None
) -> Life:
    """Run a life under straces and return it.

    Args:
        trial: where it works.
        name: names its directory, unless it is prepared.
        work: what is done once the server listens; it may leave the server running.
        flags: further flags of the server.
        prepare: a server whose directory the life goes on with.
    """
    traces = trial.directory / f"{name}-traces"
    traces.mkdir()
    kvd = prepare or Kvd(trial.directory / name, *LIFE_FLAGS)
    calls = ",".join(sorted({*CHANGES, *READS, *SENDS}))
    strace = ("-y", "-s", "300", "-o", f"{traces}/{{thread}}", "-e", f"trace={calls}")
    with kvd:
        kvd.start(*flags, straces={"*": (*strace, "-e", "signal=none")})
        work(kvd)
    root = str(kvd.data_dir)
    life = Life([], [])
    for trace in sorted(traces.iterdir()):
        life.points.extend(_points(trace, root))
    life.paths.extend(sorted({point.path for point in life.points if point.path}))
    return life


def _points(trace: Path, root: str) -> Iterator[Point]:
    numbers: Counter[str] = Counter()
    in_data: Counter[str] = Counter()
    for line in trace.read_text(errors="replace").splitlines():
        call, bracket, rest = line.partition("(")
        if not bracket or not call.isidentifier():
            continue
        numbers[call] += 1
        place = _place(call, rest, root)
        if place is not None:
            in_data[call] += bool(place)
            yield Point(trace.name, call, numbers[call], in_data[call] if place else 0, place)


def _place(call: str, rest: str, root: str) -> str | None:
    """Return the path of a call below the data directory, "" for an answer, None for neither."""
    found = _FD.match(rest)
    if found and call not in ("openat", "unlinkat", "renameat2"):
        paths = [found[1]]
    else:
        paths = _NAMES.findall(rest)
    for path in paths:
        clean = path.removesuffix(" (deleted)")
        if clean == root or clean.startswith(root + "/"):
            return clean[len(root) + 1 :] or "."
    if found and call in SENDS and found[1].startswith(("socket:", "TCP:")):
        return ""
    return None


def injection(
    point: Point,
    fault: str,
    data: Path,
    paths: Sequence[str],
    *,
    lasting: bool = False,
    output: Path = Path(os.devnull),
) -> dict[str, list[str]]:
    """Return the straces that make a fault at a point; `lasting`: and at all such calls after it.

    A fault other than a kill meets only calls that concern the life's files; what was met is
    written to `output`.
    """
    number = point.number
    words = ["-o", str(output), "-e", f"trace={point.call}"]
    if not fault.startswith("signal"):
        number = point.in_data
        for path in paths:
            words += ["-P", str(data if path == "." else data / path)]
    when = f"{number}+" if lasting else str(number)
    return {point.thread: [*words, "-e", f"inject={point.call}:{fault}:when={when}"]}


def changes(life: Life) -> list[Point]:
    """Return the points at which the disk is changed or a client is told something."""
    return [point for point in life.points if point.call not in READS]


def start_to_fail(kvd: Kvd, *flags: str, straces: dict[str, list[str]]) -> bool:
    """Start a server that may end before it listens; return whether it listens."""
    try:
        kvd.start(*flags, straces=straces)
    except NotListening:
        return False
    return True


def in_parallel(trial: Trial, work: Callable[[int, T], None], cases: Sequence[T]) -> None:
    """Do something with each case, a few at a time; the first violation ends it."""
    trial.rounds = len(cases)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        jobs = [pool.submit(work, number, case) for number, case in enumerate(cases)]
        try:
            for done, job in enumerate(jobs, 1):
                job.result()
                trial.progress(done)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

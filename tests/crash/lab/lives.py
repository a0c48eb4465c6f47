"""Long lives: what a store is made from gives one state, keys expire in order, nothing piles up."""

import functools
import json
import random
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import lmdb

from kvd.storage.store import Options, Store
from kvd.testing.crash import Clients, Connection
from kvd.testing.crash.facts import events_between, fact_of
from tests.crash.lab.damage import bug
from tests.crash.lab.disks import SEGMENT_BYTES, digest_of
from tests.crash.lab.experiment import Experiment, Trial, Violation
from tests.crash.lab.killing import SMALL_FLAGS, start
from tests.crash.lab.mutant import CLOCK_FILE
from tests.crash.lab.process import Kvd

_SILENCE_S = 8.0
_DEPTH = 64  # requests on their way on one connection


def exchange(port: int, requests: Sequence[bytes]) -> int:
    """Send requests over one connection, many on their way; return how many were successes.

    Raises:
        Violation: one was answered by a 5xx, or not at all.
    """
    good = 0
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        stream = connection.makefile("rb")
        for first in range(0, len(requests), _DEPTH):
            some = requests[first : first + _DEPTH]
            connection.sendall(b"".join(some))
            good += sum(_is_success(stream.readline, stream.read) for _ in some)
    return good


def _is_success(readline: Callable[[], bytes], read: Callable[[int], bytes]) -> bool:
    status = readline()
    if not status or status[9:10] == b"5":
        raise Violation(f"a request is answered by {status!r}")
    length = 0
    while (line := readline()) not in (b"\r\n", b""):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    read(length)
    return status[9:10] == b"2"


def put_request(key: str, form: str) -> bytes:
    """Return the bytes of a PUT."""
    head = f"PUT /v2/keys{key} HTTP/1.1\r\nHost: kvd\r\nContent-Length: {len(form)}\r\n"
    return f"{head}Content-Type: application/x-www-form-urlencoded\r\n\r\n{form}".encode()


def replay_ways(trial: Trial) -> None:
    """Open one store in each way there is: all give the same state, and again the same."""
    for done in range(1, trial.rounds + 1):
        data = trial.directory / "data"
        shutil.rmtree(data, ignore_errors=True)
        clients = Clients(8, f"{trial.seed} {done}")
        with Kvd(data, *SMALL_FLAGS, mutant=trial.mutant) as kvd:
            start(kvd)
            for _ in range(3):
                clients.start(kvd.url, 30)
                clients.join()
                _wait_for_a_snapshot(kvd.data_dir)
            kvd.terminate()
        expected = digest_of(data)
        with bug(trial.mutant):
            for way, change in _WAYS.items():
                copy = trial.directory / "copy"
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(data, copy)
                change(copy, trial.dice)
                for turn in ("", ", a second time"):
                    options = Options(segment_bytes_max=SEGMENT_BYTES, rebuild_index=True)
                    Store.open(copy, options).close()
                    found = digest_of(copy)
                    trial.check(found == expected, f"{way}{turn}: {found}, expected {expected}")
                trial.count("replays", 2)
        trial.figures["stores"] = done
        trial.figures["differences"] = 0
        trial.progress(done)


def _wait_for_a_snapshot(data: Path) -> None:
    end = time.monotonic() + 10
    before = max((data / "snap").glob("*.snap"), default=None)
    while max((data / "snap").glob("*.snap"), default=None) == before and time.monotonic() < end:
        time.sleep(0.02)


def _nothing(data: Path, dice: random.Random) -> None:
    """The newest snapshot and the log behind it."""


def _without_newest(data: Path, dice: random.Random) -> None:
    max((data / "snap").glob("*.snap")).unlink()


def _newest_damaged(data: Path, dice: random.Random) -> None:
    newest = max((data / "snap").glob("*.snap"))
    content = bytearray(newest.read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    newest.write_bytes(content)


def _without_index(data: Path, dice: random.Random) -> None:
    shutil.rmtree(data / "index")


_WAYS = {
    "from the newest snapshot": _nothing,
    "from the older snapshot": _without_newest,
    "past a damaged snapshot": _newest_damaged,
    "without an index": _without_index,
}


def expiry(trial: Trial) -> None:
    """Let many keys end within one second; all are told, in order; replay knows no clock."""
    number = trial.rounds
    data = trial.directory / "data"
    setting = trial.directory / "clock.json"
    setting.write_text("0")
    flags = ("--event-history-limit", str(2 * number + 10))
    ttl = 3 + number // 4000
    with Kvd(data, *flags, mutant=trial.mutant or "none") as kvd:
        kvd.start(env={CLOCK_FILE: str(setting)})
        requests = [put_request(f"/e/{n % 97}/{n}", f"value={n}&ttl={ttl}") for n in range(number)]
        trial.check(exchange(kvd.port, requests) == number, "a write was refused")
        events = _watch_them_expire(trial, kvd, number)
        _check_expiry(trial, events)
        with Connection(kvd.url) as connection:
            before = connection.get("/", recursive="true")
        kvd.kill()
        setting.write_text(str(-int(time.time())))
        kvd.start("--rebuild-index", env={CLOCK_FILE: str(setting)})
        with Connection(kvd.url) as connection:
            after = connection.get("/", recursive="true")
        same = (before.index, before.body) == (after.index, after.body)
        trial.check(same, f"replayed in 1970 it is index {after.index}, it was {before.index}")
        again = events_between(kvd.url, 2, before.index)
        trial.check(again == [fact_of(event) for event in events], "in 1970 other events are told")


def _watch_them_expire(trial: Trial, kvd: Kvd, number: int) -> list[Any]:
    """Return all events, read as they come, while somebody else reads a key."""
    received: list[Any] = []

    def watch() -> None:
        with socket.create_connection(("127.0.0.1", kvd.port), timeout=60) as stream:
            target = "/v2/keys/e?wait=true&recursive=true&stream=true&waitIndex=2"
            stream.sendall(f"GET {target} HTTP/1.0\r\n\r\n".encode())
            lines = stream.makefile("r", encoding="utf-8")
            while lines.readline().strip():
                pass
            while len(received) < 2 * number and (line := lines.readline()):
                if line.startswith("{"):
                    received.append(json.loads(line))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    times = []
    seen, since = 0, time.monotonic()
    with Connection(kvd.url) as connection:
        while watcher.is_alive() and time.monotonic() < since + _SILENCE_S + number / 4000:
            if len(received) > seen:
                seen, since = len(received), time.monotonic()
            op = connection.get("/nothing")
            times.append(op.end - op.start)
            trial.progress(min(len(received) // 2, number - 1))
            time.sleep(0.01)
    trial.check(len(received) == 2 * number, f"{len(received)} events came, expected {2 * number}")
    times.sort()
    trial.figures["expirations told"] = number
    trial.figures["GET meanwhile, p50 ms"] = round(times[len(times) // 2] * 1000, 1)
    trial.figures["GET meanwhile, p99 ms"] = round(times[len(times) * 99 // 100] * 1000, 1)
    trial.progress(number)
    return received


def _check_expiry(trial: Trial, events: Sequence[Any]) -> None:
    indexes = [event["node"]["modifiedIndex"] for event in events]
    trial.check(indexes == list(range(2, len(events) + 2)), "not one index each, in order")
    expired = [event for event in events if event["action"] == "expire"]
    trial.check(2 * len(expired) == len(events), f"{len(expired)} expirations were told")
    # RFC 3339 without trailing zeros: padded, texts compare as times do.
    ends = [event["prevNode"]["expiration"].rstrip("Z").ljust(29, "0") for event in expired]
    trial.check(all(a <= b for a, b in pairwise(ends)), "they do not end in their order")


class Weight:
    """What a running server takes: bytes on disk and in memory, open files."""

    def __init__(self, kvd: Kvd) -> None:
        proc = Path(f"/proc/{kvd.pid}")
        self.fds = len(list((proc / "fd").iterdir()))
        resident = next(
            line for line in (proc / "status").read_text().splitlines() if "VmRSS" in line
        )
        self.memory = int(resident.split()[1]) << 10
        self.log = _bytes_in(kvd.data_dir / "wal")
        self.snapshots = _bytes_in(kvd.data_dir / "snap")
        self.index = (kvd.data_dir / "index" / "data.mdb").stat().st_blocks * 512


def _bytes_in(directory: Path) -> int:
    total = 0
    for path in directory.iterdir():
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue  # it was a temporary one
    return total


def _churn_requests(trial: Trial, number: int) -> Iterator[bytes]:
    dice = trial.dice
    for n in range(number):
        key = f"/c/{dice.randrange(40)}/{dice.randrange(50)}"
        match dice.randrange(10):
            case 0:
                yield f"DELETE /v2/keys{key} HTTP/1.1\r\nHost: kvd\r\n\r\n".encode()
            case 1:
                yield put_request(key, f"value={n}&ttl={dice.randrange(1, 4)}")
            case _:
                yield put_request(key, f"value={n}.{'c' * dice.randrange(300)}")


def churn(trial: Trial) -> None:
    """Write the same few keys again and again, with snapshots; nothing may grow without end."""
    parts = 10
    count = max(200, trial.rounds // 40)
    # Each client has one write on its way: many of them share a sync.
    segment, clients = (1 << 20, 32) if trial.rounds > 100_000 else (1 << 16, 4)
    flags = ("--wal-segment-bytes", str(segment), "--snapshot-count", str(count))
    weights: list[Weight] = []
    with Kvd(trial.directory / "data", *flags, mutant=trial.mutant) as kvd:
        start(kvd)

        def write(number: int) -> None:
            requests = list(_churn_requests(trial, number))
            shares = [requests[n::clients] for n in range(clients)]
            with ThreadPoolExecutor(len(shares)) as pool:
                trial.count(
                    "writes done", sum(pool.map(functools.partial(exchange, kvd.port), shares))
                )
            _settle_down(kvd)
            weights.append(Weight(kvd))

        for part in range(1, parts + 1):
            write(trial.rounds // parts)
            trial.progress(part * trial.rounds // parts)
        # Log is kept from the snapshot before the last one on. How far apart these two are is a
        # matter of how fast was written meanwhile, until there are two more.
        for _ in range(20):
            if weights[-1].log < _log_bytes_max(weights, segment):
                break
            write(count)
        _check_weights(trial, weights, segment)
        with Connection(kvd.url) as connection:
            before = connection.get("/c", recursive="true", sorted="true").index
        trial.figures["last index"] = before
        kvd.kill()
        start(kvd)
        env = lmdb.open(str(kvd.data_dir / "index"), readonly=True, max_dbs=8)
        stale = env.reader_check()
        env.close()
        trial.check(stale == 0, f"{stale} readers of the index have gone without a word")
        kvd.terminate()
    for name, line in (("memory", "resident memory"), ("index", "index"), ("log", "log")):
        for part, weight in enumerate(weights[:parts], 1):
            done, size = trial.rounds * part / parts / 1e3, getattr(weight, name) / 1e6
            trial.point("size under churn", line, done, size, axes=("thousands of writes", "MB"))


def _settle_down(kvd: Kvd) -> None:
    """Wait until no snapshot is being taken and the log behind it is gone."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        time.sleep(0.1)
        if not list((kvd.data_dir / "snap").glob("*.tmp")):
            return


def _check_weights(trial: Trial, weights: list[Weight], segment: int) -> None:
    early, late = weights[2], weights[-1]
    for name in ("memory", "index", "log", "snapshots"):
        trial.figures[f"MB of {name}: at 30 %"] = round(getattr(early, name) / 1e6, 1)
        trial.figures[f"MB of {name}: at the end"] = round(getattr(late, name) / 1e6, 1)
    trial.figures["open files"] = f"{early.fds} to {late.fds}"
    trial.check(late.fds <= early.fds + 4, f"{late.fds} open files, {early.fds} before")
    trial.check(late.memory < early.memory * 1.3 + (8 << 20), f"{late.memory} bytes of memory")
    trial.check(late.index < early.index * 1.3 + (4 << 20), f"{late.index} bytes of index")
    limit = _log_bytes_max(weights, segment)
    trial.check(late.log < limit, f"{late.log} bytes of log, at most {limit:.0f} by those before")


def _log_bytes_max(weights: list[Weight], segment: int) -> float:
    return 1.5 * max(weight.log for weight in weights[:3]) + segment


EXPERIMENTS = (
    Experiment(
        "replay",
        "a store opened from its index, from either snapshot, past a damaged one or without an "
        "index is the same to the last event, also the second time",
        ("lossy-load",),
        *(50, 1, "stores", replay_ways),
    ),
    Experiment(
        "expiry",
        "keys that end in one second are told once each, in the order of their ends, while reads "
        "go on; a replay in 1970 gives the same",
        ("drop-event",),
        *(100_000, 2000, "keys", expiry),
    ),
    Experiment(
        "churn",
        "writing the same keys for ever, the log, the index, the memory and the open files stop "
        "growing",
        ("keep-segments",),
        *(10_000_000, 4000, "writes", churn),
    ),
)

"""A disk that fails, fills up or is slow, a clock that jumps, and how long a restart takes."""

import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.crash.lab.experiment import Experiment, Skipped, Trial, Violation, need_strace
from tests.crash.lab.killing import (
    FLAGS,
    SMALL_FLAGS,
    check_directory,
    script,
    settle,
    start,
)
from tests.crash.lab.ledger import Ledger
from tests.crash.lab.mutant import CLOCK_FILE, SLOW_SYNC
from tests.crash.lab.process import ROOT, Kvd, NotListening
from tests.crash.lab.workload import Clients, Connection, Op

_EXIT_IO = 74
_TMPFS_MB = 48

# Reads on a full disk may take twice as long as before, and as long as a busy machine may take.
_FULL_DISK_READ_S = 0.02
_ENOUGH_FOR_P99 = 1000
_READS = 40


def fsync_eio(trial: Trial) -> None:
    """Let the Nth fdatasync of a thread fail, once or from then on; for every N."""
    need_strace()
    for number in range(1, trial.rounds + 1):
        data = trial.directory / "data"
        shutil.rmtree(data, ignore_errors=True)
        when = f"{number}+" if number % 2 else str(number)
        strace = (
            *("-o", "/dev/null", "-e", "trace=fdatasync"),
            *("-e", f"inject=fdatasync:error=EIO:when={when}"),
        )
        ops: list[Op] = []
        with Kvd(data, *SMALL_FLAGS, "--snapshot-count", "1000000", mutant=trial.mutant) as kvd:
            try:
                kvd.start(straces={"*": strace})
            except NotListening:
                pass
            else:
                # Longer than a script, so that the Nth sync is met.
                while kvd.running() and len(ops) < trial.rounds + 500:
                    before = len(ops)
                    script(kvd.port, ops)
                    if len(ops) < before + 120:
                        break
            try:
                status = kvd.wait(timeout_s=2)
            except subprocess.TimeoutExpired:
                raise Violation(
                    f"fdatasync number {number} failed, and the server goes on: {len(ops)} writes"
                ) from None
        trial.check(
            status == _EXIT_IO, f"fdatasync {number} failed: exit status {status}, expected 74"
        )
        check_directory(data, ops)
        trial.figures["failures"] = number
        trial.figures["lost"] = 0
        trial.progress(number)


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A file system of 48 MB in memory."""
    if os.geteuid() != 0:
        raise Skipped("mounting a small file system needs root")
    place.mkdir(exist_ok=True)
    size = f"size={_TMPFS_MB}m,mode=700"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "crashlab", str(place)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        raise Skipped(f"tmpfs cannot be mounted: {mounted.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def full_disk(trial: Trial) -> None:
    """Fill the disk under 8 writers and free it again; every other time kill the server between.

    Before each filling and on each full disk reads are timed, each right behind a write, which is
    answered in one case and refused in the other.
    """
    # Small segments and a short history: it is the log that meets the full disk, not the index.
    flags = ("--wal-segment-bytes", "65536", "--snapshot-count", "1000")
    ledger = Ledger()
    clients = Clients(8, trial.seed)
    before: list[float] = []
    while_full: list[float] = []
    with small_disk(trial.directory / "disk") as place:
        ballast = place / "ballast"
        ballast.touch()
        with Kvd(place / "data", *flags, mutant=trial.mutant) as kvd:
            start(kvd)
            for _ in range(3):
                clients.start(kvd.port, 90)
                settle(ledger, clients.join(), kvd.port)
            for done in range(1, trial.rounds + 1):
                settle(ledger, _read_behind_writes(kvd.port, before), kvd.port)
                clients.start(kvd.port, 90)
                time.sleep(trial.dice.uniform(0.0, 0.1))
                _fill(ballast)
                _wait_until_refused(kvd, clients)
                trial.check(kvd.running(), f"the full disk ended the server: {kvd.stderr[-300:]}")
                ops = _read_while_full(trial, kvd)
                _wait_until_quiet(clients)
                ops += _read_behind_writes(kvd.port, while_full)
                if done % 2 == 0:
                    kvd.kill()
                    try:
                        kvd.start()
                        trial.count("restarts on the full disk")
                    except NotListening:
                        trial.count("restarts that had to wait for space")
                os.truncate(ballast, 0)
                if kvd.running():
                    _resume(trial, kvd, ops)
                else:
                    start(kvd)
                ops += clients.join()
                _count_refused(trial, ops)
                settle(ledger, ops, kvd.port)
                _compare_reads(trial, sorted(before), sorted(while_full))
                trial.figures["fillings"] = done
                trial.figures["acknowledged writes"] = ledger.acked
                trial.figures["lost"] = 0
                trial.progress(done)


def _fill(ballast: Path) -> None:
    with ballast.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(65536))
        except OSError:
            return


def _wait_until_refused(kvd: Kvd, clients: Clients) -> None:
    """Wait until writes are refused, or none is answered for half a second, or all are done."""
    answered, since = 0, time.monotonic()
    while kvd.running() and time.monotonic() < since + 0.5:
        if any(op.status >= 500 for op in clients.ops[-100:]):
            return
        now = sum(op.status > 0 for op in clients.ops)
        if now != answered:
            answered, since = now, time.monotonic()
        time.sleep(0.02)


def _read_behind_writes(port: int, times: list[float]) -> list[Op]:
    """Send a write and time a read behind it, again and again until a write is not answered."""
    ops: list[Op] = []
    with Connection(port, timeout_s=1) as writer, Connection(port) as reader:
        for number in range(_READS):
            now = time.monotonic()
            write = Op("PUT", f"/k/{number % 8}", {"value": f"beside a read {now}"}, now)
            ops.append(write)
            writer.send(write)
            # So it comes while the write is dealt with, not before.
            time.sleep(0.001)
            read = reader.get("/k/1")
            times.append(read.end - read.start)
            try:
                writer.receive(write)
            except TimeoutError:
                break
    return ops


def _wait_until_quiet(clients: Clients) -> None:
    """Wait until nobody is answered any more: all are done, or wait for space."""
    answered, end = -1, time.monotonic() + 5
    while time.monotonic() < end:
        now = sum(op.status > 0 for op in clients.ops)
        if now == answered:
            return
        answered = now
        time.sleep(0.1)


def _compare_reads(trial: Trial, before: list[float], while_full: list[float]) -> None:
    # A short run has few samples, of a machine that may be busy with other things.
    enough = min(len(before), len(while_full)) >= _ENOUGH_FOR_P99
    for share in (50, 99):
        free_s, full_s = (times[len(times) * share // 100] for times in (before, while_full))
        trial.figures[f"GET p{share} ms before"] = round(free_s * 1000, 2)
        trial.figures[f"GET p{share} ms on the full disk"] = round(full_s * 1000, 2)
        trial.check(
            full_s < max(2 * free_s, _FULL_DISK_READ_S) or (share == 99 and not enough),
            f"GET p{share} {full_s * 1000:.1f} ms on the full disk, {free_s * 1000:.1f} ms before",
        )


def _count_refused(trial: Trial, ops: list[Op]) -> None:
    refused = [op for op in ops if op.status >= 500]
    trial.count("refused for want of space", len(refused))
    for op in refused:
        trial.check(op.body.get("errorCode") == 300, f"a full disk is told as {op.body}")


def _read_while_full(trial: Trial, kvd: Kvd) -> list[Op]:
    ops: list[Op] = []
    times = []
    with Connection(kvd.port) as connection:
        for number in range(50):
            op = connection.get(f"/k/{number % 8}")
            trial.check(op.status in (200, 404), f"a read on the full disk: {op.status}")
            ops.append(op)
            times.append(op.end - op.start)
    trial.at_most("GET on the full disk at most s", max(times))
    keys = [op.key for op in ops if op.acked]
    if not keys:
        return ops
    # It may have to wait for space in the index, durable already.
    connection = Connection(kvd.port, timeout_s=2)
    op = Op("DELETE", keys[-1], {}, time.monotonic())
    ops.append(op)
    try:
        connection.request(op)
        outcome = "refused" if op.status >= 500 else "done"
    except TimeoutError:
        outcome = "waiting for space"
    connection.close()
    trial.count(f"deletes on the full disk: {outcome}")
    return ops


def _resume(trial: Trial, kvd: Kvd, ops: list[Op]) -> None:
    connection = Connection(kvd.port)
    began = time.monotonic()
    number = 0
    while time.monotonic() < began + 10:
        number += 1
        op = connection.put("/resumed", f"{began}.{number}")
        ops.append(op)
        if op.acked:
            break
        time.sleep(0.05)
    took = time.monotonic() - began
    connection.close()
    trial.at_most("writes back after s", took)
    trial.check(took <= 2.5, f"writes came back {took:.1f} s after there was space, expected 2")


def slow_disk(trial: Trial) -> None:
    """Make each sync take from 0 to 2 s; write with 16 clients and read with one more."""
    delays = [0.0, 0.002, 0.01, 0.05, 0.2, 2.0]
    delays = delays if trial.rounds >= len(delays) else [0.2, 2.0][: trial.rounds]
    trial.rounds = len(delays)
    rates, reads = [], []
    for done, delay in enumerate(delays, 1):
        data = trial.directory / "data"
        shutil.rmtree(data, ignore_errors=True)
        clients = Clients(16, f"{trial.seed} {delay}")
        with Kvd(data, *FLAGS, mutant=trial.mutant or "none") as kvd:
            kvd.start(env={SLOW_SYNC: str(delay)})
            clients.start(kvd.port)
            latencies = _read_for(kvd.port, max(1.0, 2 * delay + 0.5))
            # What is asked for meanwhile may still be waiting for the disk.
            kvd.kill()
            ops = clients.join()
            start(kvd)
            settle(Ledger(), ops, kvd.port)
        # A short run has few samples, of a machine that may be busy with other things.
        share = 99 if trial.rounds > 2 else 50
        latency = sorted(latencies)[len(latencies) * share // 100]
        # A refusal waits for the disk like a success: it may tell of what its batch has done.
        answered = sum(0 < op.status < 500 for op in ops)
        rates.append((delay * 1000, round(answered / max(1.0, 2 * delay + 0.5), 1)))
        reads.append((delay * 1000, round(latency * 1000, 2)))
        trial.figures[f"writes answered/s at {delay * 1000:g} ms"] = rates[-1][1]
        trial.figures[f"GET p{share} ms at {delay * 1000:g} ms"] = reads[-1][1]
        if delay >= 0.2:
            # With fast syncs the clients are busy, and it is them that the reader waits for.
            trial.check(
                latency < 0.05, f"a sync of {delay} s: GET p{share} {latency * 1000:.0f} ms"
            )
        trial.progress(done)
    trial.series["writes answered per second / ms of a sync"] = rates
    trial.series["GET p99, ms / ms of a sync"] = reads


def _read_for(port: int, seconds: float) -> list[float]:
    connection = Connection(port)
    times = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        op = connection.get("/k/1")
        times.append(op.end - op.start)
        time.sleep(0.002)
    connection.close()
    return times


def clock(trial: Trial) -> None:
    """Step the system's clock while the server runs, and between two lives of it."""
    hour, years = 3600, 315_360_000
    for done in range(1, trial.rounds + 1):
        data = trial.directory / "data"
        shutil.rmtree(data, ignore_errors=True)
        setting = trial.directory / "clock.json"
        setting.write_text("0")
        step = trial.dice.choice((hour, -hour, years, -years))
        env = {CLOCK_FILE: str(setting)}
        with Kvd(data, *FLAGS, mutant=trial.mutant or "none") as kvd:
            kvd.start(env=env)
            with Connection(kvd.port) as connection:
                _step_while_running(trial, connection, kvd.port, setting, step)
            kvd.kill()
            # A clock that is behind the log must not lengthen a lease either.
            setting.write_text(str(-hour))
            kvd.start(env=env)
            with Connection(kvd.port) as connection:
                found = connection.get("/long")
            trial.check(found.status == 200, f"set back {hour} s: {found.body}")
            trial.check(found.body["node"]["ttl"] <= 600, f"set back: {found.body['node']}")
            kvd.kill()
            setting.write_text(str(hour))
            kvd.start(env=env)
            with Connection(kvd.port) as connection:
                found = connection.get("/long")
            trial.check(found.status == 404, "down for an hour, and a lease of 600 s goes on")
        trial.figures["rounds"] = done
        trial.progress(done)


def _step_while_running(
    trial: Trial, connection: Connection, port: int, setting: Path, step: int
) -> None:
    long = connection.put("/long", "1", ttl=600)
    short = connection.put("/short", "1", ttl=1)
    setting.write_text(str(step))
    after = connection.put("/after", "1", ttl=600)
    found = connection.get("/long")
    trial.check(found.status == 200, f"a step of {step} s ended a lease of 600 s")
    trial.check(585 < found.body["node"]["ttl"] <= 600, f"{step} s: {found.body['node']}")
    expiration = long.body["node"]["expiration"]
    trial.check(found.body["node"]["expiration"] == expiration, "an expiration has moved")
    trial.check(after.body["node"]["expiration"] >= expiration, "time went back")
    event = _wait_for_expiry(port, "/short", short.index + 1)
    took = time.monotonic() - short.start
    trial.check(event["action"] == "expire", f"{event}")
    trial.check(0.9 < took < 5, f"after a step of {step} s a lease of 1 s took {took:.1f} s")
    trial.at_most("a lease of 1 s took at most s", took)


def _wait_for_expiry(port: int, key: str, index: int) -> dict:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", f"/v2/keys{key}?wait=true&waitIndex={index}")
        return json.loads(connection.getresponse().read())
    except TimeoutError:
        raise Violation(f"{key} never expires") from None
    finally:
        connection.close()


_WRITER = """
import os, sys
from pathlib import Path
from kvd.storage.format.records import Change, Kind, encode_record
from kvd.storage.store import Store
store = Store.open(Path(sys.argv[1]))
now = 1_000_000_000
for first in range(2, int(sys.argv[2]) + 2, 1000):
    txn = store.begin()
    records = []
    for index in range(first, first + 1000):
        change = Change(Kind.SET, index, b"/k/%d/%d" % (index % 97, index), b"v" * 64, False, index)
        records.append(encode_record(change))
        txn.perform(change, now, records[-1])
    store.encode(txn, records, now)
    store.state.merge(txn, store.append(txn))
os._exit(0)
"""


def recovery_time(trial: Trial) -> None:
    """Write logs of growing length without a snapshot, and time the restart after the end."""
    sizes = [1000 * 3**n for n in range(trial.rounds)]
    reused, rebuilt = [], []
    for done, size in enumerate(sizes, 1):
        data = trial.directory / "data"
        shutil.rmtree(data, ignore_errors=True)
        subprocess.run(
            [sys.executable, "-c", _WRITER, str(data), str(size)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            check=True,
        )
        with Kvd(data, mutant=trial.mutant) as kvd:
            start(kvd, fresh=True)
            trial.check(
                "from same boot" in kvd.stderr,
                "after the death of its process the index is rebuilt",
            )
            reused.append((size, round(kvd.ready_s, 3)))
            kvd.kill()
            start(kvd, "--rebuild-index", fresh=True)
            rebuilt.append((size, round(kvd.ready_s, 3)))
            with Connection(kvd.port) as connection:
                trial.check(connection.get("/").index == size + 1, "records are missing")
        trial.figures[f"{size} records: reused, s"] = reused[-1][1]
        trial.figures[f"{size} records: rebuilt, s"] = rebuilt[-1][1]
        trial.progress(done)
    trial.series["ready after, s (index reused) / records in the log"] = reused
    trial.series["ready after, s (index rebuilt) / records in the log"] = rebuilt


EXPERIMENTS = (
    Experiment(
        "fsync-eio",
        "a sync that fails ends the server within 2 s with status 74, nothing is acknowledged on "
        "it, and the restart has all that was",
        ("retry-fsync",),
        *(200, 3, "failures", fsync_eio),
    ),
    Experiment(
        "full-disk",
        "on a full disk writes are refused, reads go on as fast as before, nothing is lost, and "
        "writes are back within two seconds of space",
        ("die-when-full", "wait-when-full"),
        *(50, 2, "fillings", full_disk),
    ),
    Experiment(
        "slow-disk",
        "while a sync takes two seconds, GETs are answered in less than 50 ms",
        ("sync-on-loop",),
        *(6, 1, "delays", slow_disk),
    ),
    Experiment(
        "clock",
        "a step of the system's clock ends no lease early and prolongs none; an hour of downtime "
        "counts",
        ("wall-clock",),
        *(12, 1, "rounds", clock),
    ),
    Experiment(
        "recovery-time",
        "a restart after the death of the process uses the index again and loses no record",
        ("no-reuse",),
        *(7, 2, "lengths of log", recovery_time),
    ),
)

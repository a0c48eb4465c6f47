"""A disk that fails, fills up or is slow, a clock that jumps, and how long a restart takes."""

import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from kvd.testing.crash import Clients, Connection, Ledger, Request
from tests.crash.lab.experiment import Experiment, Trial, Violation, need_strace
from tests.crash.lab.full_disk import full_disk
from tests.crash.lab.killing import FLAGS, SMALL_FLAGS, check_directory, script, start
from tests.crash.lab.mutant import CLOCK_FILE, SLOW_SYNC
from tests.crash.lab.process import ROOT, Kvd, NotListening

_EXIT_IO = 74
_RESTARTS = 5
_RECOVERY = "time until a restarted server listens"


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
        ops: list[Request] = []
        with Kvd(data, *SMALL_FLAGS, "--snapshot-count", "1000000", mutant=trial.mutant) as kvd:
            try:
                kvd.start(straces={"*": strace})
            except NotListening:
                pass
            else:
                # Longer than a script, so that the Nth sync is met.
                while kvd.running() and len(ops) < trial.rounds + 500:
                    before = len(ops)
                    script(kvd.url, ops)
                    if len(ops) < before + 120:
                        break
            since = time.monotonic()
            try:
                status = kvd.wait(timeout_s=2)
                trial.sample("end of the server after the failure", time.monotonic() - since)
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


def slow_disk(trial: Trial) -> None:
    """Make each sync take from 0 to 2 s; write with 16 clients and read with one more."""
    delays = [0.0, 0.002, 0.01, 0.05, 0.2, 2.0]
    delays = delays if trial.rounds >= len(delays) else [0.2, 2.0][: trial.rounds]
    trial.rounds = len(delays)
    for done, delay in enumerate(delays, 1):
        data = trial.directory / "data"
        shutil.rmtree(data, ignore_errors=True)
        clients = Clients(16, f"{trial.seed} {delay}")
        with Kvd(data, *FLAGS, mutant=trial.mutant or "none") as kvd:
            kvd.start(env={SLOW_SYNC: str(delay)})
            clients.start(kvd.url)
            latencies = _read_for(kvd.url, max(1.0, 2 * delay + 0.5))
            # What is asked for meanwhile may still be waiting for the disk.
            kvd.kill()
            ops = clients.join()
            start(kvd)
            Ledger().check(ops, kvd.url)
        # A short run has few samples, of a machine that may be busy with other things.
        share = 99 if trial.rounds > 2 else 50
        latency = sorted(latencies)[len(latencies) * share // 100]
        # A refusal waits for the disk like a success: it may tell of what its batch has done.
        answered = sum(0 < op.status < 500 for op in ops)
        rate, ms = answered / max(1.0, 2 * delay + 0.5), delay * 1000
        axes = ("ms that a sync takes longer", "writes answered per second")
        trial.point("writes on a slow disk", "writes", ms, rate, axes=axes)
        trial.set_samples(f"GET while a sync takes {ms:g} ms longer", latencies)
        trial.figures["delays"] = done
        if delay >= 0.2:
            # With fast syncs the clients are busy, and it is them that the reader waits for.
            trial.check(
                latency < 0.05, f"a sync of {delay} s: GET p{share} {latency * 1000:.0f} ms"
            )
        trial.progress(done)


def _read_for(url: str, seconds: float) -> list[float]:
    connection = Connection(url)
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
            with Connection(kvd.url) as connection:
                _step_while_running(trial, connection, kvd.port, setting, step)
            kvd.kill()
            # A clock that is behind the log must not lengthen a lease either.
            setting.write_text(str(-hour))
            kvd.start(env=env)
            with Connection(kvd.url) as connection:
                found = connection.get("/long")
            trial.check(found.status == 200, f"set back {hour} s: {found.body}")
            trial.check(found.body["node"]["ttl"] <= 600, f"set back: {found.body['node']}")
            kvd.kill()
            setting.write_text(str(hour))
            kvd.start(env=env)
            with Connection(kvd.url) as connection:
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
    trial.sample("length of a lease of 1 s", took)


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
        txn.apply(change, now, records[-1])
    store.journal.encode(txn, records, now)
    store.state.merge(txn, store.journal.append(txn))
os._exit(0)
"""


def recovery_time(trial: Trial) -> None:
    """Write logs of growing length without a snapshot, and time the restart after the end."""
    sizes = [1000 * 3**n for n in range(trial.rounds)]
    # Each is timed several times in a full run; each restart leaves what it found.
    times = _RESTARTS if trial.rounds > 2 else 1
    axes = ("records in the log", "s until it listens")
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
            for _ in range(times):
                start(kvd, fresh=True)
                trial.check(
                    "from same boot" in kvd.stderr,
                    "after the death of its process the index is rebuilt",
                )
                trial.point(_RECOVERY, "index reused", size, kvd.ready_s, axes=axes)
                kvd.kill()
            for turn in range(times):
                if turn:
                    kvd.kill()
                start(kvd, "--rebuild-index", fresh=True)
                trial.point(_RECOVERY, "index rebuilt", size, kvd.ready_s, axes=axes)
            with Connection(kvd.url) as connection:
                trial.check(connection.get("/").index == size + 1, "records are missing")
        trial.figures["records in the longest log"] = size
        trial.figures["records missing"] = 0
        trial.progress(done)


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

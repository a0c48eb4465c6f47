"""The experiment with a full disk: writes refused, reads served, room again."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvd.testing.crash import Clients, Connection, Ledger, Request
from tests.crash.lab.experiment import Skipped, Trial
from tests.crash.lab.killing import start
from tests.crash.lab.process import Kvd, NotListening

_TMPFS_MB = 48

# Reads on a full disk may take twice as long as before, and as long as a busy machine may take.
_FULL_DISK_READ_S = 0.02
_ENOUGH_FOR_P99 = 1000
_READS = 40


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
                clients.start(kvd.url, 90)
                ledger.check(clients.join(), kvd.url)
            for done in range(1, trial.rounds + 1):
                ledger.check(_read_behind_writes(kvd.url, before), kvd.url)
                clients.start(kvd.url, 90)
                time.sleep(trial.dice.uniform(0.0, 0.1))
                _fill(ballast)
                _wait_until_refused(kvd, clients)
                trial.check(kvd.running(), f"the full disk ended the server: {kvd.stderr[-300:]}")
                ops = _read_while_full(trial, kvd)
                _wait_until_quiet(clients)
                ops += _read_behind_writes(kvd.url, while_full)
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
                ledger.check(ops, kvd.url)
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
        if any(op.status >= 500 for op in clients.requests[-100:]):
            return
        now = sum(op.status > 0 for op in clients.requests)
        if now != answered:
            answered, since = now, time.monotonic()
        time.sleep(0.02)


def _read_behind_writes(url: str, times: list[float]) -> list[Request]:
    """Send a write and time a read behind it, again and again until a write is not answered."""
    ops: list[Request] = []
    with Connection(url, timeout_s=1) as writer, Connection(url) as reader:
        for number in range(_READS):
            now = time.monotonic()
            write = Request("PUT", f"/k/{number % 8}", {"value": f"beside a read {now}"}, now)
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
        now = sum(op.status > 0 for op in clients.requests)
        if now == answered:
            return
        answered = now
        time.sleep(0.1)


def _compare_reads(trial: Trial, before: list[float], while_full: list[float]) -> None:
    # A short run has few samples, of a machine that may be busy with other things.
    enough = min(len(before), len(while_full)) >= _ENOUGH_FOR_P99
    for name, times in (("before", before), ("on the full disk", while_full)):
        trial.set_samples(f"GET behind a write, {name}", times)
    for share in (50, 99):
        free_s, full_s = (times[len(times) * share // 100] for times in (before, while_full))
        trial.check(
            full_s < max(2 * free_s, _FULL_DISK_READ_S) or (share == 99 and not enough),
            f"GET p{share} {full_s * 1000:.1f} ms on the full disk, {free_s * 1000:.1f} ms before",
        )


def _count_refused(trial: Trial, ops: list[Request]) -> None:
    refused = [op for op in ops if op.status >= 500]
    trial.count("refused for want of space", len(refused))
    for op in refused:
        trial.check(op.body.get("errorCode") == 300, f"a full disk is told as {op.body}")


def _read_while_full(trial: Trial, kvd: Kvd) -> list[Request]:
    ops: list[Request] = []
    times = []
    with Connection(kvd.url) as connection:
        for number in range(50):
            op = connection.get(f"/k/{number % 8}")
            trial.check(op.status in (200, 404), f"a read on the full disk: {op.status}")
            ops.append(op)
            times.append(op.end - op.start)
    for took in times:
        trial.sample("GET on the full disk", took)
    keys = [op.key for op in ops if op.acked]
    if not keys:
        return ops
    # It may have to wait for space in the index, durable already.
    connection = Connection(kvd.url, timeout_s=2)
    op = Request("DELETE", keys[-1], {}, time.monotonic())
    ops.append(op)
    try:
        connection.request(op)
        outcome = "refused" if op.status >= 500 else "done"
    except TimeoutError:
        outcome = "waiting for space"
    connection.close()
    trial.count(f"deletes on the full disk: {outcome}")
    return ops


def _resume(trial: Trial, kvd: Kvd, ops: list[Request]) -> None:
    connection = Connection(kvd.url)
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
    trial.sample("writes back after there is room", took)
    trial.check(took <= 2.5, f"writes came back {took:.1f} s after there was space, expected 2")

"""Writes that the system takes in part: the limit on file size falls on every byte of a frame."""

import resource
import time
from pathlib import Path

from kvd.testing.crash import Connection, Ledger, Request
from tests.crash.lab.experiment import Experiment, Trial
from tests.crash.lab.killing import start
from tests.crash.lab.process import Kvd

_FLAGS = (
    *("--wal-segment-bytes", str(8 << 20), "--snapshot-count", "1000000"),
    *("--event-history-limit", "60"),
)
_KEY = "/k/1"
# The log's end has to lie behind everything that is written into the index's file.
_WRITES_BEFORE, _VALUE_BEFORE = 500, "v" * 9000
_VALUE = "s" * 600
_KILL_EACH = 20
_BACK_S = 2.0


def short_write(trial: Trial) -> None:
    """Let the limit on file size fall on each byte of a frame, write, and lift it again."""
    ledger = Ledger()
    with Kvd(trial.directory / "data", *_FLAGS, mutant=trial.mutant) as kvd:
        start(kvd)
        for number in range(0, _WRITES_BEFORE, 40):
            with Connection(kvd.url) as connection:
                ops = [connection.put(_KEY, f"{number + n}.{_VALUE_BEFORE}") for n in range(40)]
            ledger.check(ops, kvd.url)
        assert 4096 * _index_pages(kvd.data_dir) < _log_end(kvd.data_dir)
        for first in range(0, trial.rounds, _KILL_EACH):
            ops = []
            with Connection(kvd.url) as connection:
                for position in range(first, min(first + _KILL_EACH, trial.rounds)):
                    if position > first:
                        _write_with_room(trial, kvd, connection, position, ops)
                    ops.append(_write_up_to(trial, kvd, connection, position))
                    trial.figures["positions"] = position + 1
                    trial.progress(position + 1)
            kvd.kill()
            start(kvd, *(["--rebuild-index"] if first % 40 else []))
            ledger.check(ops, kvd.url)
            trial.count("kills behind a short write")
            trial.figures["lost"] = 0


def _write_with_room(
    trial: Trial, kvd: Kvd, connection: Connection, position: int, ops: list[Request]
) -> None:
    """Lift the limit and write; whoever was asking the disk meanwhile may be answered first."""
    _limit(kvd, resource.RLIM_INFINITY)
    end = time.monotonic() + _BACK_S
    while True:
        op = connection.put(_KEY, f"{position}.after.{time.monotonic()}")
        ops.append(op)
        if op.acked or time.monotonic() > end:
            break
    trial.check(op.acked, f"before position {position}, with room again: {op.body}")


def _write_up_to(trial: Trial, kvd: Kvd, connection: Connection, position: int) -> Request:
    """Write a frame of which only `position` bytes are taken; it must be refused."""
    _limit(kvd, _log_end(kvd.data_dir) + position)
    op = connection.put(_KEY, f"{position}.{_VALUE}")
    trial.check(
        op.status == 500 and op.body["errorCode"] == 300,
        f"{position} bytes of a frame were taken, and the answer is {op.status} {op.body}",
    )
    read = connection.get(_KEY)
    trial.check(
        read.acked and not read.body["node"]["value"].endswith("s"),
        f"after a refusal the value is {str(read.body)[:80]}",
    )
    return op


def _limit(kvd: Kvd, size: int) -> None:
    _, hard = resource.prlimit(kvd.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(kvd.pid, resource.RLIMIT_FSIZE, (size, hard))


def _log_end(data: Path) -> int:
    content = max((data / "wal").glob("*.wal")).read_bytes().rstrip(b"\0")
    return -(-len(content) // 8) * 8


def _index_pages(data: Path) -> int:
    content = (data / "index" / "data.mdb").read_bytes().rstrip(b"\0")
    return -(-len(content) // 4096)


EXPERIMENTS = (
    Experiment(
        "short-write",
        "a frame that the system takes in part, up to any of its bytes, is refused whole; the next "
        "one is written over it, and nothing is lost",
        ("short-write",),
        *(500, 12, "positions", short_write),
    ),
)

"""The delays that another client sees: a process that reads one key over and over.

Many writers or watchers keep the server busy meanwhile. The probe is a process of its own because
the load generator is busy too, and it has precedence over the generators, so that it measures the
server's delays and not its own.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Self

from bench.load import servers
from bench.load.wire import Client, LoadError, parse, render

if TYPE_CHECKING:
    from types import TracebackType

    from bench.load.wire import Address

PAUSE_S = 0.001
"""Between two reads: the probe itself must not be a load."""
PRECEDENCE = -10
"""Niceness, where the user may have it."""


class Sample(NamedTuple):
    """One read: when it was sent and when answered, in ns of `time.perf_counter_ns`."""

    sent_ns: int
    answered_ns: int

    @property
    def ms(self) -> float:
        """Duration of the read, in milliseconds."""
        return (self.answered_ns - self.sent_ns) / 1e6


class Probe:
    """A process that reads a key from the moment this exists until `stop`."""

    def __init__(self, address: Address, path: str) -> None:
        self._process = subprocess.Popen(
            [
                *servers.die_with_parent(), sys.executable, "-m", "bench.load.probe",
                address[0], str(address[1]), path,
            ],
            cwd=servers.CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it says when it has begun

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def pause(self) -> None:
        """Read no more."""
        assert self._process.stdin is not None
        self._process.stdin.write("stop\n")
        self._process.stdin.flush()

    def stop(self) -> list[Sample]:
        """End it, and return all reads.

        Raises:
            LoadError: a read failed.
        """
        reported, _ = self._process.communicate("stop\n")
        if self._process.returncode:
            raise LoadError("the client that reads meanwhile was not answered")
        return [Sample(*pair) for pair in json.loads(reported)]


def overlapping(samples: list[Sample], start_ns: int, end_ns: int) -> list[float]:
    """Return how many ms those reads took that were waiting at some time of a span, sorted."""
    return sorted(s.ms for s in samples if s.sent_ns <= end_ns and s.answered_ns >= start_ns)


def main() -> int:
    """Read until something comes on stdin; then print all samples as JSON."""
    host, port, path = sys.argv[1:]
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, PRECEDENCE)
    request = render("GET", path)
    samples: list[tuple[int, int]] = []
    with Client((host, int(port))) as client:
        print("begun", flush=True)
        while not select.select([sys.stdin], [], [], PAUSE_S)[0]:
            sent_ns = time.perf_counter_ns()
            answer = client.exchange(request)
            samples.append((sent_ns, time.perf_counter_ns()))
            if not parse(answer).ok:
                return 1
    print(json.dumps(samples))
    return 0


if __name__ == "__main__":
    sys.exit(main())

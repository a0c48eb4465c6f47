"""Processes that take turns with one recipe: `python -m tests.client.trials.workers KIND URL ...`.

Each says in lines of JSON what it has done, before it does the next.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from kvd import Client
from kvd.client import KvdError, LockLost, NotSupported, Op, OutcomeUnknown, QueueEmpty, exists
from kvd.recipes import Held

# Longer than what a server takes to start again on a busy machine.
TIMEOUT_S = 30


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def lock(client: Client, turns: int, ttl: int) -> None:
    """Hold the lock so often, and write its fence to a register while it is held."""
    done = 0
    while done < turns:
        try:
            with client.lock("/lock", ttl=ttl) as held:
                began = time.monotonic()
                written = None
                with contextlib.suppress(KvdError):
                    written = write_fenced(client, held)
                is_held = not held.lost.is_set()
                ended = time.monotonic()
                say(fence=held.fence, began=began, ended=ended, held=is_held, written=written)
                done += 1
        except KvdError as error:
            say(error=type(error).__name__)


def write_fenced(client: Client, held: Held[threading.Event]) -> int | None:
    """Write the fence to a register that refuses older ones; the index of the write, if any."""
    try:
        (event,) = client.txn([Op.set("/register", str(held.fence))], when=[exists(held.key)])
    except NotSupported:  # an etcd compares nothing but the register itself
        own = str(held.fence)
        done = client.update("/register", lambda last: own if int(last or 0) < held.fence else None)
        return None if done is None else done.index
    return event.index


def counter(client: Client, turns: int, _: int) -> None:
    """Add one so often that it is acknowledged, or not known."""
    done = 0
    while done < turns:
        try:
            client.counter("/counter").add()
        except OutcomeUnknown:
            say(unknown=1)
        except KvdError as error:
            say(error=type(error).__name__)
            continue
        done += 1
    say(done=done)


def queue(client: Client, _: int, ttl: int) -> None:
    """Take items until it is killed."""
    while True:
        try:
            with client.queue("/queue", ttl=ttl).take(timeout=1) as item:
                say(item=item.id)
        except (QueueEmpty, LockLost):
            continue
        except KvdError as error:
            say(error=type(error).__name__)


KINDS = {one.__name__: one for one in (lock, counter, queue)}


class Worker:
    """One of these processes.

    Attributes:
        said: what it has said so far.
    """

    def __init__(self, kind: str, url: str, turns: int, ttl: int) -> None:
        self.said: list[dict[str, Any]] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, kind, url, str(turns), str(ttl)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with contextlib.suppress(ValueError):  # it was killed amid the line
                    self.said.append(json.loads(line))

    def is_running(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self.wait(0)

    def wait(self, expected: int = 0) -> None:
        """Wait for its end."""
        status = self._process.wait(3600)
        self._reader.join()
        assert status in (expected, -signal.SIGKILL), f"a worker has ended with {status}"


def end_with(parent: int) -> None:
    """Leave no worker behind when a trial is ended."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def main(arguments: Sequence[str]) -> None:
    kind, url, turns, ttl = arguments
    with Client(url, timeout=TIMEOUT_S) as client:
        KINDS[kind](client, int(turns), int(ttl))


if __name__ == "__main__":
    threading.Thread(target=end_with, args=[os.getppid()], daemon=True).start()
    main(sys.argv[1:])

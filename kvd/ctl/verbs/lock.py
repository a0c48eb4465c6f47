"""`lock`: a command that runs while a lock is held."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from types import FrameType

import click

from kvd.client.recipes.blocking import Lock
from kvd.ctl.command import Call, Verb, keys, pass_call
from kvd.ctl.failures import CONFLICT, failure

_KILL_S = 5.0
# A year: threads cannot wait much longer than that for the next time to refresh a lock.
_TTL_MAX_S = 365 * 86400
_LOST = "the lock on {} was lost: the command was ended"


@click.command(cls=Verb, is_ordered=False, help="Run a command while a lock is held.")
@click.argument("key", shell_complete=keys)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--ttl",
    type=click.IntRange(3, _TTL_MAX_S),
    default=10,
    metavar="S",
    help="seconds after which the lock is free if its holder has died (10)",
)
@pass_call
def command(call: Call, *, key: str, command: tuple[str, ...], ttl: int) -> int:
    """Run a command while a lock is held; its fence is in `KVD_FENCE`."""
    run = _Run()
    session = call.session
    session.operations.exchanges.rounds = None  # a lock outlives a restart of the server
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, run.forward)
    try:
        with Lock(session.driver, session.operations, key, ttl, run.end) as held:
            status = run.start(command, held.fence)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    if run.is_lost:
        raise failure(_LOST.format(key), CONFLICT)
    return status


class _Run:
    """The command of one call.

    Attributes:
        is_lost: whether the lock was lost while it ran.
    """

    def __init__(self) -> None:
        self.is_lost = False
        self._process: subprocess.Popen[bytes] | None = None
        self._is_starting = False
        self._waiting: list[int] = []
        self._ended = threading.Event()

    def start(self, command: tuple[str, ...], fence: int) -> int:
        """Run the command; return its status, 128 and the signal that has ended it."""
        self._is_starting = True
        try:
            self._process = subprocess.Popen(  # noqa: S603 -- that is what the verb is for
                command, env={**os.environ, "KVD_FENCE": str(fence)}
            )
        except OSError as error:
            raise failure(f"{command[0]}: {error.strerror}", 127) from None
        try:
            if self.is_lost:
                self.end()
            for number in self._waiting:  # they came while it was started
                self._process.send_signal(number)
            status = self._process.wait()
        finally:
            self._ended.set()
        return status if status >= 0 else 128 - status

    def forward(self, number: int, _: FrameType | None) -> None:
        """Hand a signal on to the command; without one, end the wait for the lock."""
        if self._process is not None:
            self._process.send_signal(number)
        elif self._is_starting:
            self._waiting.append(number)
        else:
            raise KeyboardInterrupt

    def end(self) -> None:
        """End the command, because the lock is lost; runs on the thread that keeps the lock."""
        self.is_lost = True
        if self._process is None:
            return
        self._process.terminate()
        if not self._ended.wait(_KILL_S):
            self._process.kill()

"""A server in a process of its own, on one port, that can be killed and started again."""

import contextlib
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kvd import Client
from kvd.client import KvdError

PATIENCE_S = 60.0
# Below what Linux gives to outgoing connections.
_PORTS = range(15_000, 32_000)

Command = Callable[[Path, str], list[str]]


def kvd(*flags: str) -> Command:
    """kvd, as it is imported here."""

    def command(directory: Path, url: str) -> list[str]:
        own = ("--data-dir", str(directory), "--listen-client-urls", url)
        return [sys.executable, "-m", "kvd", *own, *flags]

    return command


def etcd(program: str) -> Command:
    """A real etcd with the v2 API."""
    peer = f"http://127.0.0.1:{free_port()}"

    def command(directory: Path, url: str) -> list[str]:
        return [
            *(program, "--enable-v2=true", "--name", "one", "--data-dir", str(directory)),
            *("--listen-client-urls", url, "--advertise-client-urls", url),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"one={peer}"),
        ]

    return command


def free_port() -> int:
    while True:
        port = random.choice(_PORTS)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Server:
    """A server over one directory, at one address.

    Attributes:
        kills: how often it was killed.
    """

    def __init__(self, command: Command, directory: Path) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.kills = 0
        self._command = command(directory, self.url)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it serves; nothing is written."""
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        ends = time.monotonic() + PATIENCE_S
        with Client(self.url, timeout=0.5) as client:
            while True:
                with contextlib.suppress(KvdError):
                    client.get("/", quorum=True)
                    return
                assert time.monotonic() < ends, f"it does not serve: {self._command}"
                assert self._process.poll() is None, f"it has ended: {self._command}"

    def kill(self) -> None:
        """End it as `kill -9` does, and start it again."""
        self.stop()
        self.kills += 1
        self.start()

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_S)


@contextlib.contextmanager
def serving(command: Command) -> Iterator[Server]:
    """A server over a directory that goes away with it."""
    with tempfile.TemporaryDirectory(prefix="kvd-trial-") as directory:
        server = Server(command, Path(directory) / "data")
        try:
            server.start()
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def killed(server: Server, kills: int, pause_s: float, dice: random.Random) -> Iterator[None]:
    """Kill a server so often, at random moments, while the body runs; waits for the last."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            for _ in range(kills):
                time.sleep(dice.uniform(0.1, 2 * pause_s))
                server.kill()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failures:
        raise failures[0]

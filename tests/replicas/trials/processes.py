"""Processes of a trial: etcd and kvd, each on a directory, at one place; and what befalls them."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.replicas.trials.network import Place
from tests.replicas.trials.talk import ask

CLIENT_PORT, PEER_PORT = 2379, 2380
PREFIX = "/trial"
_STOP_S = 30.0


class Process:
    """A process that can be started again over what it has left."""

    def __init__(self, name: str, place: Place, directory: Path, flags: Sequence[str]) -> None:
        self.name = name
        self.place = place
        self.directory = directory
        self.starts = 0
        self._flags = flags
        self._running: subprocess.Popen[bytes] | None = None
        self._is_frozen = False
        self._is_ended = False
        self.failures: list[str] = []
        """What it ended with where no fault had ended it."""

    @property
    def client(self) -> tuple[str, int]:
        """Where its clients reach it."""
        return self.place.address, CLIENT_PORT

    @property
    def is_running(self) -> bool:
        return self._running is not None and self._running.poll() is None

    @property
    def pid(self) -> int | None:
        """Its number, None if it does not run."""
        return self._running.pid if self._running is not None and self.is_running else None

    def arguments(self) -> list[str]:
        """Return what names its directory on the command line."""
        return ["--data-dir", str(self.directory)]

    async def serves(self) -> bool:
        """Return whether it serves linearizable reads."""
        response = await ask(self.client, "/v2/keys/?quorum=true")
        assert response is None or response.status == 200, f"{self.name}: {response}"
        return response is not None

    @property
    def log(self) -> Path:
        return self.directory.with_suffix(".log")

    def start(self) -> None:
        """Start it, unless it runs."""
        if self.is_running:
            return
        self.look()
        self._is_ended = False
        self.starts += 1
        own = {name: text for name, text in os.environ.items() if not name.startswith("ETCD")}
        with self.log.open("ab") as log:
            self._running = subprocess.Popen(
                [*self.place.inside(), *self._flags, *self.arguments()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=own,
            )

    def look(self) -> None:
        """Note it if the process has ended on its own account."""
        running = self._running
        if running is not None and running.poll() is not None and not self._is_ended:
            self._is_ended = True
            last = self.log.read_text(errors="replace").splitlines()[-1:]
            self.failures.append(f"{self.name} has ended, status {running.returncode}: {last}")

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self.look()
        self._is_ended = True
        self.signal(signal.SIGKILL)
        if self._running is not None:
            self._running.wait(_STOP_S)
        self._is_frozen = False

    def terminate(self) -> None:
        """Ask it to end; does not wait."""
        self.look()
        self._is_ended = True
        self.signal(signal.SIGTERM)

    def has_ended(self) -> bool:
        return not self.is_running

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)
        self._is_frozen = True

    def thaw(self) -> None:
        if self._is_frozen:
            self.signal(signal.SIGCONT)
            self._is_frozen = False

    def wipe(self) -> None:
        """Remove all that it keeps; it must not run."""
        assert not self.is_running
        shutil.rmtree(self.directory, ignore_errors=True)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self._running is not None and self._running.poll() is None:
            self._running.send_signal(number)


def etcds(places: Sequence[Place], root: Path, name: str) -> list[Process]:
    """Return the members of an etcd, with both APIs."""
    names = [f"{name}{number}" for number in range(1, len(places) + 1)]
    peers = [f"http://{place.address}:{PEER_PORT}" for place in places]
    cluster = ",".join(map("=".join, zip(names, peers, strict=True)))
    members = []
    for own, place, peer in zip(names, places, peers, strict=True):
        client = f"http://{place.address}:{CLIENT_PORT}"
        flags = [
            *("etcd", "--enable-v2=true", "--name", own, "--initial-cluster", cluster),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--logger", "zap", "--log-level", "warn"),
        ]
        members.append(Process(own, place, root / own, flags))
    return members


def url_of(members: Sequence[Process]) -> str:
    """Return the URL of the members of an etcd, as an engine."""
    hosts = ",".join(f"{host}:{port}" for host, port in (member.client for member in members))
    return f"etcd://{hosts}{PREFIX}"


def kvds(places: Sequence[Place], engine: Sequence[str], root: Path) -> list[Process]:
    """Return replicas of one store, whose log is in an engine, by the flags that name it."""
    servers = []
    for number, place in enumerate(places, 1):
        flags = [
            *(sys.executable, "-m", "kvd", "--name", f"kvd{number}"),
            *("--replicate", *engine),
            *("--listen-client-urls", f"http://{place.address}:{CLIENT_PORT}"),
            *("--advertise-client-urls", f"http://{place.address}:{CLIENT_PORT}"),
            *("--listen-peer-urls", f"http://{place.address}:{PEER_PORT}"),
            *("--event-history-limit", "1000000"),
        ]
        servers.append(Process(f"kvd{number}", place, root / f"kvd{number}", flags))
    return servers

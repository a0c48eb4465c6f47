"""Clusters under load: three members of an etcd 3.4, and three kvd whose log is in such an etcd."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Self

from bench.load.servers import HOST, Server, free_port, why_no_etcd
from bench.load.wire import Client, LoadError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

MEMBERS = 3
_LOOK_S = 0.05
_ELECTION_S = 30.0


class Cluster:
    """Servers with one store, and what they need.

    Attributes:
        name: What the table calls it.
        servers: Those with one store.
        needs: Servers that are started before.
    """

    def __init__(self, name: str, servers: Sequence[Server], needs: Sequence[Server] = ()) -> None:
        self.name = name
        self.needs = needs
        self.servers = servers
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            # None of them answers before most of them run; and a process ends with its thread.
            starts = self._stack.enter_context(ThreadPoolExecutor(MEMBERS))
            for group in (self.needs, self.servers):
                for server in group:
                    self._stack.callback(server.stop)
                for start in [starts.submit(server.start) for server in group]:
                    start.result()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def leader(self) -> Server:
        """Return the server that decides writes.

        Raises:
            LoadError: there is none.
        """
        return self._of_state("StateLeader")

    def follower(self) -> Server:
        """Return one of the others.

        Raises:
            LoadError: there is none.
        """
        return self._of_state("StateFollower")

    def cpu_s(self) -> float:
        """Return the CPU time that all its processes have used so far."""
        return sum(server.cpu_s() for server in (*self.needs, *self.servers))

    def _of_state(self, wanted: str) -> Server:
        ends_s = time.monotonic() + _ELECTION_S
        while time.monotonic() < ends_s:
            for server in self.servers:
                with contextlib.suppress(OSError, LoadError), Client(server.address) as client:
                    if json.loads(client.request("GET", "/v2/stats/self").body)["state"] == wanted:
                        return server
            time.sleep(_LOOK_S)
        raise LoadError(f"no server of {self.name} is in the state {wanted}")


def etcd_members(scratch: Path) -> list[Server]:
    """Return the members of a cluster of etcd, with the v2 API, not started yet.

    Raises:
        LoadError: there is no such etcd here.
    """
    if reason := why_no_etcd():
        raise LoadError(reason)
    peers = [f"http://{HOST}:{port}" for port in _ports()]
    cluster = ",".join(f"m{number}={peer}" for number, peer in enumerate(peers))
    return [
        Server(f"etcd{number}", partial(_member, number, peer, cluster), scratch, port=port)
        for number, (peer, port) in enumerate(zip(peers, _ports(), strict=True))
    ]


def _member(number: int, peer: str, cluster: str, port: int, data: Path) -> list[str]:
    client = f"http://{HOST}:{port}"
    return [
        "etcd", "--enable-v2=true", "--name", f"m{number}", "--data-dir", str(data),
        "--listen-client-urls", client, "--advertise-client-urls", client,
        "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
        "--initial-cluster", cluster,
    ]  # fmt: skip


def etcd(scratch: Path) -> Cluster:
    """Return three members of an etcd."""
    return Cluster("etcd", etcd_members(scratch))


def kvd(scratch: Path) -> Cluster:
    """Return three kvd with one store, and the etcd that keeps their log."""
    engines = etcd_members(scratch)
    hosts = ",".join(f"{HOST}:{engine.port}" for engine in engines)
    servers = [
        Server(f"kvd{number}", partial(_replica, number, hosts, peer), scratch, port=port)
        for number, (peer, port) in enumerate(zip(_ports(), _ports(), strict=True))
    ]
    return Cluster("kvd", servers, engines)


def _replica(number: int, hosts: str, peer: int, port: int, data: Path) -> list[str]:
    client = f"http://{HOST}:{port}"
    return [
        sys.executable, "-m", "kvd", "--name", f"m{number}", "--data-dir", str(data),
        "--replicate", f"etcd://{hosts}/bench",
        "--listen-client-urls", client, "--advertise-client-urls", client,
        "--listen-peer-urls", f"http://{HOST}:{peer}",
    ]  # fmt: skip


def _ports() -> list[int]:
    found: set[int] = set()
    while len(found) < MEMBERS:
        found.add(free_port())
    return list(found)

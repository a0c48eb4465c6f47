"""Three servers with one store, and the three members of the etcd that orders its writes."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from tests.replicas.trials.network import Network, Place
from tests.replicas.trials.postgres import Postgres
from tests.replicas.trials.processes import Process, etcds, kvds, url_of
from tests.replicas.trials.talk import ask
from tests.replicas.trials.traffic import Traffic

PATIENCE_S = 90.0
_LOOK_S = 0.05
_TRACEBACK = "Traceback (most recent call last)"


class Fleet:
    """The processes of a trial.

    Attributes:
        servers: What clients talk to.
        engines: The members of the etcd; the servers themselves if these are etcd.
        outside: Where the clients are.
        traffic: What faults order of the clients.
    """

    def __init__(self, kind: str, root: Path, network: Network) -> None:
        self.is_etcd = kind == "etcd"
        self.can_cut = network.is_apart
        self.outside = network.outside
        self.traffic = Traffic()
        places = [network.place(number) for number in (1, 2, 3)]
        if kind == "kvd-postgres":
            postgres = Postgres(places[0], root)
            self.engines: list[Process] = [postgres]
            named = [postgres.url, *postgres.credentials()]
        else:
            self.engines = etcds(places, root, "etcd")
            named = [url_of(self.engines)]
        if self.is_etcd:
            self.servers = self.engines
        else:
            further = [network.place(number) for number in (11, 12, 13)]
            self.servers = kvds(further, named, root)

    @property
    def processes(self) -> list[Process]:
        return self.engines if self.is_etcd else [*self.engines, *self.servers]

    @property
    def indexes_of_its_own(self) -> int:
        """How many indexes the servers may have taken for themselves.

        A member of an etcd publishes its URLs at each start, again if it hears nothing for long,
        and the first ones the version of the cluster.
        """
        return 3 * sum(one.starts for one in self.servers) + 10 if self.is_etcd else 0

    async def start(self) -> None:
        for engine in self.engines:
            engine.start()
        await self._all_serve(self.engines)
        for server in self.servers:
            server.start()
        await self.wait_until_healthy()

    async def heal(self) -> None:
        """Undo what any fault has done."""
        self.outside.heal()
        for process in self.processes:
            process.place.heal()
            process.thaw()
            process.start()

    async def wait_until_healthy(self) -> None:
        """Wait until every process serves linearizable reads."""
        await self._all_serve(self.engines)
        if not self.is_etcd:
            await self._all_serve(self.servers)

    async def digests(self) -> list[str]:
        """Stop the servers as SIGTERM does; return the digest of each kvd."""
        if self.is_etcd:
            return []
        for server in self.servers:
            server.terminate()
        ends = time.monotonic() + PATIENCE_S
        while any(server.is_running for server in self.servers):
            assert time.monotonic() < ends, "a server does not stop"
            await asyncio.sleep(_LOOK_S)
        command = [sys.executable, "-c", "import kvd.ctl; kvd.ctl.run()", "digest"]
        return [
            subprocess.check_output([*command, str(server.directory)], text=True).strip()
            for server in self.servers
        ]

    def failures(self) -> list[str]:
        """Return which processes have ended without a fault, and which logs have a traceback."""
        for process in self.processes:
            process.look()
        found = [text for process in self.processes for text in process.failures]
        logs = {process.name: process.log.read_text(errors="replace") for process in self.processes}
        return found + [f"{name}: a traceback" for name, text in logs.items() if _TRACEBACK in text]

    def stop(self) -> None:
        for process in self.processes:
            process.thaw()
            process.kill()

    async def leader(self) -> int:
        """Return the number of the server that decides writes."""
        return await self._leading(self.servers)

    async def engine_leader(self) -> int:
        """Return the number of the member of etcd that leads."""
        return await self._leading(self.engines) if len(self.engines) > 1 else 0

    def others(self, number: int) -> list[Process]:
        """Return all processes that are not on the machine of a server."""
        return [one for one in self.processes if one not in self.machine(number)]

    def machine(self, number: int) -> list[Process]:
        """Return the processes on the machine of a server."""
        near = (self.servers[number], *self.engines[number : number + 1])
        return list(dict.fromkeys(near))

    async def _all_serve(self, processes: Iterable[Process]) -> None:
        for process in processes:
            ends = time.monotonic() + PATIENCE_S
            while not await process.serves():
                assert process.is_running, f"{process.name} has ended: {tail(process)}"
                assert time.monotonic() < ends, f"{process.name} does not serve: {tail(process)}"
                await asyncio.sleep(_LOOK_S)

    async def _leading(self, processes: list[Process]) -> int:
        ends = time.monotonic() + PATIENCE_S
        while time.monotonic() < ends:
            for number, process in enumerate(processes):
                seen = await ask(process.client, "/v2/stats/self")
                if seen and seen.body.get("state") == "StateLeader":
                    return number
            await asyncio.sleep(_LOOK_S)
        raise AssertionError("there is no leader")


def tail(process: Process) -> str:
    """Return the last lines of a log."""
    return "\n".join(process.log.read_text(errors="replace").splitlines()[-5:])


def places(processes: Iterable[Process]) -> list[Place]:
    return [process.place for process in processes]

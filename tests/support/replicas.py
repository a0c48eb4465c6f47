"""Several servers with one store in this process, on the engine in memory."""

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlencode

from kvd import __version__
from kvd.replicas.entry import Place
from kvd.replicas.replica import State
from kvd.replicas.replication import Replication
from kvd.replicas.settings import Settings
from kvd.server import KvdServer
from tests.support.configuration import config
from tests.support.memory_engine import Faults, MemoryEngine, MemoryLog
from tests.support.memory_links import MemoryNetwork
from tests.support.waiting import until


class Member:
    """One of them, with the faults between it and the engine."""

    def __init__(self, log, network, path, number, **options):
        self.name = f"h{number}"
        self.network = network
        self.path = path / self.name
        self.log = log
        self.faults = Faults(log)
        self.failures = []
        self._options = options
        self.server = self.starting = None

    async def start(self):
        server = self.starting = KvdServer(
            config(
                *("--name", self.name, "--data-dir", str(self.path)),
                *("--listen-client-urls", "http://127.0.0.1:0", "--wal-segment-bytes", "1048576"),
                *("--replicate", "etcd://h:2379/kvd", "--listen-peer-urls", "http://h:2380"),
            ),
            on_fatal=lambda error, status: self.failures.append((error, status)),
            replicate=self._replication,
            **self._options,
        )
        await server.start()
        self.server, self.starting = server, None
        return self

    def _replication(self, server):
        settings = Settings(
            place=Place(self.path, "etcd://h:2379/kvd", self.name),
            version=__version__,
            peer_urls=(self.name,),
            client_urls=(f"http://{self.name}:2379",),
            listen_peers=(self.name,),
            peer_tls=None,
            lease_s=3.0,
            history_limit=1000,
            history_bytes=None,
        )
        return Replication(
            settings,
            MemoryEngine(self.log, self.faults),
            fail=server.fail,
            on_behind=server.rejoin,
            network=lambda _, hello: self.network.place(hello, self.name),
        )

    @property
    def replication(self):
        return self.server._replication

    @property
    def replica(self):
        return self.replication.replica

    @property
    def state(self):
        return self.replica.state

    @property
    def store(self):
        return self.server.store

    async def stop(self):
        server, self.server = self.server, None
        await server.stop()

    async def kill(self):
        """End as `kill -9` does."""
        server, self.server = self.server, None
        await server.abandon()

    async def request(self, method, path, **form):
        """Return status, headers (names in lower case) and body of a response."""
        if self.server is None or not self.server.urls:
            raise ConnectionRefusedError
        _, _, where = self.server.urls[0].partition("://")
        host, _, port = where.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        has_body = form and method in ("PUT", "POST")
        body = urlencode(form).encode() if has_body else b""
        query = f"?{urlencode(form)}" if form and not has_body else ""
        head = f"{method} {path}{query} HTTP/1.0\r\nHost: {where}\r\n"
        if body:
            head += "Content-Type: application/x-www-form-urlencoded\r\n"
        try:
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            data = await reader.read()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        head, _, body = data.partition(b"\r\n\r\n")
        status, *lines = head.decode().splitlines()
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return int(status.split()[1]), headers, json.loads(body) if body else None

    async def put(self, key, value, **form):
        return await self.request("PUT", f"/v2/keys{key}", value=value, **form)

    async def get(self, key, **form):
        return await self.request("GET", f"/v2/keys{key}", **form)


class Members:
    """All of them, and their log."""

    def __init__(self, path, count=3, **options):
        self.log = MemoryLog()
        self.network = MemoryNetwork()
        self.all = [
            Member(self.log, self.network, path, number, **options)
            for number in range(1, count + 1)
        ]

    async def leader(self):
        """Wait until one leads that is alive, and return it."""
        await until(lambda: len(self.leading) == 1)
        return self.leading[0]

    @property
    def alive(self):
        return [member for member in self.all if member.server is not None]

    @property
    def leading(self):
        return [member for member in self.alive if member.state is State.LEADING]

    @property
    def others(self):
        return [member for member in self.alive if member.state is not State.LEADING]

    async def level(self):
        """Wait until all have applied what the log has."""
        await until(lambda: all(m.store.applied.seq == self.log.head.seq for m in self.alive))


@asynccontextmanager
async def serving(path, count=3, **options):
    """Members that serve, stopped at the end."""
    members = Members(path, count, **options)
    for member in members.all:
        await member.start()
    try:
        yield members
        assert [member.failures for member in members.all] == [[]] * count
    finally:
        for member in members.alive:
            await member.stop()

"""Schemas of a PostgreSQL for tests: engines in each, and its administrator."""

import asyncio
import contextlib
from itertools import count

import asyncpg

from kvd.replicas.engine import Access, Candidate, Frame
from kvd.replicas.postgres.log import PostgresLog
from kvd.replicas.postgres.url import parse
from tests.support.postgres import DATABASE, USER

START = bytes(8)
ME = Candidate(1, "h1", "http://h1:2380", 17)
NUMBERS = count()
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


def chain(seq):
    return b"chain%03d" % seq if seq else START


async def opened(engine):
    return await engine.open(7, 0, START, made_by="h1", made_at_ns=17)


async def append(engine, lead, *numbers):
    for seq in numbers:
        await engine.append(lead.epoch, seq, chain(seq - 1), chain(seq), b"frame %d" % seq)


class Place:
    """A schema of its own, engines in it, and its administrator."""

    def __init__(self, server):
        self.server = server
        self.schema = f"log_{next(NUMBERS)}"
        self._ends = contextlib.AsyncExitStack()
        self.admin = None

    async def __aenter__(self):
        self.admin = await self.connect()
        return self

    async def __aexit__(self, *_):
        await self._ends.aclose()

    async def connect(self, **options):
        connection = await asyncpg.connect(
            host="127.0.0.1",
            port=self.server.port,
            user=USER,
            database=DATABASE,
            server_settings={"search_path": self.schema},
            **options,
        )
        self._ends.callback(connection.terminate)
        return connection

    def engine(self, access=None, **options):
        url = parse(f"postgres://127.0.0.1:{self.server.port}/{DATABASE}?schema={self.schema}")
        # No lease ends while a machine is busy, but where a test wants it.
        engine = PostgresLog(url, access or Access(USER), **{"lease_s": 600, **options})
        self._ends.push_async_callback(engine.close)
        return engine

    async def leading(self, **options):
        engine = self.engine(**options)
        await opened(engine)
        lead = await engine.campaign(ME)
        assert lead is not None
        return engine, lead

    async def backend(self, wait_event, query="INSERT INTO log"):
        """The process of the server in which a statement waits for something."""
        while True:
            pid = await self.admin.fetchval(
                "SELECT pid FROM pg_stat_activity "
                "WHERE wait_event = $1 AND query LIKE $2 AND pid <> pg_backend_pid()",
                wait_event,
                f"%{query}%",
            )
            if pid is not None:
                return pid
            await asyncio.sleep(0.005)

    async def waiting_for_standby(self):
        """The number of the engines' sessions that do."""
        return await self.admin.fetchval(f"{WAITING} AND application_name = 'kvd'")

    @contextlib.asynccontextmanager
    async def locked_head(self):
        connection = await self.connect()
        async with connection.transaction():
            await connection.execute("SELECT 1 FROM head FOR UPDATE")
            yield connection

    async def frames(self):
        return [row["seq"] for row in await self.admin.fetch("SELECT seq FROM log ORDER BY seq")]

    async def notified(self, items):
        """The next frame after a notification."""
        await self.admin.execute("SELECT pg_notify($1, '')", self.schema)
        return await next_frame(items)

    @contextlib.asynccontextmanager
    async def missing_standby(self):
        """Let commits wait for a standby that is not there, until the end or `standby_comes`."""
        # What an earlier test has left waiting goes on when the server has read its settings.
        while await self.admin.fetchval(WAITING):
            await asyncio.sleep(0.005)
        await self.admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'absent'")
        await self.admin.execute("SELECT pg_reload_conf()")
        writing = asyncio.create_task(self._keep_writing(await self.connect()))
        try:
            await self.backend("SyncRep", query="pg_logical_emit_message")
            yield
        finally:
            writing.cancel()
            await self.standby_comes()

    async def standby_comes(self):
        """As if it were there."""
        await self.admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
        await self.admin.execute("SELECT pg_reload_conf()")

    async def _keep_writing(self, connection):
        while True:
            await connection.execute("SELECT pg_logical_emit_message(true, 'test', '')")


def on(server, test):
    """Run an async test at a place of the server."""

    async def bounded():
        async with asyncio.timeout(60), Place(server) as place:
            await test(place)

    asyncio.run(bounded())


async def next_frame(items):
    async for item in items:
        if isinstance(item, Frame):
            return item
    raise AssertionError

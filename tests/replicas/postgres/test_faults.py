"""The log in a PostgreSQL with a standby, of which the primary fails while frames are appended."""

import asyncio
import signal

import pytest

from kvd.replicas.engine import Access, OtherHistory
from kvd.replicas.postgres.log import PostgresLog
from kvd.replicas.postgres.url import parse
from tests.support.engine_load import Load
from tests.support.postgres import DATABASE, USER, Postgres

pytestmark = pytest.mark.clients

SYNCHRONOUS = "synchronous_standby_names = 'standby'"


@pytest.fixture
def pair():
    """Two servers, of which the second is the first's standby; both are removed at the end."""
    servers = [Postgres(SYNCHRONOUS), Postgres()]
    try:
        servers[0].make()
        servers[0].settings = servers[0].settings[:-1]
        servers[0].start()
        servers[1].copy(servers[0]).start()
        yield servers
    finally:
        for server in servers:
            server.remove()


def synchronous(server):
    """Let the commits of a server that runs wait for its standby from now on."""
    server.settings += (SYNCHRONOUS,)
    server.stop()
    server.start()


def engine_at(*servers, **options):
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    return PostgresLog(parse(f"postgres://{hosts}/{DATABASE}"), Access(USER), **options)


def fail_over(servers):
    """Let the standby be the primary, and a new standby follow it in place of the old primary."""
    old, new = servers
    new.promote()
    old.stop(signal.SIGKILL)
    old.remove_data()
    old.settings = tuple(line for line in old.settings if line != SYNCHRONOUS)
    old.copy(new).start()
    servers.reverse()
    synchronous(new)


async def is_end_of(load):
    """What was acknowledged is in the log."""
    assert (await load.leader.end()).seq >= load.written


def test_fail_overs_to_a_synchronous_standby_lose_nothing(pair):
    async def main():
        synchronous(pair[0])
        load = Load(engine_at(*pair), [engine_at(*pair), engine_at(*reversed(pair))])
        await load.start()
        await load.more()
        for number in (signal.SIGKILL, signal.SIGQUIT, signal.SIGKILL):
            await asyncio.to_thread(pair[0].stop, number)
            await asyncio.to_thread(fail_over, pair)
            await is_end_of(load)
            await load.more()
        await load.stop()

    asyncio.run(main())


def test_a_primary_that_was_replaced_while_it_was_frozen_confirms_nothing(pair):
    async def main():
        synchronous(pair[0])
        old, new = pair
        load = Load(engine_at(old, new), [engine_at(new, old)])
        await load.start()
        await load.more()
        stale = engine_at(old)
        await stale.end()
        old.send(signal.SIGSTOP)
        await asyncio.to_thread(new.promote)
        await load.more()
        old.send(signal.SIGCONT)
        ending = asyncio.create_task(stale.end())
        await load.more()
        assert not ending.done()
        await is_end_of(load)
        await asyncio.to_thread(old.stop, signal.SIGKILL)
        ending.cancel()
        await asyncio.wait([ending])
        await stale.close()
        await load.stop()

    asyncio.run(main())


def test_what_an_asynchronous_fail_over_has_lost_is_another_history(pair):
    async def main():
        old, new = pair
        load = Load(engine_at(*pair), [engine_at(*pair)])
        await load.start()
        await load.more()
        await asyncio.to_thread(new.stop)
        await load.more()
        written = load.written
        await asyncio.to_thread(old.stop, signal.SIGKILL)
        await asyncio.to_thread(new.start)
        await asyncio.to_thread(new.promote)
        follower = engine_at(*pair)
        assert (await follower.end()).seq < written
        with pytest.raises(OtherHistory, match="ends with frame"):
            await anext(follower.tail(written))
        with pytest.raises(OtherHistory):
            await load.more()
        await load.stop()
        await follower.close()

    asyncio.run(main())


def test_a_primary_that_is_killed_and_frozen_without_a_standby(pair):
    async def main():
        (server, _) = pair
        load = Load(engine_at(server), [engine_at(server), engine_at(server)])
        await load.start()
        for number in (signal.SIGKILL, signal.SIGQUIT) * 3:
            await load.more()
            await asyncio.to_thread(server.stop, number)
            await asyncio.to_thread(server.start)
            await load.more()
            server.send(signal.SIGSTOP)
            await asyncio.sleep(4)
            server.send(signal.SIGCONT)
        await load.more()
        await load.stop()

    asyncio.run(main())

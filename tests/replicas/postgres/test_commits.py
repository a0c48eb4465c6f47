"""Connections that break before, in and after a commit, and commits that wait for a standby."""

import asyncio

import pytest

from kvd.replicas.engine import (
    End,
)
from kvd.replicas.postgres import client, session, statements, tail
from tests.support.postgres_log import append, chain, on


def test_a_backend_that_is_killed_before_the_commit(shared_postgres):
    async def main(place):
        engine, lead = await place.leading()
        await append(engine, lead, 1)
        async with place.locked_head():
            appending = asyncio.create_task(append(engine, lead, 2))
            for _ in range(2):
                pid = await place.backend("transactionid")
                await place.admin.execute("SELECT pg_terminate_backend($1)", pid)
            await place.backend("transactionid")
        await appending
        assert await place.frames() == [0, 1, 2]
        await append(engine, lead, 3)

    on(shared_postgres, main)


async def is_settled_after(place, function):
    """A commit waits for a standby, `function` ends that: the append returns when it has come."""
    engine, lead = await place.leading()
    await append(engine, lead, 1)
    following = place.engine().tail(1)
    assert (await anext(following)).lead == lead
    async with place.missing_standby():
        appending = asyncio.create_task(append(engine, lead, 2))
        pid = await place.backend("SyncRep")
        await place.admin.execute(f"SELECT {function}({pid})")
        # Now it is committed, as all can see, but not at the standby.
        while await place.frames() != [0, 1, 2]:
            await asyncio.sleep(0.005)
        next_one = asyncio.create_task(anext(following))
        ending = asyncio.create_task(place.engine().end())
        confirming = asyncio.create_task(place.engine().confirm(lead.epoch))
        waits = (appending, next_one, ending, confirming)
        # Each of them waits for the standby, also what only reads.
        while await place.waiting_for_standby() < len(waits):
            assert not any(task.done() for task in waits)
            await asyncio.sleep(0.005)
        await place.standby_comes()
        await asyncio.wait(waits)
    await appending
    assert next_one.result().seq == 2
    assert (ending.result(), confirming.result()) == (End(2, chain(2)), True)
    await append(engine, lead, 3)
    assert await place.frames() == [0, 1, 2, 3]


@pytest.mark.parametrize("function", ["pg_terminate_backend", "pg_cancel_backend"])
def test_a_wait_for_the_standby_that_is_broken_off(shared_postgres, function):
    on(shared_postgres, lambda place: is_settled_after(place, function))


@pytest.mark.parametrize(
    ("of", "statement"), [(statements, "LOOK"), (tail, "PAGE")], ids=["look", "page"]
)
def test_it_takes_a_read_that_the_standby_confirms(shared_postgres, monkeypatch, of, statement):
    hasty = getattr(of, statement).replace("<> ''", "IS NULL")
    monkeypatch.setattr(of, statement, hasty)
    with pytest.raises(AssertionError):
        on(shared_postgres, lambda place: is_settled_after(place, "pg_terminate_backend"))


def test_it_takes_the_warning_of_a_commit(shared_postgres, monkeypatch):
    monkeypatch.setattr(session.Session, "_hear", lambda *_: None)
    with pytest.raises(AssertionError):
        on(shared_postgres, lambda place: is_settled_after(place, "pg_cancel_backend"))


def test_calls_that_are_given_up_do_not_take_all_connections(shared_postgres):
    async def main(place):
        began = await place.admin.fetchval("SELECT clock_timestamp()")
        engine, lead = await place.leading()
        async with place.missing_standby():
            for _ in range(3 * client.SESSIONS_MAX):
                ending = asyncio.create_task(engine.end())
                await asyncio.sleep(0)
                ending.cancel()
                await asyncio.wait([ending])
            appending = asyncio.create_task(append(engine, lead, 1))
            await place.backend("SyncRep")
            sessions = await place.admin.fetchval(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE application_name = 'kvd' AND backend_start > $1",
                began,
            )
            assert sessions <= client.SESSIONS_MAX + 1
        await appending
        assert await engine.end() == End(1, chain(1))

    on(shared_postgres, main)


def test_backends_that_are_killed_again_and_again(shared_postgres, monkeypatch):
    # A connection may have received that it ends, and not yet its end, when it is used again.
    monkeypatch.setattr(client, "PAUSE_MAX_S", 0.01)

    async def main(place):
        engine, lead = await place.leading()
        following = engine.tail(0)
        assert (await anext(following)).lead == lead
        confirming = [asyncio.create_task(keep_confirming(engine, lead)) for _ in range(3)]
        for seq in range(1, 16):
            appending = asyncio.create_task(append(engine, lead, seq))
            await place.admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'kvd'"
            )
            await appending
            assert (await anext(following)).seq == seq
            for task in confirming:
                if task.done():
                    task.result()
        assert await place.frames() == [*range(16)]
        for task in confirming:
            task.cancel()

    async def keep_confirming(engine, lead):
        while True:
            assert await engine.confirm(lead.epoch)

    on(shared_postgres, main)

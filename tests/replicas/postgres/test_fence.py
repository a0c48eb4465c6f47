"""The fence of an append, elections and leases, and builds without a part of them."""

import asyncio

import pytest

from kvd.replicas.engine import (
    Fenced,
    Frame,
    Leadership,
    OtherHistory,
)
from kvd.replicas.postgres import log, statements, tail
from tests.support.postgres_log import ME, append, chain, on


async def late_duplicate(place):
    """An append that waited for its lock while the same frame was written, and trimmed."""
    engine, lead = await place.leading()
    await append(engine, lead, 1)
    late = await place.connect()
    values = (lead.epoch, 2, chain(1), chain(2), b"frame 2")
    async with place.locked_head() as connection:
        waiting = asyncio.create_task(late.fetchval(statements.APPEND, *values))
        await place.backend("transactionid")
        for seq in (2, 3):
            await connection.execute("INSERT INTO log VALUES ($1, 100, $2, '')", seq, chain(seq))
        await connection.execute(statements.TRIM, 3)
        await connection.execute(statements.DELETE, 3)
    assert await waiting == 0
    assert await place.frames() == [3]


def test_a_late_duplicate_of_a_trimmed_frame_is_not_written(shared_postgres):
    on(shared_postgres, late_duplicate)


def test_it_takes_the_trimmed_ones_to_find_a_late_duplicate(shared_postgres, monkeypatch):
    monkeypatch.setattr(statements, "APPEND", statements.APPEND.replace("first < $2", "true"))
    with pytest.raises(AssertionError):
        on(shared_postgres, late_duplicate)


async def other_history(place):
    """An append behind another frame than the last one's chain value says."""
    engine, lead = await place.leading()
    await append(engine, lead, 1)
    with pytest.raises(OtherHistory):
        await engine.append(lead.epoch, 2, b"another.", chain(2), b"frame 2")
    assert await place.frames() == [0, 1]


def test_it_takes_the_chain_in_the_fence(shared_postgres, monkeypatch):
    on(shared_postgres, other_history)
    loose = statements.APPEND.replace("chain = $3", "$3::bytea IS NOT NULL")
    monkeypatch.setattr(statements, "APPEND", loose)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        on(shared_postgres, other_history)


async def lost_response(place):
    """The connection breaks between commit and response: the frame is written once, and known."""
    engine, lead = await place.leading()
    await append(engine, lead, 1)
    async with place.missing_standby():
        appending = asyncio.create_task(append(engine, lead, 2))
        pid = await place.backend("SyncRep")
        await place.admin.execute("SELECT pg_terminate_backend($1)", pid)
        await place.standby_comes()
        await asyncio.wait([appending])
    await appending
    assert await place.frames() == [0, 1, 2]


def test_it_takes_a_look_at_what_a_lost_response_has_left(shared_postgres, monkeypatch):
    on(shared_postgres, lost_response)

    def unseen(self, look, *, is_unsure):
        raise Fenced(f"{look} {is_unsure}")

    monkeypatch.setattr(log._Slot, "is_written", unseen)
    with pytest.raises(Fenced):
        on(shared_postgres, lost_response)


def test_a_frame_in_flight_comes_before_the_leader_that_waited_for_it(shared_postgres):
    async def main(place):
        engine, lead = await place.leading()
        await append(engine, lead, 1)
        connection = await place.connect()
        async with connection.transaction():
            values = (lead.epoch, 2, chain(1), chain(2), b"frame 2")
            assert await connection.fetchval(statements.APPEND, *values) == 1
            revoking = asyncio.create_task(engine.revoke(lead.lease))
            await place.backend("transactionid", query="UPDATE head")
        await revoking
        second = await engine.campaign(ME)
        await append(engine, second, 3)
        items = engine.tail(0)
        found = [await anext(items) for _ in range(4)]
        assert [item.seq if isinstance(item, Frame) else item.lead for item in found] == [
            *(1, 2, second, 3)
        ]
        revisions = [item.revision for item in found]
        assert revisions == sorted(set(revisions))

    on(shared_postgres, main)


def test_an_election_that_saw_an_earlier_vacancy_elects_none(shared_postgres):
    async def main(place):
        engine, lead = await place.leading()
        await engine.resign(lead)
        vacancy = await place.admin.fetchval("SELECT base FROM head")
        second = await engine.campaign(ME)
        await append(engine, second, 1)
        await engine.resign(second)
        values = (vacancy, 1, bytes(8), "h2", "", 0, 7, 3.0)
        assert await place.admin.fetchrow(statements.ELECT, *values) is None

    on(shared_postgres, main)


def test_a_lease_ends_without_renewal_and_the_tail_says_so(shared_postgres, monkeypatch):
    monkeypatch.setattr(tail, "SOON_S", 0.01)

    async def main(place):
        engine, lead = await place.leading(lease_s=0.05)
        items = place.engine().tail(0)
        assert (await anext(items)).lead in (lead, None)
        async for item in items:
            if isinstance(item, Leadership) and item.lead is None:
                break
        assert not await engine.renew(lead)
        with pytest.raises(Fenced):
            await append(engine, lead, 1)

    on(shared_postgres, main)


def test_a_campaign_ends_a_lease_that_is_over_and_no_other(shared_postgres):
    async def main(place):
        engine, lead = await place.leading()
        assert await place.engine().campaign(ME) is None
        await place.admin.execute("UPDATE head SET until = clock_timestamp() - interval '1 ms'")
        assert await engine.renew(lead)
        assert await place.engine().campaign(ME) is None
        await place.admin.execute("UPDATE head SET until = clock_timestamp() - interval '1 ms'")
        second = await place.engine().campaign(ME)
        assert second.epoch > lead.epoch
        assert not await engine.renew(lead)

    on(shared_postgres, main)

"""The tail of the log where notifications are lost and connections break."""

import asyncio

from kvd.replicas.postgres import statements, tail
from tests.support.postgres_log import append, chain, next_frame, on


def test_lost_notifications_cost_a_look_at_most(shared_postgres, monkeypatch):
    monkeypatch.setattr(tail, "LOOK_S", 0.05)
    silent = statements.APPEND.replace("pg_notify(current_schema(), '')", "1")
    monkeypatch.setattr(statements, "APPEND", silent)

    async def main(place):
        engine, lead = await place.leading()
        items = place.engine().tail(0)
        assert (await anext(items)).lead == lead
        for seq in (1, 2, 3):
            waiting = asyncio.create_task(anext(items))
            await append(engine, lead, seq)
            assert (await waiting).seq == seq

    on(shared_postgres, main)


def test_a_tail_whose_connection_breaks_goes_on(shared_postgres):
    async def main(place):
        engine, lead = await place.leading()
        items = place.engine().tail(0)
        assert (await anext(items)).lead == lead
        for seq in (1, 2, 3):
            pid = await place.backend("ClientRead", query="page.before")
            await place.admin.execute("SELECT pg_terminate_backend($1)", pid)
            await append(engine, lead, seq)
            assert (await next_frame(items)).seq == seq

    on(shared_postgres, main)


def test_pages_are_small_and_a_large_frame_has_its_own(shared_postgres, monkeypatch):
    page = statements.PAGE.replace(str(statements.PAGE_BYTES), "1000")
    monkeypatch.setattr(tail, "PAGE", page)

    async def main(place):
        engine, lead = await place.leading()
        payloads = [bytes(size) for size in (5000, 10, 0, 999, 1001, 5000, 1, *[3] * 200)]
        for seq, payload in enumerate(payloads, 1):
            await engine.append(lead.epoch, seq, chain(seq - 1), chain(seq), payload)
        items = place.engine().tail(0)
        assert (await anext(items)).lead == lead
        for seq, payload in enumerate(payloads, 1):
            assert (await anext(items)).payload == payload, seq

    on(shared_postgres, main)

"""The table of commands that wait for another replica."""

import asyncio

import pytest

from kvd.core.clock import Clock
from kvd.core.stats import StoreStats
from kvd.replicas.forwarding import pending
from kvd.replicas.forwarding.pending import Pending
from kvd.v2.commands import Set
from tests.support import simulated_loop

SECOND_NS = 1_000_000_000


def on_a_table(test):
    async def main():
        loop = asyncio.get_running_loop()
        await asyncio.sleep(100)
        clock = Clock(raw_ns=lambda: int(loop.time() * 1e9), wall_ns=lambda: 0)
        await test(Pending(clock, StoreStats(), lambda _: None), loop)

    def run():
        simulated_loop.run(main())

    run.__name__ = test.__name__
    return run


def add(table, came_s):
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    table.add(Set(b"/a", b""), lambda _: ended.set_result(loop.time()), int(came_s * SECOND_NS))
    return ended


@on_a_table
async def test_each_has_seven_seconds_in_whatever_order_they_come(table, loop):
    now = loop.time()
    came = [now, now - 5, now - 2, now - 6.5, now]
    ended = await asyncio.gather(*[add(table, at) for at in came])
    assert ended == [pytest.approx(at + 7, abs=0.06) for at in came]
    assert len(table) == 0


@on_a_table
async def test_what_is_put_back_has_the_rest_of_its_time(table, loop):
    ended = add(table, loop.time())
    ((rid, waiting),) = table.take_all()
    await asyncio.sleep(3)
    later = add(table, loop.time())
    table.put_back([(rid, waiting)])
    began = loop.time()
    assert await ended == pytest.approx(began + 4, abs=0.06)
    assert await later == pytest.approx(began + 7, abs=0.06)


@on_a_table
async def test_rids_grow_and_begin_again_under_another_name(table, loop):
    table._counter = pending._COUNTER_MAX - 2
    for _ in range(4):
        add(table, loop.time())
    rids = [*table._table]
    assert len({rid[:12] for rid in rids}) == 2
    assert [int.from_bytes(rid[12:]) for rid in rids] == [2**32 - 2, 2**32 - 1, 1, 2]
    table.close()

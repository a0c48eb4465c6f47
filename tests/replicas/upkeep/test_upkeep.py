"""Upkeep on the engine in memory, in simulated time."""

import asyncio
import contextlib
from dataclasses import replace

import pytest

from kvd.replicas.engine import Candidate, EngineFull, Room
from kvd.replicas.upkeep.report import Report
from kvd.replicas.upkeep.upkeep import KEPT_BYTES, KEPT_FRAMES, TRIM_BYTES, Upkeep
from tests.support import simulated_loop
from tests.support.memory_engine import MemoryEngine, MemoryLog

FRAMES = 2000


class Place:
    """A log of many frames and its replicas, each with upkeep; the first one leads."""

    def __init__(self):
        self.log = MemoryLog()
        self.engines = [MemoryEngine(self.log) for _ in range(3)]
        self.durable = [FRAMES] * 3
        self.states = ["leading", "following", "following"]
        self.refusals = []
        self.leading = 0
        self.removed = set()
        self.upkeeps = [self._upkeep(number) for number in range(3)]

    def _upkeep(self, number):
        return Upkeep(
            self.engines[number],
            number + 1,
            lambda: self._report(number),
            leads=lambda: self.leading == number,
            on_room=self.refusals.append if number == 0 else lambda _: None,
            is_removed=self.removed.__contains__,
        )

    def _report(self, number):
        at_ns = int(asyncio.get_running_loop().time() * 1e9) + 1
        urls = (f"http://h{number}:2379",)
        return Report(
            *(f"h{number}", "http://p", urls, self.states[number], FRAMES),
            *(self.durable[number], "1", 2, at_ns),
        )

    async def fill(self):
        lead = await self.engines[0].campaign(Candidate(1, "h0", "", 0))
        await self.engines[0].open(1, 0, b"0", made_by="h0", made_at_ns=0)
        for seq in range(1, FRAMES + 1):
            await self.engines[0].append(
                lead.epoch, seq, b"%d" % (seq - 1) if seq > 1 else b"0", b"%d" % seq, b"payload"
            )

    @property
    def first(self):
        return min(self.log.frames)


@contextlib.asynccontextmanager
async def running(place, *numbers):
    tasks = [asyncio.create_task(place.upkeeps[number].run()) for number in numbers]
    yield
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task


def simulated(test):
    def run():
        async def main():
            place = Place()
            await place.fill()
            await test(place)

        simulated_loop.run(main())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@simulated
async def test_every_replica_sees_the_reports_of_all(place):
    async with running(place, 0, 1, 2):
        await asyncio.sleep(5)
    for upkeep in place.upkeeps:
        assert [upkeep.reports[number].report.name for number in (1, 2, 3)] == ["h0", "h1", "h2"]


@simulated
async def test_the_leader_trims_what_all_have_on_disk(place):
    place.durable = [1900, 1200, 1500]
    async with running(place, 0, 1, 2):
        await asyncio.sleep(5)
        assert place.first == 1200 - KEPT_FRAMES
        place.durable = [2000, 2000, 2000]
        await asyncio.sleep(30)
        assert place.first == 1200 - KEPT_FRAMES  # too little was appended since
        place.upkeeps[0].appended(TRIM_BYTES)
        await asyncio.sleep(5)
        assert place.first == 2000 - KEPT_FRAMES


@simulated
async def test_of_large_frames_fewer_are_kept(place):
    for _ in range(100):
        place.upkeeps[0].appended(KEPT_BYTES // 64)
    async with running(place, 0, 1, 2):
        await asyncio.sleep(5)
    assert place.first == FRAMES - 64


@simulated
async def test_followers_do_not_trim(place):
    place.leading = 7
    async with running(place, 0, 1, 2):
        await asyncio.sleep(5)
    assert place.first == 1


@simulated
async def test_a_replica_that_is_away_holds_no_trim_up(place):
    place.durable[2] = 600
    async with running(place, 0, 1):
        async with running(place, 2):
            await asyncio.sleep(5)
        assert place.first == 600 - KEPT_FRAMES
        place.upkeeps[0].appended(TRIM_BYTES)
        await asyncio.sleep(20)
        assert place.first == FRAMES - KEPT_FRAMES


@simulated
async def test_without_a_majority_nothing_is_trimmed(place):
    async with running(place, 1, 2):
        await asyncio.sleep(1)
    await asyncio.sleep(20)
    async with running(place, 0):
        await asyncio.sleep(20)
    assert place.first == 1


@simulated
async def test_a_replica_without_a_store_neither_holds_up_nor_counts(place):
    place.durable = [2000, None, None]
    async with running(place, 0, 1, 2):
        await asyncio.sleep(5)
        assert place.first == 1
        place.durable = [2000, 1800, None]
        await asyncio.sleep(5)
        assert place.first == 1800 - KEPT_FRAMES


@simulated
async def test_a_replica_that_joins_holds_the_trim_up_and_does_not_count(place):
    place.durable = [2000, 1500, None]
    place.states[1] = "joining"
    async with running(place, 0, 1, 2):
        await asyncio.sleep(5)
        assert place.first == 1
        place.durable[2] = 1900
        await asyncio.sleep(5)
        assert place.first == 1500 - KEPT_FRAMES


@simulated
async def test_a_removed_replica_counts_no_longer(place):
    async with running(place, 1, 2):
        await asyncio.sleep(1)
    await asyncio.sleep(20)
    async with running(place, 0):
        await asyncio.sleep(5)
        assert place.first == 1
        place.removed.update({2, 3})
        await asyncio.sleep(5)
        assert place.first == FRAMES - KEPT_FRAMES
        assert sorted(place.log.reports) == [1]


@simulated
async def test_while_room_is_scarce_a_majority_is_enough(place):
    place.durable = [2000, 1800, 600]
    room = Room(1 << 30, 1 << 30, 3 << 29)
    place.engines[0].room = lambda: _ready(room)
    async with running(place, 0, 1, 2):
        await asyncio.sleep(15)
    assert place.first == 1800 - KEPT_FRAMES


@simulated
async def test_users_writes_end_before_the_engine_is_full(place):
    room = Room(100, 100, 1000)
    place.engines[0].room = lambda: _ready(room)
    async with running(place, 0):
        await asyncio.sleep(12)
        assert place.refusals == []
        room = replace(room, used=801)
        await asyncio.sleep(12)
        assert [bool(refusal) for refusal in place.refusals] == [True]
        room = replace(room, used=700)
        await asyncio.sleep(12)
        assert [bool(refusal) for refusal in place.refusals] == [True, False]
        room = replace(room, used=100, is_full=True)
        await asyncio.sleep(12)
        assert [bool(refusal) for refusal in place.refusals] == [True, False, True]


@simulated
async def test_a_full_engine_ends_no_upkeep(place):
    async with running(place, 0):
        await asyncio.sleep(1)
        place.log.is_full = True
        place.engines[0].report = _full
        await asyncio.sleep(12)
        assert place.refusals != []


@simulated
async def test_a_damaged_report_is_no_end(place):
    place.log.reports[9] = b"{"
    async with running(place, 0, 1, 2):
        await asyncio.sleep(5)
    assert sorted(place.upkeeps[0].reports) == [1, 2, 3]


@pytest.mark.parametrize("lowest", [1, 2])
def test_the_lowest_version_that_all_read_is_known(lowest):
    async def main():
        place = Place()
        report = place._report
        place._report = lambda number: report(number)._replace(reads=3 if number else lowest)
        async with running(place, 0, 1, 2):
            await asyncio.sleep(5)
        assert place.upkeeps[1].reads == lowest

    simulated_loop.run(main())


async def _ready(room):
    return room


async def _full(_replica, _document):
    raise EngineFull("no room")

"""What each engine promises, tried on each of them."""

import asyncio
import functools
from itertools import pairwise

import pytest

from kvd.replicas.engine import (
    Candidate,
    End,
    Fenced,
    Frame,
    Leadership,
    OtherHistory,
    OutcomeUnknown,
    Trimmed,
)

START = bytes(8)
CLUSTER = 0xABCDEF


def me(number):
    return Candidate(number, f"h{number}", f"http://h{number}:2380", 17)


def chain(seq):
    return b"chain%03d" % seq if seq else START


def on_its_loop(test):
    """Run an async test where its engines live."""

    @functools.wraps(test)
    def run(place):
        place.run(test(place))

    return run


async def opened(engine, seq=0):
    return await engine.open(CLUSTER, seq, chain(seq), made_by="h1", made_at_ns=17)


async def leading(engine, number=1):
    await opened(engine)
    lead = await engine.campaign(me(number))
    assert lead is not None
    return lead


async def append(engine, lead, *numbers):
    for seq in numbers:
        await engine.append(lead.epoch, seq, chain(seq - 1), chain(seq), b"frame %d" % seq)


async def read(engine, after, count):
    """So many items of a tail."""
    found = []
    async for item in engine.tail(after):
        found.append(item)
        if len(found) == count:
            break
    return found


class Follower:
    """A tail in a task of its own."""

    def __init__(self, engine, after=0):
        self.items = []
        self._more = asyncio.Event()
        self._task = asyncio.create_task(self._follow(engine, after))

    async def _follow(self, engine, after):
        try:
            async for item in engine.tail(after):
                self.items.append(item)
                self._more.set()
        finally:
            self._more.set()

    async def until(self, holds):
        while not holds(self.items):
            if self._task.done():
                self._task.result()
            self._more.clear()
            await self._more.wait()

    @property
    def frames(self):
        return [item for item in self.items if isinstance(item, Frame)]

    async def stop(self):
        self._task.cancel()
        await asyncio.wait([self._task])


@on_its_loop
async def test_one_of_many_makes_the_log(place):
    engines = [place.engine() for _ in range(5)]
    metas = await asyncio.gather(*(opened(engine, seq) for seq, engine in enumerate(engines)))
    assert len(set(metas)) == 1
    assert metas[0].cluster_id == CLUSTER
    assert len(metas[0].secret) == 32
    ends = {await engine.end() for engine in engines}
    assert len(ends) == 1
    assert await opened(place.engine(), 99) == metas[0]


@on_its_loop
async def test_one_of_many_leads(place):
    engines = [place.engine() for _ in range(5)]
    await opened(engines[0])
    leads = await asyncio.gather(*(engine.campaign(me(1)) for engine in engines))
    (winner,) = [number for number, lead in enumerate(leads) if lead is not None]
    assert [await engine.confirm(leads[winner].epoch) for engine in engines] == [True] * 5
    assert await engines[winner].renew(leads[winner])


@on_its_loop
async def test_an_epoch_ends_with_its_lease_and_never_returns(place):
    a, b = place.engine(), place.engine()
    first = await leading(a)
    assert await b.campaign(me(2)) is None
    await a.resign(first)
    assert not await a.confirm(first.epoch)
    assert not await a.renew(first)
    second = await b.campaign(me(2))
    assert second.epoch > first.epoch
    await a.revoke(second.lease)
    await a.revoke(second.lease)
    assert not await b.confirm(second.epoch)
    third = await a.campaign(me(1))
    assert third.epoch > second.epoch
    assert not await a.confirm(first.epoch)


@on_its_loop
async def test_frames_come_back_in_order_between_their_leaders(place):
    a, b = place.engine(), place.engine()
    first = await leading(a)
    follower = Follower(place.engine())
    await append(a, first, 1, 2, 3)
    await follower.until(lambda items: len(items) >= 4)
    await a.resign(first)
    await follower.until(lambda items: len(items) >= 5)
    second = await b.campaign(me(2))
    await append(b, second, 4)
    await follower.until(lambda items: len(items) >= 7)
    items = follower.items
    assert [item.seq if isinstance(item, Frame) else item.leader for item in items] == [
        *(me(1), 1, 2, 3, None, me(2), 4)
    ]
    assert [frame.payload for frame in follower.frames] == [b"frame %d" % n for n in range(1, 5)]
    assert all(before.revision < after.revision for before, after in pairwise(items))
    assert (items[0].lead, items[5].lead) == (first, second)
    assert await b.end() == End(4, chain(4))
    await follower.stop()


@on_its_loop
async def test_a_late_tail_gets_frames_before_the_leader_that_came_after_them(place):
    a, b = place.engine(), place.engine()
    first = await leading(a)
    await append(a, first, 1, 2)
    await a.resign(first)
    second = await b.campaign(me(2))
    await append(b, second, 3)
    items = await read(place.engine(), 0, 4)
    assert [item.seq if isinstance(item, Frame) else item.lead for item in items] == [
        *(1, 2, second, 3)
    ]


@on_its_loop
async def test_a_tail_without_frames_shows_that_there_is_no_leader(place):
    await opened(place.engine(), 7)
    (item,) = await read(place.engine(), 7, 1)
    assert isinstance(item, Leadership)
    assert (item.leader, item.lead) == (None, None)


@on_its_loop
async def test_a_deposed_leader_writes_nothing(place):
    a, b = place.engine(), place.engine()
    first = await leading(a)
    await append(a, first, 1)
    await b.revoke(first.lease)
    with pytest.raises(Fenced):
        await append(a, first, 2)
    second = await b.campaign(me(2))
    with pytest.raises(Fenced):
        await append(a, first, 2)
    await b.append(second.epoch, 2, chain(1), b"of b....", b"of b")
    with pytest.raises(Fenced):
        await append(a, first, 2)
    assert await b.end() == End(2, b"of b....")
    assert (await read(place.engine(), 1, 2))[1].payload == b"of b"


@on_its_loop
async def test_the_same_frame_again_is_a_success_and_written_once(place):
    a = place.engine()
    lead = await leading(a)
    await append(a, lead, 1, 1, 2, 2)
    await append(a, lead, 1)
    assert await a.end() == End(2, chain(2))


@on_its_loop
async def test_another_frame_in_a_taken_place_is_fenced(place):
    a = place.engine()
    lead = await leading(a)
    await append(a, lead, 1)
    with pytest.raises(Fenced):
        await a.append(lead.epoch, 1, START, b"another.", b"another")
    await append(a, lead, 2)


@on_its_loop
async def test_a_frame_after_another_history_is_refused(place):
    a = place.engine()
    lead = await leading(a)
    await append(a, lead, 1)
    with pytest.raises(OtherHistory):
        await a.append(lead.epoch, 2, b"another.", chain(2), b"frame 2")
    with pytest.raises(OtherHistory):
        await append(a, lead, 3)
    with pytest.raises(OtherHistory):
        await read(place.engine(), 9, 1)


@on_its_loop
async def test_a_lost_response_is_settled_by_a_look(place):
    a, faults = await place.faulty()
    lead = await leading(a)
    await append(a, lead, 1)  # on the connection of which the next response is lost
    follower = Follower(place.engine())
    faults.mute()
    appending = asyncio.create_task(append(a, lead, 2))
    await follower.until(lambda _: len(follower.frames) == 2)
    assert not appending.done()
    faults.heal()
    await appending
    await append(a, lead, 3)
    await follower.until(lambda _: len(follower.frames) == 3)
    assert [frame.seq for frame in follower.frames] == [1, 2, 3]
    await follower.stop()


@on_its_loop
async def test_a_frame_that_was_written_and_trimmed_meanwhile_is_not_called_unwritten(place):
    a, faults = await place.faulty()
    first = await leading(a)
    await append(a, first, 1)
    b = place.engine()
    follower = Follower(place.engine())
    faults.mute()
    appending = asyncio.create_task(append(a, first, 2))
    await follower.until(lambda _: len(follower.frames) == 2)
    await b.revoke(first.lease)
    second = await b.campaign(me(2))
    await append(b, second, 3, 4)
    await b.trim(4)
    faults.heal()
    with pytest.raises(OutcomeUnknown):
        await appending
    await follower.stop()


@on_its_loop
async def test_an_append_waits_for_an_engine_that_cannot_be_reached(place):
    a, faults = await place.faulty()
    lead = await leading(a)
    faults.part()
    appending = asyncio.create_task(append(a, lead, 1))
    await asyncio.wait([appending], timeout=0.2)
    assert not appending.done()
    faults.heal()
    await appending
    assert await a.end() == End(1, chain(1))


@on_its_loop
async def test_trimmed_frames_are_gone_and_the_last_stays(place):
    a = place.engine()
    lead = await leading(a)
    await append(a, lead, *range(1, 11))
    await a.trim(5)
    assert [item.seq for item in (await read(place.engine(), 4, 7))[1:]] == [*range(5, 11)]
    with pytest.raises(Trimmed):
        await read(place.engine(), 3, 1)
    await a.trim(1000)
    assert (await read(place.engine(), 9, 2))[1].seq == 10
    await append(a, lead, 11)
    assert await a.end() == End(11, chain(11))


@on_its_loop
async def test_a_log_that_begins_later_has_no_frames_before(place):
    await opened(place.engine(), 700)
    with pytest.raises(Trimmed):
        await read(place.engine(), 0, 1)


@on_its_loop
async def test_a_tail_goes_on_over_a_trim(place):
    a = place.engine()
    lead = await leading(a)
    follower = Follower(place.engine())
    for first in range(1, 41, 10):
        await append(a, lead, *range(first, first + 10))
        await follower.until(lambda _, last=first + 9: len(follower.frames) == last)
        await a.trim(first + 10)
    assert [frame.seq for frame in follower.frames] == [*range(1, 41)]
    await follower.stop()


@on_its_loop
async def test_a_payload_of_any_size_comes_back(place):
    a = place.engine()
    lead = await leading(a)
    follower = Follower(place.engine())
    sizes = [0, 1, 1 << 20, (1 << 20) + 1, 5 << 20]
    payloads = [bytes(range(251)) * (size // 251) + bytes(size % 251) for size in sizes]
    for seq, payload in enumerate(payloads, 1):
        await a.append(lead.epoch, seq, chain(seq - 1), chain(seq), payload)
    await a.append(lead.epoch, 5, chain(4), chain(5), payloads[4])
    with pytest.raises(Fenced):
        await a.append(lead.epoch, 5, chain(4), b"another.", payloads[4][::-1])
    await follower.until(lambda _: len(follower.frames) == len(sizes))
    assert [frame.payload for frame in follower.frames] == payloads
    await follower.stop()
    late = await read(place.engine(), 0, 6)
    assert [item.payload for item in late if isinstance(item, Frame)] == payloads


@on_its_loop
async def test_reports_are_kept_by_replica(place):
    a, b = place.engine(), place.engine()
    await opened(a)
    await a.report(1, b"one")
    await b.report(2**64 - 1, b"two")
    await a.report(1, b"newer")
    assert await b.reports() == {1: b"newer", 2**64 - 1: b"two"}
    await b.forget(1)
    await b.forget(1)
    assert await a.reports() == {2**64 - 1: b"two"}


@on_its_loop
async def test_an_engine_with_room_says_so(place):
    a = place.engine()
    await leading(a)
    room = await a.room()
    assert 0 <= room.used <= room.allocated < room.limit
    assert not room.is_full


@on_its_loop
async def test_without_a_log_there_is_no_end(place):
    with pytest.raises(OtherHistory):
        await place.engine().end()

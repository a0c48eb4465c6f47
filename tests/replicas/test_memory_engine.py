"""The engine in memory: its faults, and that a seed repeats them."""

import asyncio
from random import Random

import pytest

from kvd.replicas.engine import Candidate, End, EngineFull, Fenced, Frame
from tests.support import simulated_loop
from tests.support.memory_engine import CALL_S, LEASE_S, Faults, MemoryEngine, MemoryLog

START = bytes(8)


def chain(seq):
    return seq.to_bytes(8, "big")


async def competing(log, number, written):
    """A replica that leads when it can, appends, and now and then forgets to renew."""
    faults = Faults(log)
    faults.delay_s = (0.0, 0.2)
    faults.lost = faults.unanswered = faults.doubled = 0.1
    engine = MemoryEngine(log, faults)
    await engine.open(1, 0, START, made_by="x", made_at_ns=0)
    while len(written) < 60:
        lead = await engine.campaign(Candidate(number, "n", "p", 0))
        if lead is None:
            await asyncio.sleep(faults.random.uniform(0, 1))
            continue
        try:
            for _ in range(faults.random.randrange(20)):
                end = await engine.end()
                payload = b"%d/%d" % (number, len(written))
                after = bytes([number]) + chain(end.seq + 1)[1:]
                await engine.append(lead.epoch, end.seq + 1, end.chain, after, payload)
                written.append(payload)
        except Fenced:
            continue
        await asyncio.sleep(LEASE_S * 2)


async def course(seed):
    log = MemoryLog(Random(seed))
    written = []
    followers = [MemoryEngine(log) for _ in range(2)]
    seen = [[], []]

    async def follow(engine, items):
        async for item in engine.tail(0):
            items.append(item)

    tails = [asyncio.create_task(follow(*pair)) for pair in zip(followers, seen, strict=True)]
    await asyncio.gather(*(competing(log, number, written) for number in range(3)))
    while not all(items and items[-1].revision == log.revision for items in seen):
        await asyncio.sleep(1)
    for tail in tails:
        tail.cancel()
    now = asyncio.get_running_loop().time()
    return written, seen, log.head, now


@pytest.mark.parametrize("seed", range(5))
def test_what_is_appended_under_faults_is_in_the_log_once(seed):
    written, seen, head, _ = simulated_loop.run(course(seed))
    for items in seen:
        frames = [item for item in items if isinstance(item, Frame)]
        assert [frame.seq for frame in frames] == [*range(1, head.seq + 1)]
        payloads = [frame.payload for frame in frames]
        assert len(set(payloads)) == len(payloads)
        assert set(written) == set(payloads)


def test_a_seed_repeats_its_course():
    assert simulated_loop.run(course(7)) == simulated_loop.run(course(7))
    assert simulated_loop.run(course(7)) != simulated_loop.run(course(8))


def test_a_lease_ends_without_renewal():
    async def main():
        log = MemoryLog()
        engine = MemoryEngine(log)
        await engine.open(1, 0, START, made_by="x", made_at_ns=0)
        lead = await engine.campaign(Candidate(1, "n", "p", 0))
        for _ in range(5):
            await asyncio.sleep(LEASE_S - 0.1)
            assert await engine.renew(lead)
        await asyncio.sleep(LEASE_S + 0.1)
        assert not await engine.renew(lead)
        assert not await engine.confirm(lead.epoch)

    simulated_loop.run(main())


def test_a_full_engine_refuses_and_the_epoch_goes_on():
    async def main():
        log = MemoryLog()
        engine = MemoryEngine(log)
        await engine.open(1, 0, START, made_by="x", made_at_ns=0)
        lead = await engine.campaign(Candidate(1, "n", "p", 0))
        log.is_full = True
        with pytest.raises(EngineFull):
            await engine.append(lead.epoch, 1, START, chain(1), b"x")
        with pytest.raises(EngineFull):
            await engine.campaign(Candidate(2, "n", "p", 0))
        assert (await engine.room()).is_full
        log.is_full = False
        await engine.append(lead.epoch, 1, START, chain(1), b"y")
        assert await engine.end() == End(1, chain(1))

    simulated_loop.run(main())


def test_a_full_engine_does_not_say_unwritten_of_what_may_be_written():
    async def main():
        log = MemoryLog()
        engine = MemoryEngine(log)
        await engine.open(1, 0, START, made_by="x", made_at_ns=0)
        lead = await engine.campaign(Candidate(1, "n", "p", 0))
        engine.faults.lost = 1.0
        appending = asyncio.create_task(engine.append(lead.epoch, 1, START, chain(1), b"x"))
        await asyncio.sleep(CALL_S / 2)
        engine.faults.lost = 0.0
        log.is_full = True
        await asyncio.sleep(LEASE_S / 2)
        assert not appending.done()
        log.is_full = False
        await appending

    simulated_loop.run(main())


def test_nothing_passes_a_partition():
    async def main():
        engine = MemoryEngine(MemoryLog())
        engine.faults.part()
        opening = asyncio.create_task(engine.open(1, 0, START, made_by="x", made_at_ns=0))
        await asyncio.sleep(100)
        assert not opening.done()
        engine.faults.heal()
        await opening

    simulated_loop.run(main())

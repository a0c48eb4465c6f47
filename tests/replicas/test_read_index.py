"""Quorum reads wait for what the log had when they came, and share the requests to the engine."""

import asyncio

import pytest

from kvd.core.replicated.leading import WAIT_S
from kvd.replicas.engine import End, EngineRefused
from kvd.replicas.read_index import Applied, ReadIndex
from kvd.v2.errors import ApiError
from tests.support import simulated_loop


class ModelStore:
    """A store of which nothing is looked at but its last frame."""

    def __init__(self):
        self.applied = self
        self.seq = 0


class ModelEngine:
    """An engine whose responses are given by the test."""

    def __init__(self):
        self.asked = []

    async def end(self):
        self.asked.append(asyncio.get_running_loop().create_future())
        return await self.asked[-1]

    def respond(self, seq):
        self.asked[-1].set_result(End(seq, bytes(8)))


class Course:
    def __init__(self):
        self.store, self.engine = ModelStore(), ModelEngine()
        self.applied = Applied(self.store)
        self.index = ReadIndex(self.engine, self.applied)

    def read(self):
        return asyncio.create_task(self.index.catch_up())

    def apply(self, seq):
        """Apply a frame, as a committer does."""
        self.store.seq = seq
        if self.applied.kept:
            self.applied.observe([])


def course(main):
    async def run():
        await main(Course())

    return lambda: simulated_loop.run(run())


async def turns():
    for _ in range(5):
        await asyncio.sleep(0)


async def refused(read):
    with pytest.raises(ApiError) as refusal:
        await read
    return refusal.value.code, refusal.value.cause, refusal.value.index


@course
async def test_a_read_waits_until_the_end_of_the_log_is_applied(c):
    c.apply(4)
    read = c.read()
    await turns()
    c.engine.respond(6)
    await turns()
    c.apply(5)
    await turns()
    assert not read.done()
    c.apply(6)
    await read
    assert not c.applied.kept


@course
async def test_a_read_of_what_is_applied_already_waits_for_the_engine_only(c):
    c.apply(4)
    read = c.read()
    await turns()
    assert not read.done()
    c.engine.respond(4)
    await read


@course
async def test_reads_that_come_together_share_a_request(c):
    reads = [c.read() for _ in range(50)]
    await turns()
    c.engine.respond(0)
    await asyncio.gather(*reads)
    assert len(c.engine.asked) == 1


@course
async def test_a_read_that_comes_while_the_engine_is_asked_waits_for_the_next_request(c):
    first = c.read()
    await turns()
    later = [c.read() for _ in range(3)]
    await turns()
    c.engine.respond(0)
    await first
    await turns()
    assert not any(read.done() for read in later)
    assert len(c.engine.asked) == 2
    c.engine.respond(1)
    c.apply(1)
    await asyncio.gather(*later)
    assert len(c.engine.asked) == 2


@course
async def test_a_read_ends_after_seven_seconds_without_the_engine(c):
    loop = asyncio.get_running_loop()
    first = c.read()
    await asyncio.sleep(3)
    second = c.read()
    assert await refused(first) == (300, b"etcdserver: request timed out", 0)
    assert loop.time() == pytest.approx(WAIT_S)
    assert await refused(second) == (300, b"etcdserver: request timed out", 0)
    assert loop.time() == pytest.approx(WAIT_S + 3, abs=0.1)
    later = c.read()
    c.engine.respond(0)
    await turns()
    c.engine.respond(0)
    await later


@course
async def test_a_read_ends_after_seven_seconds_without_the_frame_and_leaves_nothing(c):
    read = c.read()
    await turns()
    c.engine.respond(9)
    assert await refused(read) == (300, b"etcdserver: request timed out", 0)
    assert not c.applied.kept
    c.apply(9)


@course
async def test_reads_of_clients_that_went_leave_nothing(c):
    for _ in range(1000):
        read = c.read()
        await turns()
        read.cancel()
        await turns()
    await asyncio.sleep(2 * WAIT_S)
    assert len(c.engine.asked) == 1
    assert not c.index._next
    assert not c.index._ends


@course
async def test_an_engine_that_must_not_be_used_refuses_reads(c):
    read = c.read()
    await turns()
    c.engine.asked[-1].set_exception(EngineRefused("no rights"))
    assert await refused(read) == (300, b"no rights", 0)
    read = c.read()
    await turns()
    c.engine.respond(0)
    await read


@course
async def test_a_stop_refuses_the_reads_that_wait(c):
    behind, asking = c.read(), None
    await turns()
    c.engine.respond(5)
    await turns()
    asking = c.read()
    await turns()
    c.index.close()
    for read in (behind, asking):
        assert await refused(read) == (300, b"etcdserver: server stopped", 0)
    assert not c.applied.kept


@course
async def test_calls_are_made_once_their_frame_is_applied_or_forgotten(c):
    called = []
    assert c.applied.when(0, lambda: called.append(0)) is None
    c.applied.when(2, lambda: called.append(2))
    c.applied.when(1, lambda: called.append(1))
    forgotten = c.applied.when(1, lambda: called.append("never"))
    c.applied.forget(forgotten)
    assert called == [0]
    c.apply(1)
    assert called == [0, 1]
    c.apply(7)
    assert called == [0, 1, 2]

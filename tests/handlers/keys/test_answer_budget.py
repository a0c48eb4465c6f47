"""The budget of memory for answers: turns, readers that are cut, room in order."""

import asyncio

import pytest

from kvd.http.receiving import Receiving
from kvd.http.sending.scheduler import SendScheduler
from kvd.limits.memory_budget import MemoryBudget, NoRoom
from kvd.limits.rate import RATE_MIN
from tests.support.lazy_readers import Upload, readers, run
from tests.support.memory import MIB


def test_in_a_turn_no_more_is_sent_than_takes_a_millisecond(loop):
    memory = MemoryBudget(64 * MIB)
    sending = SendScheduler(loop, memory, 600)
    made = readers(memory, sending, 16)
    for reader in made:
        sending.soon(reader)
    while loop.due:
        (turn,) = loop.due
        loop.due = []
        before = sum(reader.outbox.sent_bytes for reader in made)
        turn()
        assert sum(reader.outbox.sent_bytes for reader in made) - before <= MIB
    assert all(reader.outbox.sent_bytes for reader in made), "by turns"


@pytest.mark.parametrize("is_waited_for", [False, True])
def test_the_slowest_are_cut_while_others_wait_and_only_then(loop, is_waited_for):
    @run
    async def _() -> None:
        memory = MemoryBudget(16 * MIB)
        sending = SendScheduler(loop, memory, 600)
        made = readers(memory, sending, 7)
        waiting = asyncio.ensure_future(memory.room(3 * MIB)) if is_waited_for else None
        await asyncio.sleep(0)
        for second in range(1, 6):
            loop.now = second
            for place, reader in enumerate(made):
                reader.read_bytes += RATE_MIN // 4 * (place + 1)
            sending.tick(second)
        # Three have less than the rate; two of them are enough.
        cut = [True, True, *[False] * 5] if is_waited_for else [False] * 7
        assert [reader.is_cut for reader in made] == cut
        if waiting:
            await waiting


def test_beyond_the_limit_slow_readers_are_cut_at_once(loop):
    memory = MemoryBudget(10 * MIB)
    sending = SendScheduler(loop, memory, 600)
    fast, slow = readers(memory, sending, 2)
    for second in range(1, 4):
        loop.now = second
        fast.read_bytes += 4 * RATE_MIN
        sending.tick(second)
    unknown = readers(memory, sending, 2)
    assert not loop.due
    more = readers(memory, sending, 2)
    for call in loop.due:
        call()
    assert memory.answers <= memory.answers_max < 9 * MIB
    assert [reader.is_cut for reader in (fast, slow, *unknown, *more)] == [
        False, True, True, False, False, False,
    ]  # fmt: skip


def test_room_is_refused_after_a_while_and_small_ones_have_a_reserve(monkeypatch):
    @run
    async def _() -> None:
        monkeypatch.setattr("kvd.limits.memory_budget.ROOM_WAIT_S", 0.01)
        memory = MemoryBudget(16 * MIB)
        memory.take(13 * MIB)
        assert memory.has_room(100_000)
        assert not memory.has_room(2 * MIB)
        with pytest.raises(NoRoom):
            await memory.room(2 * MIB)
        assert not memory.lacking
        memory.give_back(2 * MIB)
        await memory.room(2 * MIB)


def test_room_is_given_in_the_order_in_which_it_was_asked_for():
    @run
    async def _() -> None:
        memory = MemoryBudget(16 * MIB)
        memory.take(14 * MIB)
        got: list[int] = []

        async def ask(number: int) -> None:
            await memory.room(4 * MIB)
            memory.take(4 * MIB)
            got.append(number)

        asking = [asyncio.ensure_future(ask(number)) for number in range(5)]
        await asyncio.sleep(0)
        assert memory.lacking == 14 * MIB
        memory.give_back(6 * MIB)
        for _ in range(20):
            await asyncio.sleep(0)
        assert (got, memory.answers) == ([0], 12 * MIB)
        memory.give_back(12 * MIB)
        for _ in range(20):
            await asyncio.sleep(0)
        assert (got, memory.answers) == ([0, 1, 2, 3], 12 * MIB)
        asking[4].cancel()


def test_requests_and_answers_have_one_limit():
    memory = MemoryBudget(16 * MIB)
    memory.take_request(12 * MIB)
    assert memory.fits(100_000)
    assert memory.fits(2 * MIB)
    memory.take(2 * MIB)
    assert not memory.fits(2 * MIB)
    memory.give_back_request(12 * MIB)
    memory.take(11 * MIB)
    # An eighth is left to requests, whatever answers take.
    assert (memory.requests_max, memory.answers_max) == (3 * MIB, 14 * MIB)
    memory.take(3 * MIB)
    assert memory.requests_max == 2 * MIB


def test_slow_readers_are_cut_for_requests_that_wait(loop):
    memory = MemoryBudget(16 * MIB)
    sending = SendScheduler(loop, memory, 600)
    receiving = Receiving(memory, lambda: 0.0)
    memory.observe_room(receiving.wake)
    made = readers(memory, sending, 6)
    for second in range(1, 4):
        loop.now = second
        sending.tick(second)
    assert not any(reader.is_cut for reader in made)
    upload = Upload(receiving, 6 * MIB)
    receiving.wait(upload)
    sending.tick(4)
    # Two are enough: what large requests leave free is an eighth of half of the limit.
    assert [reader.is_cut for reader in made] == [True, True, *[False] * 4]


def test_answers_that_exceed_the_limit_end_requests_before_they_end_each_other(loop):
    memory = MemoryBudget(16 * MIB)
    receiving = Receiving(memory, lambda: 0.0)
    sending = SendScheduler(loop, memory, 600, receiving.give_up_for_answers)
    upload = Upload(receiving, 8 * MIB)
    made = readers(memory, sending, 5)
    for call in loop.due:
        call()
    assert upload.is_given_up
    assert not any(reader.is_cut for reader in made)

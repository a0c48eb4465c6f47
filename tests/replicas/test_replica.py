"""Replicas on the engine in memory: seeded courses of faults, in simulated time."""

import asyncio
from hashlib import blake2b
from random import Random

import pytest

from kvd.replicas.engine import (
    Candidate,
    End,
    EngineFull,
    Fenced,
    OtherHistory,
    OutcomeUnknown,
    Trimmed,
)
from kvd.replicas.replica import Replica, State
from tests.support import simulated_loop
from tests.support.memory_engine import Faults, MemoryEngine, MemoryLog

START = bytes(8)
COURSES = 40


def chained(prev, payload):
    return blake2b(prev + payload, digest_size=8).digest()


class ModelMember:
    """A store that is a list of commands, and a committer that makes a frame of what is queued."""

    def __init__(self, log, number):
        self.faults = Faults(log)
        self.engine = MemoryEngine(log, self.faults)
        me = Candidate(number, f"h{number}", f"http://h{number}", number)
        self.replica = Replica(self.engine, me, self, on_state=self._note)
        self.end = End(0, START)
        self.commands = []
        self.queue = []
        self.acknowledged = []
        self.unknown = []
        self.states = []
        self._is_open = False
        self._batch = None

    def _note(self, state):
        self.states.append(state)

    async def apply(self, payload):
        assert not self._is_open
        prev, _, commands = payload.partition(b" ")
        if bytes.fromhex(prev.decode()) != self.end.chain:
            raise OtherHistory("the frame does not continue the store")
        await asyncio.sleep(0.001)
        self._take(payload, commands.split())

    def _take(self, payload, commands):
        self.commands += commands
        self.end = End(self.end.seq + 1, chained(self.end.chain, payload))

    def submit(self, command):
        self.queue.append(command)
        self._begin()

    def open_gate(self):
        self._is_open = True
        self._begin()

    async def close_gate(self):
        self._is_open = False
        while self._batch is not None:
            await asyncio.wait([self._batch])

    def _begin(self):
        if self._is_open and self._batch is None and self.queue:
            self._batch = asyncio.create_task(self._lead_batch())

    async def _lead_batch(self):
        batch, self.queue = self.queue, []
        payload = self.end.chain.hex().encode() + b" " + b" ".join(batch)
        chain = chained(self.end.chain, payload)
        try:
            await self.replica.append(self.end.seq + 1, self.end.chain, chain, payload)
            await asyncio.sleep(0.001)
            self._take(payload, batch)
            self.acknowledged += batch
        except Fenced:
            self.queue = batch + self.queue
        except (OutcomeUnknown, EngineFull):
            self.unknown += batch
        finally:
            self._batch = None
            self._begin()


class Course:
    """Three members, clients that ask any of them, and faults."""

    def __init__(self, seed):
        self.random = Random(seed)
        self.log = MemoryLog(self.random)
        self.members = [ModelMember(self.log, number) for number in range(1, 4)]
        self.sent = 0

    async def start(self):
        for member in self.members:
            await member.engine.open(1, 0, START, made_by="h", made_at_ns=0)
        return [asyncio.create_task(member.replica.run()) for member in self.members]

    def send(self):
        self.sent += 1
        self.random.choice(self.members).submit(b"%d" % self.sent)

    def fail(self):
        faults = self.random.choice(self.members).faults
        match self.random.randrange(5):
            case 0:
                faults.part()
            case 1:
                faults.mute()
            case 2:
                faults.lost = faults.doubled = 0.3
            case 3:
                faults.delay_s = (0.0, self.random.choice([0.01, 0.5, 2.0]))
            case 4 if self.log.leadership.lead is not None:
                self.log.revoke(self.log.leadership.lead.lease)

    def hand_on(self):
        """Move what followers hold, which is not in the log, to a leader."""
        leading = leaders(self.members)
        for member in self.members:
            if leading and member.replica.state is State.FOLLOWING:
                held, member.queue = member.queue, []
                for command in held:
                    leading[-1].submit(command)

    def heal(self):
        for member in self.members:
            member.faults.heal()
            member.faults.lost = member.faults.doubled = 0.0
            member.faults.delay_s = (0.0, 0.01)

    async def settle(self, tasks):
        """Wait until every command was decided and is everywhere."""
        self.heal()
        while any(member.queue or member._batch for member in self.members):
            for task in tasks:
                if task.done():
                    task.result()
            self.hand_on()
            await asyncio.sleep(1)
        while any(member.end != self.log.head for member in self.members):
            await asyncio.sleep(1)

    async def run(self, steps=200):
        tasks = await self.start()
        for _ in range(steps):
            if self.random.random() < 0.9:
                self.send()
            elif self.random.random() < 0.6:
                self.fail()
            else:
                self.heal()
            self.hand_on()
            await asyncio.sleep(self.random.uniform(0, 0.3))
        await self.settle(tasks)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return self


def course(seed):
    return simulated_loop.run(Course(seed).run())


@pytest.mark.parametrize("seed", range(COURSES))
def test_what_is_acknowledged_is_everywhere_once(seed):
    ran = course(seed)
    first, *others = ran.members
    assert all(member.commands == first.commands for member in others)
    assert all(member.end == ran.log.head for member in ran.members)
    assert len(set(first.commands)) == len(first.commands)
    acknowledged = [command for member in ran.members for command in member.acknowledged]
    assert len(set(acknowledged)) == len(acknowledged)
    unknown = {command for member in ran.members for command in member.unknown}
    assert set(acknowledged) <= set(first.commands)
    assert set(first.commands) - unknown == set(acknowledged)
    assert set(acknowledged) | unknown == {b"%d" % n for n in range(1, ran.sent + 1)}


def test_a_seed_repeats_its_course():
    one, two = course(3), course(3)
    assert one.log.frames == two.log.frames
    assert [m.states for m in one.members] == [m.states for m in two.members]


def leaders(members):
    return [member for member in members if member.replica.state is State.LEADING]


async def one_leads(members):
    while len(leaders(members)) != 1:
        await asyncio.sleep(0.1)
    return leaders(members)[0]


def test_another_leads_when_a_leader_is_cut_off_and_that_one_follows_again():
    async def main():
        ran = Course(1)
        tasks = await ran.start()
        old = await one_leads(ran.members)
        old.submit(b"one")
        while not old.acknowledged:
            await asyncio.sleep(0.1)
        old.faults.part()
        old.submit(b"two")
        others = [member for member in ran.members if member is not old]
        new = await one_leads(others)
        new.submit(b"three")
        while not new.acknowledged:
            await asyncio.sleep(0.1)
        # Silence alone ends nothing: the old one still waits for its append.
        assert old.replica.state is State.LEADING
        assert (old.acknowledged, old.queue) == ([b"one"], [])
        old.faults.heal()
        while old.end != ran.log.head or old.replica.state is not State.FOLLOWING:
            await asyncio.sleep(0.1)
        assert old.commands == [b"one", b"three"]
        assert old.queue == [b"two"]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    simulated_loop.run(main())


@pytest.mark.parametrize("is_stop", [False, True], ids=["by request", "at a stop"])
def test_a_lead_is_handed_over_at_once_with_what_was_in_flight(is_stop):
    async def main():
        ran = Course(2)
        tasks = await ran.start()
        old = await one_leads(ran.members)
        began = asyncio.get_running_loop().time()
        old.submit(b"one")
        await old.replica.hand_over(for_good=is_stop)
        assert old.acknowledged == [b"one"]
        await one_leads([member for member in ran.members if member is not old])
        # In simulated time, without a delay of the engine: neither a lease nor a second passes.
        assert asyncio.get_running_loop().time() - began < 0.2
        assert old.replica.state is State.FOLLOWING
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    simulated_loop.run(main())


@pytest.mark.parametrize("end", [End(9, START), End(0, b"another.")], ids=["ahead", "other chain"])
def test_a_store_of_another_history_does_not_begin(end):
    async def main():
        ran = Course(1)
        member = ran.members[0]
        await member.engine.open(1, 0, START, made_by="h", made_at_ns=0)
        member.end = end
        with pytest.raises(OtherHistory):
            await member.replica.run()
        assert member.states == []

    simulated_loop.run(main())


def test_a_store_behind_the_trim_is_notified():
    async def main():
        ran = Course(1)
        tasks = await ran.start()
        leader = await one_leads(ran.members)
        for number in range(5):
            leader.submit(b"%d" % number)
            while len(leader.acknowledged) <= number:
                await asyncio.sleep(0.1)
        await leader.engine.trim(4)
        late = ModelMember(ran.log, 9)
        with pytest.raises(Trimmed):
            await late.replica.run()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    simulated_loop.run(main())


def test_a_leader_whose_tail_is_behind_the_trim_leads_on():
    async def main():
        ran = Course(1)
        tasks = await ran.start()
        leader = await one_leads(ran.members)
        leader.faults.delay_s = (3.0, 3.0)
        ran.log._change()  # its tail is on the way to the engine for three seconds
        await asyncio.sleep(0.01)
        leader.faults.delay_s = (0.0, 0.0)
        for number in range(5):
            leader.submit(b"%d" % number)
            while len(leader.acknowledged) <= number:
                await asyncio.sleep(0.01)
        await leader.engine.trim(5)
        await asyncio.sleep(5)
        leader.submit(b"more")
        while b"more" not in leader.acknowledged:
            await asyncio.sleep(0.1)
        assert leader.replica.state is State.LEADING
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    simulated_loop.run(main())

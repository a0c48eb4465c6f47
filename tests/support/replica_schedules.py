"""Seeded schedules of faults on three replicas in one process, in simulated time.

Each step of a schedule is a command or a read of a client, or a fault; at the end all faults are
healed, everything is answered, and the checker looks at it. The same seed gives the same course.
"""

import asyncio
import shutil
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

from kvd.v2.commands import (
    CompareAndSwap,
    Condition,
    Create,
    CreateInOrder,
    Delete,
    Set,
    Transaction,
)
from kvd.v2.documents.auth_commands import PutUser
from kvd.v2.errors import ApiError
from tests.support import simulated_loop
from tests.support.replica_checker import Checker, Wrong
from tests.support.sites import Sites
from tests.support.stores import digest

STEPS = 200
KEYS = (b"/a", b"/b", b"/c")
LATE_S = 7.6
"""Seven seconds, a tick and what the links and the loop take."""
SETTLE_S = 120.0
MEMORY = Path("/dev/shm")


class Schedule:
    """One course: `run` it once."""

    def __init__(self, path, seed, *, steps=STEPS, prepare=lambda _: None):
        self.seed = seed
        self.sites = Sites(path, seed=seed)
        self.random = self.sites.random
        self.checker = Checker(late_s=LATE_S)
        self.faults = Counter()
        self._steps = steps
        self._prepare = prepare
        self._sent = 0
        self._open = {}
        self._known = {}
        self._tasks = set()

    async def run(self):
        for site in self.sites.all:
            await self._start(site)
        try:
            for _ in range(self._steps):
                self._step()
                await self.sites.pass_time(self._pause_s())
            await self._settle()
        finally:
            for task in self._tasks:
                task.cancel()
            await self.sites.stop()

    def _pause_s(self):
        roll = self.random.random()
        return 0.0 if roll < 0.5 else 0.02 if roll < 0.8 else 0.1 if roll < 0.98 else 1.5

    async def _start(self, site):
        await site.start(self.checker.follow)
        self._prepare(site.process)

    # Clients.

    def _step(self):
        running = self.sites.running
        if running and self.random.random() < 0.8:
            site = self.random.choice(running)
            roll = self.random.random()
            if roll < 0.12:
                self._go(self._read(site))
            elif roll < 0.16:
                self._put_user(site)
            else:
                self._send(site)
        else:
            name, fault = self.random.choice(FAULTS)
            self.faults[name] += 1
            fault(self, self.random.choice(self.sites.all))

    def _send(self, site):
        self._sent += 1
        value = b"c%d" % self._sent
        key = self.random.choice(KEYS)
        roll = self.random.random()
        if roll < 0.4:
            command = Set(key, value)
        elif roll < 0.6:
            command = CreateInOrder(b"/q", value)
        elif roll < 0.7:
            command = Create(key, value)
        elif roll < 0.8:
            command = Delete(key)
        elif roll < 0.9:
            command = CompareAndSwap(key, value, self._known.get(key, b"none"), 0)
        elif roll < 0.95:
            command = Set(b"/ttl", value, ttl_s=1)
        else:
            when = (Condition(key, exists=self.random.random() < 0.5),)
            ops = (Set(b"/t1", value), Set(b"/t2", value))[: self.random.randint(0, 2)]
            command = Transaction(b"".join((key, b"/t1", b"/t2")), when, ops)
        self._submit(site, command, value)

    def _put_user(self, site):
        self._sent += 1
        self._submit(site, PutUser(f"u{self._sent % 3}", b"hash"), b"")

    def _submit(self, site, command, value):
        asked = self.checker.sends(self._sent, command, value, self._now())
        self._open[asked.number] = site.process, asked
        submit = site.transact if isinstance(command, Transaction) else site.submit
        submit = site.submit_document if isinstance(command, PutUser) else submit
        submit(command).add_done_callback(partial(self._answered, site.process, asked))

    def _answered(self, process, asked, done):
        # In a turn of its own, as a response to a client.
        if self._open.pop(asked.number, None) is None:
            return  # its replica has ended
        try:
            index = process.store.applied.index
            self.checker.responds(asked, done.result(), index, self._now())
        except Wrong as wrong:
            process.errors.append(wrong)
        outcome = done.result()
        if not isinstance(outcome, ApiError) and hasattr(outcome, "change"):
            self._known[outcome.change.key] = outcome.change.value

    async def _read(self, site):
        process, acknowledged, sent_s = site.process, self.checker.acknowledged, self._now()
        try:
            await process.read_index.catch_up()
        except ApiError:
            self.checker.counts["timeouts"] += 1
        else:
            if site.process is process:
                self.checker.reads(acknowledged, process.store.applied.index)
        if self._now() - sent_s > LATE_S:
            raise Wrong("late: a quorum read")

    # Faults.

    def part(self, site):
        site.faults.part()

    def mute(self, site):
        site.faults.mute()

    def heal(self, site):
        self._heal(site)

    def lose(self, site):
        site.faults.lost = site.faults.doubled = 0.3

    def slow(self, site):
        site.faults.delay_s = (0.0, self.random.choice([0.005, 0.3]))

    def revoke(self, _site):
        lead = self.sites.log.leadership.lead
        if lead is not None:
            self.sites.log.revoke(lead.lease)

    def depose(self, site):
        """Let another lead, and the leader learn of it late."""
        site = next((site for site in self.sites.running if site.leads), site)
        site.faults.delay_s = (0.1, 0.4)
        self.revoke(site)

    def fill(self, _site):
        self.sites.log.is_full = not self.sites.log.is_full

    def trim(self, _site):
        running = self.sites.running
        if len(running) == len(self.sites.all):
            self.sites.log.trim(min(site.seq for site in running) + 1)

    def freeze(self, site):
        site.faults.part()
        self.sites.network.part(site.name)

    def part_links(self, site):
        self.sites.network.part(site.name)

    def cut(self, site):
        self.sites.network.cut(site.name)

    def delay_links(self, _site):
        self.sites.network.delay_s = (0.0, self.random.choice([0.0, 0.01, 0.2]))

    def lag(self, site):
        site.lag = (0.0, self.random.choice([0.0, 0.01, 0.4]))

    def hand_over(self, site):
        if site.process is not None:
            self._go(site.process.replica.hand_over())

    def kill(self, site):
        if site.process is not None and not site.is_changing:
            self._go(self._kill(site))

    async def _kill(self, site):
        process = site.process
        site.is_changing = True
        await site.kill()
        for number, (of, asked) in [*self._open.items()]:
            if of is process:
                del self._open[number]
                self.checker.dies(asked)
        await asyncio.sleep(self.random.choice([0.0, 0.5, 4.0]))
        await self._start(site)
        site.is_changing = False

    def _heal(self, site):
        site.faults.heal()
        site.faults.lost = site.faults.doubled = 0.0
        site.faults.delay_s = (0.0, 0.005)
        self.sites.network.heal(site.name)

    # The end.

    async def _settle(self):
        sites = self.sites
        sites.log.is_full = False
        sites.network.delay_s = (0.0, 0.005)
        for site in sites.all:
            self._heal(site)
            site.lag = (0.0, 0.0)
        while any(site.is_changing for site in sites.all):
            await sites.pass_time(0.05)
        try:
            async with asyncio.timeout(SETTLE_S):
                while self._open:
                    await sites.pass_time(0.1)
                await sites.all[0].process.read_index.catch_up()
                await sites.applied()
        except TimeoutError:
            raise Wrong(f"no end: {self._open}") from None
        for task in [*self._tasks]:
            if task.done():
                task.result()
        self.checker.check([digest(site.store) for site in sites.all])

    def _go(self, work):
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task):
        if not task.cancelled() and task.exception() is None:
            self._tasks.discard(task)

    @staticmethod
    def _now():
        return asyncio.get_running_loop().time()


FAULTS = [
    (name, getattr(Schedule, name))
    for name, weight in (
        ("heal", 6),
        ("kill", 2),
        ("cut", 2),
        ("part", 1),
        ("mute", 1),
        ("freeze", 2),
        ("part_links", 1),
        ("lose", 1),
        ("slow", 1),
        ("revoke", 1),
        ("depose", 2),
        ("fill", 1),
        ("trim", 1),
        ("delay_links", 2),
        ("lag", 3),
        ("hand_over", 1),
    )
    for _ in range(weight)
]


def run(seed, *, steps=STEPS, prepare=lambda _: None):
    """Run one schedule; return it. `prepare` gets each process before it runs.

    Raises:
        Wrong, or whatever has ended a replica.
    """
    where = tempfile.mkdtemp(prefix="kvd-schedule-", dir=MEMORY if MEMORY.is_dir() else None)
    try:

        async def main():
            schedule = Schedule(Path(where), seed, steps=steps, prepare=prepare)
            await schedule.run()
            return schedule

        return simulated_loop.run(main())
    except BaseException as error:
        error.add_note(f"in the schedule of seed {seed}")
        raise
    finally:
        shutil.rmtree(where)

"""Replicas in one process and in simulated time: real stores and committers, all else in memory.

A `Site` is one replica: its directory, the store in it while it runs, its way to the engine and to
the network. Nothing here waits for a disk or a thread, so a course of the same seed is the same.
"""

import asyncio
from functools import partial
from random import Random

from kvd.core.clock import Clock
from kvd.core.committer import Committer
from kvd.core.replicated.unsynced_log import UnsyncedLog
from kvd.core.stats import StoreStats
from kvd.core.watch.hub import Hub
from kvd.replicas.engine import Candidate
from kvd.replicas.forwarding.forwarding import Forwarding
from kvd.replicas.links import Hello
from kvd.replicas.member import StoreMember
from kvd.replicas.peers.peers import Peers
from kvd.replicas.read_index import Applied, ReadIndex
from kvd.replicas.replica import Replica, State
from kvd.storage.format.records import Term
from kvd.storage.store import Options, Store
from kvd.v2.errors import ApiError
from tests.support import simulated_loop
from tests.support.memory_engine import Faults, MemoryEngine, MemoryLog
from tests.support.memory_links import MemoryNetwork
from tests.support.stores import NOW_NS, SEGMENT, digest

TICK_S = 0.25


class AtOnce:
    """A `WorkerThread` that is none."""

    waiting = 0

    def run(self, job, done):
        done(job())


class NoNotes:
    """Notes that are not kept."""

    def append_began(self):
        pass

    def append_answered(self, seq, size):
        pass

    def append_ended(self):
        pass

    def applied(self, seq, size):
        pass


class Process:
    """A process at a site, from its start to its end."""

    def __init__(self, site, since_ns, observer):
        loop = asyncio.get_running_loop()
        self.site = site
        self.store = store = Store.open(site.path, Options(segment_bytes_max=SEGMENT))
        self.errors = []
        raw_ns = lambda: int(loop.time() * 1e9)  # noqa: E731
        self.clock = Clock(store.applied.time_ns, raw_ns=raw_ns, wall_ns=lambda: NOW_NS + raw_ns())
        self.me = Candidate(site.number, site.name, site.name, since_ns)
        self.applied = Applied(store)
        self.stats = StoreStats()
        self.hub = Hub(store, loop)
        observers = () if observer is None else (observer(store.applied.index),)
        self.own_log = UnsyncedLog(store, AtOnce(), loop, self.errors.append)
        self.member = StoreMember(
            store,
            self.own_log,
            first_records=lambda: (Term(store.applied.term + 1),),
            on_fatal=self.errors.append,
        )
        self.committer = Committer(
            store=store,
            hub=self.hub,
            observers=(self.applied, *observers),
            stats=self.stats,
            clock=self.clock,
            sync=AtOnce(),
            append=self.member.append,
            wait=self.member.wait,
            loop=loop,
            on_fatal=self.errors.append,
            on_flush=lambda: None,
            may_decide=False,
            confirm=self.member.confirm,
        )
        self.forwarding = site.forwarding_class(
            committer=self.committer,
            clock=self.clock,
            stats=self.stats,
            applied=self.applied,
            me=self.me,
        )
        self.place = site.network.place(Hello(site.number, "1", 5), site.name)
        self.peers = Peers(
            me=self.me,
            forwarding=self.forwarding,
            network=self.place,
            revoke=site.engine.revoke,
            applied_seq=lambda: store.applied.seq,
            durable=lambda: self.own_log.durable,
        )
        self.read_index = ReadIndex(site.engine, self.applied)
        self.replica = Replica(
            site.engine,
            self.me,
            self.member,
            on_state=self.forwarding.on_state,
            on_leadership=self._lead_by,
        )
        self.member.connect(self.committer, self.replica, NoNotes(), self.follow)
        self.tasks = []

    async def follow(self, payload):
        await asyncio.sleep(self.site.lag_s())
        return await self.forwarding.follow(payload)

    def _lead_by(self, leadership):
        self.forwarding.on_leadership(leadership)
        self.peers.on_leadership(leadership)

    async def start(self):
        await self.peers.listen([self.site.name])
        self.tasks = [asyncio.create_task(self.replica.run()), asyncio.create_task(self._tick())]

    async def _tick(self):
        while True:
            for _ in range(4):
                await asyncio.sleep(TICK_S)
                self.committer.leading.tick()
            self.committer.tick()

    def check(self):
        """Raise what has ended any part of it."""
        for task in self.tasks:
            if task.done() and not task.cancelled():
                task.result()
        assert not self.errors, self.errors

    async def kill(self):
        """End as `kill -9` does."""
        self.place.die()
        for task in self.tasks:
            task.cancel()
        self.member.stop()
        self.committer.stop()
        self.own_log.close()
        self.read_index.close()
        self.forwarding.on_held = lambda: None
        self.committer.on_held = None
        await asyncio.wait(self.tasks)
        await self.peers.close()
        self.store.abandon()

    async def stop(self):
        """End as SIGTERM does."""
        await self.replica.hand_over(for_good=True)
        await self.forwarding.drain()
        await self.kill()


class Site:
    """One replica's place."""

    forwarding_class = Forwarding

    def __init__(self, sites, number, path):
        self.number = number
        self.name = f"http://h{number}"
        self.path = path / f"h{number}"
        self.network = sites.network
        self.random = sites.random
        self.faults = Faults(sites.log)
        self.engine = MemoryEngine(sites.log, self.faults)
        self.lag = (0.0, 0.0)
        self.process = None
        self.is_changing = False
        self._starts = 0

    def lag_s(self):
        """The time that a frame waits here until it is applied."""
        return self.random.uniform(*self.lag)

    async def start(self, observer=None):
        """Start; `observer` makes an observer of batches that come after an index."""
        self._starts += 1
        process = Process(self, self._starts, observer)
        applied = process.store.applied
        await self.engine.open(1, applied.seq, applied.chain, made_by=self.name, made_at_ns=0)
        self.process = process
        await process.start()

    async def kill(self):
        process, self.process = self.process, None
        await process.kill()

    def submit(self, command):
        """Return a future of the outcome of a command."""
        future = asyncio.get_running_loop().create_future()
        self.process.committer.submit(command, partial(_settle, future))
        return future

    def transact(self, transaction):
        future = asyncio.get_running_loop().create_future()
        self.process.committer.transact(transaction, partial(_settle, future))
        return future

    def submit_document(self, command):
        future = asyncio.get_running_loop().create_future()
        self.process.committer.submit_document(command, partial(_settle, future))
        return future

    @property
    def leads(self):
        return self.process is not None and self.process.replica.state is State.LEADING

    @property
    def store(self):
        return self.process.store

    @property
    def seq(self):
        return self.store.applied.seq

    def times(self, value):
        """The number of times that a value was written."""
        events = [*self.store.view.events(0)]
        return sum(event.change.value == value for event in events)

    def value(self, key):
        node = self.store.view.find(key)
        return None if node is None else node.value


def _settle(future, outcome):
    assert not future.done(), "two responses to one command"
    future.set_result(outcome)


class Sites:
    """Three replicas, and what is between them."""

    def __init__(self, path, *, seed=0, count=3):
        self.random = Random(seed)
        self.log = MemoryLog(self.random)
        self.network = MemoryNetwork(self.random)
        self.all = [Site(self, number, path) for number in range(1, count + 1)]

    async def start(self):
        for site in self.all:
            await site.start()

    async def leader(self):
        """The one that leads, as soon as there is one, and all follow it."""
        while True:
            leading = [site for site in self.all if site.leads]
            if len(leading) == 1 and all(
                site.process is None
                or site.process.replica.leadership.leader == leading[0].process.me
                for site in self.all
            ):
                return leading[0]
            await self.pass_time(0.01)

    async def pass_time(self, seconds):
        await asyncio.sleep(seconds)
        self.check()

    def check(self):
        for site in self.all:
            if site.process is not None:
                site.process.check()

    async def stop(self):
        for site in self.all:
            if site.process is not None:
                await site.kill()

    @property
    def running(self):
        return [site for site in self.all if site.process is not None]

    async def applied(self):
        """Wait until all have applied the whole log."""
        while len({site.seq for site in self.running} | {self.log.head.seq}) > 1:
            await self.pass_time(0.01)

    async def equal(self):
        """Wait until all have applied the whole log, and compare what they hold."""
        await self.applied()
        assert len({digest(site.store) for site in self.running}) == 1


def on_sites(test):
    """Let pytest run a coroutine function with three replicas that have started."""

    def run(tmp_path):
        async def main():
            sites = Sites(tmp_path)
            await sites.start()
            try:
                async with asyncio.timeout(600):  # of simulated time
                    await test(sites)
            finally:
                await sites.stop()

        simulated_loop.run(main())

    run.__name__ = test.__name__
    return run


def refusal(outcome):
    assert isinstance(outcome, ApiError), outcome
    return outcome.code, outcome.cause

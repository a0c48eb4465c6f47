"""The log in an etcd of three members that are killed and frozen while frames are appended."""

import asyncio
import os
import signal

import pytest

from kvd.replicas.engine import Candidate, Fenced, Frame
from kvd.replicas.etcd.log import EtcdLog
from kvd.replicas.etcd.url import parse
from tests.support.etcd import Etcd, free_ports
from tests.support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.clients

START = bytes(8)


def chain(seq):
    return seq.to_bytes(8, "big")


@pytest.fixture
def members(tmp_path):
    peers = free_ports(3)
    cluster = ",".join(f"m{number}=http://127.0.0.1:{peer}" for number, peer in enumerate(peers))
    made = [
        Etcd(tmp_path / f"m{number}", name=f"m{number}", cluster=cluster, peer=peer)
        for number, peer in enumerate(peers)
    ]
    for member in made:
        member.start(wait=False)
    for member in made:
        member.wait()
    yield made
    for member in made:
        if member._process is not None:
            os.killpg(member._process.pid, signal.SIGCONT)
        member.stop(signal.SIGKILL)


def engine_at(*ports):
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    return EtcdLog(parse(f"etcd://{hosts}/kvd/a"))


class Load:
    """One leader that appends, and a follower by each member first."""

    def __init__(self, *ports):
        self.leader = engine_at(*ports)
        self.followers = [engine_at(*ports[n:], *ports[:n]) for n in range(len(ports))]
        self.frames = [[] for _ in ports]
        self.written = 0
        self._tasks = []

    async def start(self):
        await self.leader.open(7, 0, START, made_by="h1", made_at_ns=17)
        lead = await self.leader.campaign(Candidate(1, "h1", "http://h1", 17))
        assert lead is not None
        self._tasks = [
            asyncio.create_task(self._append(lead)),
            asyncio.create_task(self._renew(lead)),
            *(
                asyncio.create_task(self._follow(*pair))
                for pair in zip(self.followers, self.frames, strict=True)
            ),
        ]

    async def _append(self, lead):
        while True:
            after = self.written + 1
            try:
                await self.leader.append(
                    lead.epoch, after, chain(self.written), chain(after), b"%d" % after * 100
                )
            except Fenced:
                # The lease has ended while nobody could renew it: a new election, the same frame.
                end = await self.leader.end()
                assert end.seq in (self.written, after)
                self.written = end.seq
                lead = await self.leader.campaign(Candidate(1, "h1", "http://h1", 17)) or lead
                self._tasks[1].cancel()
                self._tasks[1] = asyncio.create_task(self._renew(lead))
                continue
            self.written = after
            if after % 500 == 0:
                followed = min(len(frames) for frames in self.frames)
                await self.leader.trim(max(1, followed - 200))

    async def _renew(self, lead):
        while await self.leader.renew(lead):
            await asyncio.sleep(0.7)

    async def _follow(self, engine, frames):
        async for item in engine.tail(0):
            if isinstance(item, Frame):
                frames.append(item)

    async def more(self, count=100):
        """Wait until so many more frames were appended and followed."""
        target = self.written + count
        async with asyncio.timeout(60):
            while min(self.written, *(len(frames) for frames in self.frames)) < target:
                for number, task in enumerate(self._tasks):
                    if number != 1 and task.done():
                        task.result()
                await asyncio.sleep(0.02)

    async def stop(self):
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        for frames in self.frames:
            assert [frame.seq for frame in frames] == [*range(1, len(frames) + 1)]
            assert all(frame.payload == b"%d" % frame.seq * 100 for frame in frames)
        for engine in (self.leader, *self.followers):
            await engine.close()


def under_load(fault, ports):
    async def main():
        load = Load(*ports)
        await load.start()
        await load.more()
        await fault(load)
        await load.more()
        await load.stop()

    asyncio.run(main())


def test_members_are_killed_one_after_the_other(members):
    async def fault(load):
        for member in members:
            member.stop(signal.SIGKILL)
            await load.more()
            await asyncio.to_thread(member.start)
            await load.more()

    under_load(fault, [member.port for member in members])


def test_members_are_frozen_one_after_the_other(members):
    async def fault(load):
        for member in members:
            os.killpg(member._process.pid, signal.SIGSTOP)
            await load.more()
            os.killpg(member._process.pid, signal.SIGCONT)
            await load.more()

    under_load(fault, [member.port for member in members])


def test_two_members_are_killed_and_come_back(members):
    async def fault(load):
        for member in members[:2]:
            member.stop(signal.SIGKILL)
        await asyncio.sleep(4)
        for member in members[:2]:
            member.start(wait=False)
        await load.more()

    under_load(fault, [member.port for member in members])


def test_a_network_that_breaks_and_loses_responses(members):
    async def main():
        proxies = [await TcpProxy(member.port).start() for member in members]
        load = Load(*(proxy.port for proxy in proxies))
        await load.start()
        for proxy in proxies:
            for fail in (proxy.cut, proxy.mute, proxy.part):
                fail()
                await load.more()
                proxy.heal()
        for proxy in proxies:
            proxy.mute()
        await asyncio.sleep(1.5)
        for proxy in proxies:
            proxy.heal()
        await load.more()
        await load.stop()
        for proxy in proxies:
            await proxy.stop()

    asyncio.run(main())

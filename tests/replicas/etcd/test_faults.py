"""The log in an etcd of three members that are killed and frozen while frames are appended."""

import asyncio
import os
import signal

import pytest

from kvd.replicas.etcd.log import EtcdLog
from kvd.replicas.etcd.url import parse
from tests.support.engine_load import Load
from tests.support.etcd import Etcd, free_ports
from tests.support.tcp_proxy import TcpProxy

pytestmark = pytest.mark.clients


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


def load_on(*ports):
    """A leader, and a follower by each member first."""
    followers = [engine_at(*ports[number:], *ports[:number]) for number in range(len(ports))]
    return Load(engine_at(*ports), followers)


def under_load(fault, ports):
    async def main():
        load = load_on(*ports)
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
        load = load_on(*(proxy.port for proxy in proxies))
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

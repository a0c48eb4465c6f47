"""Links to the leader, and what their loss says of it."""

import asyncio
import logging
from contextlib import contextmanager

import pytest

from kvd.replicas.links import LinkError
from kvd.replicas.peers import peers
from kvd.storage.format.event import Event
from kvd.v2.commands import Set
from tests.support.memory_engine import LEASE_S
from tests.support.sites import on_sites


async def linked(sites):
    """The leader and two followers, which are linked to it."""
    leader = await sites.leader()
    await sites.pass_time(0.5)
    return leader, *(site for site in sites.all if site is not leader)


async def next_leader(sites, after):
    """Wait for another leader; return it and how long that took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        leader = await sites.leader()
        if leader is not after:
            return leader, loop.time() - began
        await sites.pass_time(0.01)


@on_sites
async def test_a_leader_whose_process_has_ended_is_replaced_at_once(sites):
    leader, *_ = await linked(sites)
    await leader.kill()
    _, took_s = await next_leader(sites, leader)
    assert took_s < 0.3


@on_sites
async def test_a_leader_that_is_silent_keeps_its_lease(sites):
    leader, follower, _ = await linked(sites)
    epoch = sites.log.epoch
    sites.network.part(leader.name)
    await sites.pass_time(20)
    sites.network.heal(leader.name)
    await sites.pass_time(6)
    assert sites.log.epoch == epoch
    assert isinstance(await follower.submit(Set(b"/a", b"1")), Event)


@on_sites
async def test_a_leader_that_was_never_reached_keeps_its_lease(sites):
    leader, *others = await linked(sites)
    epoch = sites.log.epoch
    del sites.network.listening[leader.name]
    for site in others:
        site.process.peers._met = None
    sites.network.cut(leader.name)
    await sites.pass_time(10)
    assert sites.log.epoch == epoch


@on_sites
async def test_a_replica_that_was_restarted_ends_its_own_earlier_lease(sites):
    leader, *others = await linked(sites)
    for site in others:
        await site.kill()
    lease = sites.log.leadership.lead.lease
    await leader.kill()
    await leader.start()
    again, took_s = await next_leader(sites, None)
    assert again is leader
    assert lease not in sites.log.leases
    assert took_s < LEASE_S / 2


@on_sites
async def test_a_revocation_is_tried_for_a_while(sites):
    leader, follower, other = await linked(sites)
    calls = []

    async def hang(lease):
        calls.append(lease)
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            calls.append(asyncio.get_running_loop().time())
            raise

    for site in (follower, other):
        site.process.peers._revoke = hang
    lease = sites.log.leadership.lead.lease
    began = asyncio.get_running_loop().time()
    await leader.kill()
    await sites.pass_time(peers.REVOKE_S + 1)
    assert calls[:2] == [lease, lease]
    assert calls[2:] == [pytest.approx(began + peers.REVOKE_S, abs=0.2)] * 2
    assert await next_leader(sites, leader)


@on_sites
async def test_the_leader_knows_what_its_followers_have_applied(sites):
    leader, follower, other = await linked(sites)
    reported = []
    leader.process.peers._on_applied = lambda *report: reported.append(report)
    follower.lag = (0.3, 0.3)
    await leader.submit(Set(b"/a", b"1"))
    await sites.pass_time(0.1)
    followers = leader.process.peers.followers
    assert sorted(followers) == sorted((follower.number, other.number))
    assert followers[other.number].applied == leader.seq
    assert followers[follower.number].applied == leader.seq - 1
    await sites.pass_time(0.3)
    assert followers[follower.number].applied == leader.seq
    assert followers[follower.number].durable < leader.seq
    assert reported[0] == (other.number, leader.seq, leader.seq - 1)
    await sites.pass_time(1)
    assert followers[follower.number].durable == leader.seq
    await other.kill()
    await sites.pass_time(0.1)
    assert sorted(followers) == [follower.number]


@on_sites
async def test_another_replica_at_the_url_of_the_leader_gets_nothing(sites):
    leader, follower, other = await linked(sites)
    sites.network.listening[leader.name] = sites.network.listening[other.name]
    own, serve = sites.network.listening[other.name]
    received = []

    async def note(link):
        received.append(link.peer.id)
        await serve(link)

    sites.network.listening[leader.name] = (own, note)
    sites.network.cut(follower.name)
    done = follower.submit(Set(b"/a", b"1"))
    await sites.pass_time(3)
    assert follower.number in received
    assert not done.done()
    sites.network.listening[leader.name] = (leader.process.place, leader.process.peers._serve)
    assert isinstance(await done, Event)


@contextmanager
def logged_lines():
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append((record.levelname, record.getMessage()))
    logging.getLogger(peers.__name__).addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger(peers.__name__).removeHandler(handler)


@on_sites
async def test_a_leader_that_cannot_be_reached_is_named_once_a_minute(sites):
    leader, follower, other = await linked(sites)
    del sites.network.listening[leader.name]
    for site in (follower, other):
        site.process.peers._met = None
    sites.network.cut(follower.name)
    with logged_lines() as lines:
        await sites.pass_time(1.5)
        assert not lines
        await sites.pass_time(5)
    assert lines == [
        (
            "WARNING",
            f"the leader {leader.name} at {leader.name} cannot be reached, writes wait for it: "
            "nothing listens there",
        )
    ]


@on_sites
async def test_a_leader_that_is_replaced_is_no_warning(sites):
    leader, *_ = await linked(sites)
    with logged_lines() as lines:
        await leader.kill()
        await next_leader(sites, leader)
        await sites.pass_time(5)
    assert {level for level, _ in lines} <= {"INFO"}


@on_sites
async def test_a_link_that_ends_at_once_is_not_made_in_a_hurry(sites):
    leader, follower, _ = await linked(sites)
    place, _ = sites.network.listening[leader.name]
    dialed = []

    async def refuse(link):
        dialed.append(link)
        link.close()

    sites.network.listening[leader.name] = (place, refuse)
    sites.network.cut(follower.name)
    await sites.pass_time(10)
    assert 8 <= len(dialed) <= 20


@on_sites
async def test_a_link_for_a_snapshot_is_served_and_no_follower(sites):
    leader, follower, _ = await linked(sites)

    async def serve(link, at_least):
        link.send("piece", b"%d" % at_least)
        link.send("piece", b"")

    leader.process.peers._serve_snapshot = serve
    link = await follower.process.peers.dial(leader.name)
    link.send("snapshot", 7)
    assert await link.receive() == ("piece", [b"7"])
    assert await link.receive() == ("piece", [b""])
    with pytest.raises(LinkError):
        await link.receive()
    assert leader.process.peers.followers[follower.number].link is not link.other


@on_sites
async def test_a_message_that_is_for_no_leader_ends_the_link(sites):
    leader, follower, _ = await linked(sites)
    link = await follower.process.peers.dial(leader.name)
    link.send("piece", b"")
    with pytest.raises(LinkError):
        await link.receive()
    assert leader.leads

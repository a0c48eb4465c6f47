"""A forwarded write is done exactly once, whatever happens to the leader and to the links.

Each course ends with what the client got, and how many times the value is in the log. Courses that
only a rule of forwarding/ keeps from doing a write twice are run again without that rule: then they
must fail, or they would prove nothing.
"""

import asyncio

import pytest

from kvd.core.replicated.leading import MAYBE_DONE
from kvd.replicas.engine import Trimmed
from kvd.replicas.forwarding import received
from kvd.replicas.forwarding.forwarding import UNKNOWN, Forwarding
from kvd.replicas.links import LinkError
from kvd.storage.format.event import Event
from kvd.v2.commands import Create, Delete, Set
from tests.support.sites import on_sites, refusal

A = Set(b"/a", b"once")


async def linked(sites):
    """The leader and two followers, which are linked to it."""
    leader = await sites.leader()
    await sites.pass_time(0.5)
    return leader, *(site for site in sites.all if site is not leader)


async def is_done_once(sites, done, value=b"once"):
    assert isinstance(await done, Event)
    await sites.pass_time(5)  # in which all would come that may come
    await sites.equal()
    assert [site.times(value) for site in sites.running] == [1] * len(sites.running)


@on_sites
async def test_the_leader_dies_before_the_append(sites):
    leader, follower, _ = await linked(sites)
    leader.faults.part()
    done = follower.submit(A)
    await sites.pass_time(0.5)
    await leader.kill()
    await is_done_once(sites, done)


@on_sites
async def test_the_leader_dies_in_the_append(sites):
    leader, follower, _ = await linked(sites)
    leader.faults.mute()
    done = follower.submit(A)
    await sites.pass_time(0.0)
    assert not done.done()
    await leader.kill()
    await is_done_once(sites, done)


async def dies_after_the_append(sites):
    """The leader is killed when its frame is in the log, and the follower has not applied it."""
    leader, follower, _ = await linked(sites)
    follower.lag = (2.0, 2.0)
    done = follower.submit(A)
    await sites.pass_time(0.5)
    assert leader.value(b"/a") == b"once"
    await leader.kill()
    await is_done_once(sites, done)


@on_sites
async def test_the_leader_dies_after_the_append(sites):
    await dies_after_the_append(sites)


@on_sites
async def test_without_the_settled_rule_a_write_is_done_twice(sites):
    async def hurry():
        """Have followers know the leader before the tail has come to it."""
        leadership = None
        while True:
            if sites.log.leadership != leadership:
                leadership = sites.log.leadership
                for site in sites.running:
                    if site.process.me != leadership.leader:
                        site.process.forwarding.on_leadership(leadership)
                        site.process.peers.on_leadership(leadership)
            await asyncio.sleep(0.01)

    hurrying = asyncio.create_task(hurry())
    with pytest.raises(AssertionError, match=r"\[2, 2\]"):
        await dies_after_the_append(sites)
    hurrying.cancel()


async def loses_its_links(sites, times=3):
    """The link ends again and again, and the append lasts for longer."""
    leader, follower, _ = await linked(sites)
    leader.faults.delay_s = (1.0, 1.0)
    done = [follower.submit(A), follower.submit(Delete(b"/none"))]
    for _ in range(times):
        await sites.pass_time(0.3)
        sites.network.cut(follower.name)
    await is_done_once(sites, done[0])
    assert refusal(await done[1]) == (100, b"/none")
    assert not leader.process.peers.followers[follower.number].link.is_closed


@on_sites
async def test_links_are_lost_before_the_append_has_ended(sites):
    await loses_its_links(sites)


@on_sites
async def test_without_the_counters_of_a_lead_a_write_is_done_twice(sites):
    class Forgetful(dict):
        def setdefault(self, key, default):
            self[key] = default
            return default

    for site in sites.all:
        site.process.forwarding._received._processes = Forgetful()
    leader = await sites.leader()
    leader.process.forwarding._received._processes = Forgetful()
    with pytest.raises(AssertionError, match=r"\[\d, \d, \d\]"):
        await loses_its_links(sites)


async def loses_a_refusal(sites):
    """The message of a refusal is lost with the link."""
    _, follower, _ = await linked(sites)
    done = follower.submit(Delete(b"/none"))
    sites.network.delay_s = (0.5, 0.5)
    await sites.pass_time(0.51)
    loop = asyncio.get_running_loop()
    began = loop.time()
    for side in [*sites.network.links]:
        side._in_flight.clear()
    sites.network.delay_s = (0.0, 0.0)
    sites.network.cut(follower.name)
    assert refusal(await done) == (100, b"/none")
    assert loop.time() < began + 1


@on_sites
async def test_a_refusal_that_was_lost_is_sent_again(sites):
    await loses_a_refusal(sites)


@on_sites
async def test_a_refusal_that_is_not_kept_is_a_timeout(sites):
    kept, received._KEPT_BYTES_MAX = received._KEPT_BYTES_MAX, -1
    try:
        with pytest.raises(AssertionError):
            await loses_a_refusal(sites)
    finally:
        received._KEPT_BYTES_MAX = kept


@on_sites
async def test_a_link_that_is_silent_is_made_again(sites):
    leader, follower, _ = await linked(sites)
    for side in [*sites.network.links]:
        if follower.name in (side.name, side.other.name):
            side.carry = lambda message: None  # the network swallows it
    done = follower.submit(A)
    await sites.pass_time(3.5)
    assert not done.done()
    await is_done_once(sites, done)
    assert leader.leads


async def thaws(sites, commands=50):
    """A leader is frozen, and its links, while its clients and followers go on writing."""
    leader, follower, other = await linked(sites)
    sites.network.part(leader.name)
    leader.faults.part()
    own = [leader.submit(Set(b"/own%d" % n, b"own%d" % n)) for n in range(commands)]
    held = [follower.submit(Set(b"/held%d" % n, b"held%d" % n)) for n in range(commands)]
    await sites.pass_time(5)
    assert other.leads or follower.leads
    assert all(future.done() for future in held)
    sites.network.heal(leader.name)
    leader.faults.heal()
    events = await asyncio.gather(*own, *held)
    assert all(isinstance(event, Event) for event in events)
    await sites.equal()
    for site in sites.all:
        values = [event.change.value for event in site.store.view.events(0)]
        for n in range(commands):
            assert values.count(b"own%d" % n) == values.count(b"held%d" % n) == 1


@on_sites
async def test_a_frozen_leader_thaws_with_a_full_queue(sites):
    await thaws(sites)


async def reads_an_old_buffer(sites):
    """What a follower has sent to a leader is read when that leads again, two leads later."""
    leader, follower, other = await linked(sites)
    leader.process.peers._ticking.cancel()  # it is frozen
    sites.network.part(leader.name)
    leader.faults.part()
    done = follower.submit(A)
    await sites.pass_time(5)
    assert isinstance(await done, Event)
    second = next(site for site in sites.all if site.leads and site is not leader)
    leader.faults.heal()
    await sites.pass_time(1)
    third = next(site for site in (follower, other) if site is not second)
    third.faults.part()  # so that it does not become the leader
    await second.kill()
    sites.log.revoke(sites.log.leadership.lead.lease)
    while not leader.leads:
        await sites.pass_time(0.1)
    sites.network.heal(leader.name)
    third.faults.heal()
    await sites.pass_time(1)
    await is_done_once(sites, done)


@on_sites
async def test_a_command_of_an_old_lead_is_not_done_in_a_later_one(sites):
    await reads_an_old_buffer(sites)


@on_sites
async def test_without_epochs_a_command_of_an_old_lead_is_done_again(sites):
    class Timeless(Forwarding):
        async def take_commands(self, link, epoch, items):
            await super().take_commands(link, self._received.epoch or epoch, items)

    for site in sites.all:
        site.process.forwarding.__class__ = Timeless
    with pytest.raises(AssertionError, match=r"\[2, 2\]"):
        await reads_an_old_buffer(sites)


async def refuses_stale(sites):
    """A deposed leader, which does not know it, refuses by a state that is not the last."""
    leader, follower, other = await linked(sites)
    leader.faults.delay_s = (0.4, 0.4)  # its tail tells it late
    sites.log.revoke(sites.log.leadership.lead.lease)
    while not (follower.leads or other.leads):
        await sites.pass_time(0.01)
    second = follower if follower.leads else other
    await second.submit(Set(b"/a", b"1"))
    assert leader.leads
    assert leader.value(b"/a") is None
    done = leader.submit(Delete(b"/a"))
    event = await done
    assert isinstance(event, Event)
    refused = await leader.submit(Delete(b"/a"))
    assert refusal(refused) == (100, b"/a")


@on_sites
async def test_no_refusal_is_stale(sites):
    await refuses_stale(sites)


@on_sites
async def test_without_the_confirmation_a_refusal_is_stale(sites):
    for site in sites.all:
        site.process.committer._flow._confirm = lambda done: done(None)
    with pytest.raises(AssertionError):
        await refuses_stale(sites)


@on_sites
async def test_a_snapshot_while_commands_wait_leaves_their_outcome_unknown(sites):
    leader, follower, _ = await linked(sites)
    follower.faults.part()
    done = follower.submit(A)
    while leader.value(b"/a") is None:
        await sites.pass_time(0.1)
    follower.process.forwarding.lost()
    assert refusal(await done) == (300, UNKNOWN)
    assert not follower.process.forwarding.pending


@on_sites
async def test_a_snapshot_leaves_alone_what_was_not_sent(sites):
    leader, follower, _ = await linked(sites)
    follower.faults.part()
    await leader.kill()
    await sites.pass_time(1)
    done = follower.submit(A)
    await sites.pass_time(0.1)
    follower.process.forwarding.lost()
    follower.faults.heal()
    await is_done_once(sites, done)


@on_sites
async def test_an_append_without_a_response_that_was_trimmed_is_not_sent_again(sites):
    leader, follower, other = await linked(sites)
    leader.faults.mute()
    done = leader.submit(A)
    await sites.pass_time(0.5)
    assert [site.times(b"once") for site in (leader, follower, other)] == [0, 1, 1]
    sites.log.revoke(sites.log.leadership.lead.lease)
    while not (follower.leads or other.leads):
        await sites.pass_time(0.01)
    await (follower if follower.leads else other).submit(Set(b"/b", b"2"))
    sites.log.trim(sites.log.head.seq)
    leader.faults.heal()
    assert refusal(await done) == (300, MAYBE_DONE)
    await asyncio.sleep(5)
    assert isinstance(leader.process.tasks[0].exception(), Trimmed)
    await leader.kill()
    await sites.equal()
    assert [site.times(b"once") for site in sites.running] == [1, 1]


@on_sites
async def test_without_room_here_what_came_out_of_the_log_waits_on(sites):
    leader, follower, _ = await linked(sites)
    full = True
    follow = follower.process.committer.follow

    async def refuse(payload, awaited):
        if not full:
            return await follow(payload, awaited)
        for rid in [*follower.process.forwarding._pending._table]:
            assert awaited.get(rid, None)
        return False

    follower.process.committer.follow = refuse
    done = follower.submit(A)
    await sites.pass_time(2)
    assert leader.value(b"/a") == b"once"
    assert not done.done()
    assert follower.process.forwarding.pending == 1
    full = False
    await is_done_once(sites, done)


@on_sites
async def test_a_message_of_another_version_brings_no_leader_down(sites):
    leader, follower, _ = await linked(sites)
    link = await follower.process.place.dial(leader.name)
    epoch = sites.log.epoch
    link.send("cmd", epoch, [[b"r" * 15 + b"\x01", [99, b"/a"]]])
    name, fields = await link.receive()
    assert (name, fields[3][0]) == ("no", 300)
    link.send("cmd", epoch, [[b"short", [1]]])
    with pytest.raises(LinkError):
        await link.receive()
    assert leader.leads
    assert isinstance(await follower.submit(Create(b"/a", b"")), Event)

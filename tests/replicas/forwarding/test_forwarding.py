"""Writes at a follower: decided by the leader, answered from the follower's own state."""

import asyncio

import pytest

from kvd.core.replicated.leading import MAYBE_DONE, NOT_SENT
from kvd.replicas.forwarding import pending
from kvd.replicas.forwarding.pending import TOO_MANY
from kvd.storage.format.event import Event
from kvd.v2.commands import (
    CompareAndSwap,
    Condition,
    Create,
    CreateInOrder,
    Delete,
    Set,
    Transaction,
)
from kvd.v2.documents.auth_commands import DeleteUser, PutUser
from kvd.v2.documents.decision import Reply
from kvd.v2.errors import ApiError, RouteError
from tests.support.sites import on_sites, refusal


async def follower_of(sites):
    """A follower that is linked to its leader, and the leader."""
    leader = await sites.leader()
    follower = next(site for site in sites.all if site is not leader)
    await sites.pass_time(0.5)
    return follower, leader


@on_sites
async def test_a_write_is_decided_by_the_leader_and_answered_here(sites):
    follower, leader = await follower_of(sites)
    event = await follower.submit(Set(b"/a", b"1"))
    assert isinstance(event, Event)
    assert event.change.value == follower.value(b"/a") == b"1"
    assert leader.seq == follower.seq
    second = await follower.submit(CreateInOrder(b"/q", b"2"))
    assert second.change.index == event.change.index + 1
    assert follower.process.forwarding.pending == follower.process.forwarding.pending_bytes == 0
    await sites.equal()


@on_sites
async def test_a_response_comes_when_the_own_state_has_it(sites):
    follower, leader = await follower_of(sites)
    follower.lag = (0.5, 0.5)
    loop = asyncio.get_running_loop()
    began = loop.time()
    done = follower.submit(Set(b"/a", b"1"))
    await sites.pass_time(0.4)
    assert leader.value(b"/a") == b"1"
    assert not done.done()
    await done
    assert follower.value(b"/a") == b"1"
    assert loop.time() >= began + 0.5


@on_sites
async def test_a_refusal_comes_when_the_own_state_has_what_it_was_decided_on(sites):
    follower, leader = await follower_of(sites)
    follower.lag = (0.5, 0.5)
    event = await leader.submit(Set(b"/a", b"1"))
    refused = follower.submit(Create(b"/a", b"2"))
    await sites.pass_time(0.3)
    assert not refused.done()
    outcome = await refused
    assert refusal(outcome) == (105, b"/a")
    assert outcome.index == event.change.index
    assert follower.value(b"/a") == b"1"


@on_sites
async def test_commands_of_one_client_keep_their_order(sites):
    follower, _ = await follower_of(sites)
    sites.network.delay_s = (0.0, 0.2)
    done = [follower.submit(CreateInOrder(b"/q", b"%d" % number)) for number in range(30)]
    done += [follower.submit(Set(b"/last", b"%d" % number)) for number in range(30)]
    events = await asyncio.gather(*done)
    assert [event.change.index for event in events] == sorted(e.change.index for e in events)
    assert follower.value(b"/last") == b"29"


@on_sites
async def test_transactions_and_users_are_forwarded(sites):
    follower, _ = await follower_of(sites)
    ops = (Set(b"/a", b"1"), Set(b"/b", b"2"))
    events = await follower.transact(Transaction(b"/a/b", (), ops))
    assert [event.change.key for event in events] == [b"/a", b"/b"]
    condition = (Condition(b"/a", value=b"1"),)
    assert await follower.transact(Transaction(b"/a", condition, ())) == []
    outcome = await follower.transact(Transaction(b"/a", (Condition(b"/a", value=b"2"),), ops))
    assert isinstance(outcome, ApiError)
    assert outcome.place == ("when", 0)
    reply = await follower.submit_document(PutUser("al", b"hash"))
    assert isinstance(reply, Reply)
    assert reply.status == 201
    again = await follower.submit_document(DeleteUser("bo"))
    assert isinstance(again, RouteError)
    assert again.args == (404, "auth: User bo does not exist")
    await sites.equal()


@on_sites
async def test_a_refusal_is_counted_where_the_client_is(sites):
    follower, _ = await follower_of(sites)
    await follower.submit(Delete(b"/none"))
    assert follower.process.stats.failed == {("DELETE", 404): 1}
    assert follower.process.stats.counts[Delete] == [0, 1]


@on_sites
async def test_a_write_waits_for_a_leader(sites):
    follower, leader = await follower_of(sites)
    leader.faults.part()
    sites.log.revoke(sites.log.leadership.lead.lease)
    for site in sites.all:
        site.faults.part()
    done = follower.submit(Set(b"/a", b"1"))
    await sites.pass_time(3)
    assert not done.done()
    for site in sites.all:
        site.faults.heal()
    assert isinstance(await done, Event)


@on_sites
async def test_a_write_ends_after_seven_seconds(sites):
    follower, _ = await follower_of(sites)
    loop = asyncio.get_running_loop()
    for site in sites.all:
        site.faults.part()
    began = loop.time()
    done = follower.submit(Set(b"/a", b"1"))
    document = follower.submit_document(PutUser("al", b"hash"))
    assert refusal(await done) == (300, NOT_SENT)
    assert loop.time() == pytest.approx(began + 7, abs=0.1)
    reply = await document
    assert reply.args == (500, "Internal Server Error")
    assert follower.process.stats.failed == {("PUT", 500): 1}
    assert not follower.process.forwarding.pending
    for site in sites.all:
        site.faults.heal()
    await sites.equal()


@on_sites
async def test_a_write_whose_leader_has_gone_says_so(sites):
    follower, leader = await follower_of(sites)
    leader.faults.part()
    sent = follower.submit(Set(b"/a", b"1"))
    await sites.pass_time(0.1)
    sites.log.is_full = True  # so that no other is elected
    await leader.kill()
    await sites.pass_time(0.5)
    unsent = follower.submit(Set(b"/a", b"2"))
    assert refusal(await sent) == (300, MAYBE_DONE)
    assert refusal(await unsent) == (300, NOT_SENT)


@on_sites
async def test_the_time_of_a_write_goes_on_where_its_replica_becomes_the_leader(sites):
    leader = await sites.leader()
    follower = sites.all[1]
    await sites.all[2].kill()
    follower.faults.part()
    await leader.kill()
    sites.log.revoke(sites.log.leadership.lead.lease)
    loop = asyncio.get_running_loop()
    began = loop.time()
    done = follower.submit(Set(b"/a", b"1"))
    document = follower.submit_document(PutUser("al", b"hash"))
    await sites.pass_time(5)
    follower.engine.append = lambda *_: asyncio.sleep(1000)
    follower.faults.heal()
    outcome = await done
    assert follower.leads
    assert loop.time() == pytest.approx(began + 7, abs=0.3)
    assert refusal(outcome) == (300, MAYBE_DONE)
    assert (await document).args == (500, "Internal Server Error")


@on_sites
async def test_the_time_of_a_write_goes_on_where_its_replica_loses_the_lead(sites):
    leader = await sites.leader()
    await sites.pass_time(0.5)
    loop = asyncio.get_running_loop()
    leader.faults.part()
    sites.network.part(leader.name)
    began = loop.time()
    document = leader.submit_document(PutUser("al", b"hash"))
    await sites.pass_time(1)
    done = leader.submit(Set(b"/a", b"1"))
    later = leader.submit(Set(b"/a", b"2"))
    await sites.pass_time(4)
    leader.faults.heal()  # now it learns that another leads, and cannot reach that
    assert (await document).args == (500, "Internal Server Error")
    assert loop.time() == pytest.approx(began + 7, abs=0.6)
    assert not done.done()
    assert refusal(await done)[0] == refusal(await later)[0] == 300
    assert loop.time() == pytest.approx(began + 8, abs=0.3)


@on_sites
async def test_what_waits_is_limited(sites):
    follower, _ = await follower_of(sites)
    for site in sites.all:
        site.faults.part()
    done = [follower.submit(Set(b"/a", b"1")) for _ in range(pending.COMMANDS_MAX + 1)]
    await sites.pass_time(1)
    assert [future.done() for future in done] == [False] * pending.COMMANDS_MAX + [True]
    assert refusal(done[-1].result()) == (300, TOO_MANY)
    document = follower.submit_document(PutUser("al", b"hash"))
    assert (await document).args == (500, "Internal Server Error")
    await asyncio.gather(*done)
    done = [follower.submit(Set(b"/a", b"v" * (pending.BYTES_MAX // 3))) for _ in range(3)]
    done.append(follower.submit(Set(b"/a", b"1")))
    await sites.pass_time(1)
    assert [future.done() for future in done] == [False, False, True, False]
    await asyncio.gather(*done)
    assert not follower.process.forwarding.pending_bytes


@on_sites
async def test_a_replica_that_stops_hands_its_clients_on(sites):
    follower, leader = await follower_of(sites)
    sites.network.delay_s = (0.01, 0.02)
    leader.faults.delay_s = (0.05, 0.1)
    done = [site.submit(Set(b"/%d" % n, b"1")) for n in range(20) for site in (leader, follower)]
    await leader.process.stop()
    leader.process = None
    assert all(isinstance(event, Event) for event in await asyncio.gather(*done))
    await sites.equal()


@on_sites
async def test_what_waits_when_a_replica_has_stopped_is_refused(sites):
    follower, leader = await follower_of(sites)
    leader.faults.part()
    done = follower.submit(CompareAndSwap(b"/a", b"1", None, 7))
    document = follower.submit_document(PutUser("al", b"hash"))
    await sites.pass_time(0.1)
    follower.process.forwarding.stop()
    assert refusal(await done) == (300, b"etcdserver: server stopped")
    assert (await document).args == (500, "Internal Server Error")
    late = follower.submit(Set(b"/a", b"1"))
    assert refusal(await late) == (300, b"etcdserver: server stopped")


@on_sites
async def test_an_answer_of_the_wrong_sort_is_none(sites):
    follower, leader = await follower_of(sites)
    leader.faults.part()
    done = follower.submit(Set(b"/a", b"1"))
    document = follower.submit_document(PutUser("al", b"hash"))
    await sites.pass_time(0.1)
    forwarding, epoch = follower.process.forwarding, sites.log.epoch
    rids = [rid for rid, _ in forwarding._pending.in_order()]
    for rid in rids:
        forwarding.take_answer("done", [epoch, rid, 0])
        forwarding.take_answer("no", [epoch - 1, rid, 0, [300, b"", 0, "", None]])
        forwarding.take_answer("notleader", [epoch, [rid, b"unknown", 7]])
    assert not done.done()
    assert not document.done()
    for rid in rids:
        forwarding._pending.find(rid).epoch = epoch
    forwarding.take_answer("no", [epoch, rids[0], 0, [0, 500, "no"]])
    forwarding.take_answer("no", [epoch, rids[1], 0, [300, b"no", 0, "", None]])
    assert refusal(await done) == (300, b"no")
    assert (await document).args == (500, "Internal Server Error")


@on_sites
async def test_a_command_for_a_lead_that_never_comes_ends_with_the_stop(sites):
    follower, leader = await follower_of(sites)
    link = await follower.process.place.dial(leader.name)
    link.send("cmd", sites.log.epoch + 100, [])
    await sites.pass_time(0.1)
    assert len(leader.process.place._tasks) == 3
    leader.process.forwarding.stop()
    await sites.pass_time(0.1)
    assert len(leader.process.place._tasks) == 2

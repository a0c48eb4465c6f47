"""kvd/replicas/replication.py: three servers with one store, in this process."""

import asyncio
import json
import shutil
from contextlib import suppress

import pytest

from kvd.core.replicated.leading import MAYBE_DONE
from kvd.replicas import replication
from kvd.replicas.entry import Detached
from kvd.replicas.replica import State
from kvd.storage.directory import replica_file
from tests.support.committing import on_a_loop
from tests.support.memory_engine import MemoryLog
from tests.support.replicas import serving
from tests.support.stores import digest, dump
from tests.support.waiting import until


def content(member):
    return dump(member.store)


async def equal(members):
    await members.level()
    first, *others = members.alive
    for other in others:
        assert content(other) == content(first)
        assert digest(other.store) == digest(first.store)


async def leads_at(member, term):
    """Wait for the first frame of a new leader."""
    await until(lambda: member.store.applied.term == term)


@on_a_loop
async def test_what_the_leader_has_written_is_read_and_watched_at_every_member(tmp_path):
    async with serving(tmp_path) as members:
        leader = await members.leader()
        follower = members.others[0]
        watch = asyncio.ensure_future(follower.get("/a", wait="true"))
        await until(lambda: follower.server.running.hub.count)
        status, _, body = await leader.put("/a", "1")
        assert status == 201
        assert (await watch)[2]["node"] == body["node"]
        await members.level()
        for member in members.all:
            status, _, read = await member.get("/a", quorum="true")
            assert (status, read["node"]) == (200, body["node"])
        assert {member.store.identity.cluster_id for member in members.all} == {
            members.log.meta.cluster_id
        }
        assert len({member.store.identity.member_id for member in members.all}) == 3
        await equal(members)


@on_a_loop
async def test_a_lead_that_is_handed_over_at_a_stop_loses_nothing(tmp_path):
    async with serving(tmp_path) as members:
        for number in range(3):
            leader = await members.leader()
            puts = [leader.put(f"/{number}/{n}", "v") for n in range(20)]
            answers = await asyncio.gather(*puts)
            assert {status for status, _, _ in answers} == {201}
            term = leader.store.applied.term
            await leader.stop()
            successor = await members.leader()
            await leads_at(successor, term + 1)
            await leader.start()
            await equal(members)


@on_a_loop
async def test_what_a_killed_leader_has_acknowledged_is_there(tmp_path):
    async with serving(tmp_path) as members:
        acknowledged = []

        async def write(member, number):
            try:
                status, _, _ = await member.put(f"/{number}", "v")
            except (OSError, ValueError):
                return  # the connection has ended
            if status == 201:
                acknowledged.append(f"/{number}")

        leader = await members.leader()
        tasks = [asyncio.ensure_future(write(leader, number)) for number in range(50)]
        await until(lambda: acknowledged)
        await leader.kill()
        await asyncio.gather(*tasks)
        members.log.revoke(members.log.leadership.lead.lease)
        successor = await members.leader()
        await members.level()
        for key in acknowledged:
            assert (await successor.get(key))[0] == 200
        await leader.start()
        await equal(members)


@on_a_loop
async def test_a_leader_that_is_cut_off_is_fenced_and_has_changed_nothing(tmp_path):
    async with serving(tmp_path) as members:
        old = await members.leader()
        assert (await old.put("/a", "1"))[0] == 201
        await members.level()
        old.faults.part()
        late = asyncio.ensure_future(old.put("/a", "2"))
        await until(lambda: old.server.running.committer.syncing_s)
        members.log.revoke(members.log.leadership.lead.lease)
        others = [member for member in members.all if member is not old]
        await until(lambda: any(member.state is State.LEADING for member in others))
        new = next(member for member in others if member.state is State.LEADING)
        assert (await new.put("/a", "3", prevValue="1"))[0] == 200
        # It does not know, and shows nothing of what is not in the log.
        assert (await old.get("/a"))[2]["node"]["value"] == "1"
        assert not late.done()
        old.faults.heal()
        await until(lambda: old.state is State.FOLLOWING)
        await members.level()
        # Nothing of it was written, so it was for the new leader to decide.
        status, _, body = await late
        assert (status, body["prevNode"]["value"]) == (200, "3")
        assert (await old.get("/a"))[2]["node"]["value"] == "2"
        await equal(members)


@on_a_loop
async def test_a_deposed_leader_refuses_nothing_by_an_old_state(tmp_path):
    async with serving(tmp_path) as members:
        old = await members.leader()
        await members.level()
        old.faults.part()
        members.log.revoke(members.log.leadership.lead.lease)
        others = [member for member in members.all if member is not old]
        await until(lambda: any(member.state is State.LEADING for member in others))
        new = next(member for member in others if member.state is State.LEADING)
        assert (await new.put("/a", "1"))[0] == 201
        refused = asyncio.ensure_future(old.request("DELETE", "/v2/keys/a", prevValue="9"))
        await until(lambda: old.server.running.committer.syncing_s)
        assert not refused.done()  # on its own state the key does not exist
        old.faults.heal()
        status, _, body = await refused
        assert (status, body["errorCode"], body["cause"]) == (412, 101, "[9 != 1]")
        await equal(members)


@on_a_loop
async def test_every_member_takes_writes_while_leaders_come_and_go(tmp_path):
    async with serving(tmp_path) as members:
        written = []
        is_over = False

        async def write(number):
            n = 0
            while not is_over:
                n += 1
                member = members.all[n % 3]
                key = f"/{number}/{n}"
                with suppress(OSError, ValueError, IndexError):  # it was stopped or killed
                    status, _, _ = await member.put(key, "v", prevExist="false")
                    assert status == 201
                    written.append(key)
                await asyncio.sleep(0)

        writers = [asyncio.ensure_future(write(number)) for number in range(6)]
        for step in range(4):
            leader = await members.leader()
            await enough(written)
            await (leader.kill() if step % 2 else leader.stop())
            await members.leader()
            await enough(written)
            await leader.start()
        is_over = True
        await asyncio.gather(*writers)
        await equal(members)
        state = members.alive[0].store.view
        assert written
        assert [key for key in written if state.find(key.encode()) is None] == []


@on_a_loop
async def test_one_that_the_log_was_trimmed_past_takes_a_snapshot(tmp_path):
    async with serving(tmp_path) as members:
        leader = await members.leader()
        away = members.others[0]
        await away.put("/before", "1")
        await away.stop()
        for number in range(5):
            assert (await leader.put(f"/{number}", "v", ttl=1000))[0] == 201
        members.log.trim(members.log.head.seq)
        identity = replica_file.read(away.path), away.path
        await away.start()
        await equal(members)
        assert (replica_file.read(away.path), away.path) == identity
        assert (await away.put("/after", "2"))[0] == 201
        await away.stop()
        shutil.rmtree(away.path)
        await away.start()
        await equal(members)
        assert (await away.get("/before", quorum="true"))[2]["node"]["value"] == "1"


@on_a_loop
async def test_a_log_that_the_engine_has_lost_is_not_made_again(tmp_path):
    async with serving(tmp_path) as members:
        await (await members.leader()).put("/a", "1")
        member = members.others[0]  # which may lack what the others have
        await member.stop()
        member.log = MemoryLog()
        with pytest.raises(Detached, match="gone"):
            await member.start()
        assert member.log.meta is None


@on_a_loop
async def test_a_start_that_waits_for_the_engine_can_be_interrupted(tmp_path):
    async with serving(tmp_path, count=1) as members:
        [member] = members.all
        assert (await member.put("/a", "1"))[0] == 201
        await member.stop()
        for is_new in (False, True):
            if is_new:
                shutil.rmtree(member.path)
            member.faults.part()
            starting = asyncio.ensure_future(member.start())
            await until(lambda: member.starting and member.starting._replication)
            await asyncio.sleep(0.05)
            assert not starting.done()
            member.starting.interrupt()
            with pytest.raises(asyncio.CancelledError):
                await starting
            member.faults.heal()
        await member.start()
        assert (await member.get("/a", quorum="true"))[2]["node"]["value"] == "1"


@on_a_loop
async def test_a_stop_does_not_wait_for_a_silent_engine(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replication, "STOP_S", 0.1)
        async with serving(tmp_path) as members:
            for ask in ("PUT", "DELETE"):
                leader = await members.leader()
                await members.level()
                leader.faults.part()
                waiting = asyncio.ensure_future(leader.request(ask, "/v2/keys/none", value="1"))
                await until(lambda: leads(members).server.running.committer.syncing_s)
                await leader.stop()
                status, _, body = await waiting
                assert (status, body["cause"]) == (500, MAYBE_DONE.decode())
                members.log.revoke(members.log.leadership.lead.lease)
                leader.faults.heal()
                await members.leader()
                await leader.start()
                await equal(members)


def leads(members):
    return members.leading[0]


@on_a_loop
async def test_members_register_and_one_that_is_removed_ends(tmp_path):
    async with serving(tmp_path) as members:
        leader = await members.leader()
        gone = members.others[0]
        await until(lambda: len(registered(leader)) == 3)
        assert {member["name"] for member in registered(leader)} == {"h1", "h2", "h3"}
        member_id = f"{gone.store.identity.member_id:x}"
        status, _, _ = await leader.request("DELETE", f"/v2/members/{member_id}")
        assert status == 204
        await until(lambda: gone.failures)
        [(error, status)] = gone.failures
        assert (str(error), status) == (
            f"{gone.path}: this replica was removed from the cluster",
            78,
        )
        await gone.kill()
        gone.failures.clear()
        assert (await leader.put("/a", "1"))[0] == 201
        await equal(members)


def registered(member):
    """The members in its state."""
    documents = [*member.store.view.documents()]
    return [json.loads(d.content) for d in documents if d.what == "member" and d.content]


async def enough(written):
    """Wait for some more writes."""
    before = len(written)
    await until(lambda: len(written) > before + 20)

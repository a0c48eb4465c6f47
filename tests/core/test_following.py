"""A second server that applies what the first has logged: the same state, the same events."""

import asyncio
import errno
from contextlib import asynccontextmanager, closing
from functools import partial
from random import Random

import pytest

from kvd.core.clock import Clock
from kvd.storage.errors import OtherHistory
from kvd.storage.format.payload import decode_with_rids
from kvd.storage.format.records import (
    ClockOffset,
    LoggedSetting,
    Term,
    UnknownRecord,
    encode_record,
)
from kvd.v2.commands import CompareAndSwap, Create, Delete, Set, Transaction
from tests.support.committing import (
    PATIENCE_S,
    Engine,
    Gate,
    SetClock,
    error,
    fail_writes,
    on_a_loop,
    put,
    received,
    refuse,
    remove,
    started,
    turns,
)
from tests.support.stores import NOW_NS, SECOND_NS, commit, digest, dump, open_store, random_command
from tests.support.waiting import until

WATCHED = (b"/", b"/a", b"/a/b", b"/b/c/a", b"/_h", b"/t/one")


class Watches:
    """What the watchers of an engine are told, and what its observers and statistics see."""

    def __init__(self, engine):
        self._engine = engine
        self._received = [engine.watch(key, stream=True) for key in WATCHED]
        self._received += [engine.watch(key, stream=True, recursive=True) for key in WATCHED]
        self.observed = []
        engine.observe = lambda events: self.observed.extend(event for event, _ in events)
        self.documents = []
        engine.committer.observe_documents(
            lambda: self.documents.append(engine.store.view.documents())
        )

    def seen(self):
        writes = {name: n for name, (n, _) in self._engine.stats.operations().items()}
        return (
            self._received,
            self.observed,
            self.documents,
            writes,
            self._engine.stats.expirations,
        )


@asynccontextmanager
async def both(tmp_path, clock=None):
    """A leader and one that follows it."""
    async with started(tmp_path / "leader") as leader:
        follower = Engine(open_store(tmp_path / "follower"), clock or SetClock(), may_decide=False)
        payloads = [frame.payload for frame in type(leader.store.wal).open(
            leader.store.directory.wal, leader.store.directory.quarantine,
            store_uuid=leader.store.identity.store_uuid, segment_bytes_max=1 << 16,
        ).scan()]  # fmt: skip
        for payload in payloads:
            assert await follower.committer.follow(payload)
        leader.logged.clear()
        try:
            yield leader, follower
        finally:
            follower.committer.stop()
            follower.sync.stop()
            follower.store.close()


async def follow(leader, follower):
    """Apply what the leader has logged since."""
    for payload in leader.logged:
        assert await asyncio.wait_for(follower.committer.follow(payload), PATIENCE_S)
    leader.logged.clear()


def log_records(engine, *records):
    """Log records that no command asks for, as a start does."""
    pending = engine.store.begin()
    for record in records:
        pending.apply(record, engine.clock.time_ns)
    encoded = [encode_record(record) for record in records]
    commit(engine.store, pending, encoded, engine.clock.time_ns)
    engine.logged.append(pending.payload)


def random_documents(dice):
    name = dice.choice(("al", "bo", "n" * 600))
    return dice.choice((put(name, b"%d" % dice.randint(0, 9)), put(name), remove(name), refuse))


@pytest.mark.parametrize("seed", range(4))
@on_a_loop
async def test_a_follower_holds_and_shows_what_its_leader_does(tmp_path, seed):
    dice = Random(seed)
    async with both(tmp_path) as (leader, follower):
        watches = [Watches(engine) for engine in (leader, follower)]
        for step in range(60):
            answers = leader.submit(*(random_command(dice) for _ in range(dice.randint(0, 4))))
            if dice.random() < 0.3:
                answers += leader.submit_documents(*(random_documents(dice) for _ in range(2)))
            if dice.random() < 0.2:
                ops = (Set(b"/t/one", b"%d" % step, ttl_s=dice.choice((None, 3))), Delete(b"/t/x"))
                done = asyncio.get_running_loop().create_future()
                leader.committer.transact(
                    Transaction(b"", (), ops[: 1 + step % 2]), done.set_result
                )
                answers.append(done)
            await asyncio.wait_for(asyncio.gather(*answers), PATIENCE_S)
            leader.clock.time_ns += dice.choice((1, SECOND_NS, 4 * SECOND_NS))
            if step == 30:
                await leader.committer.drain()
                log_records(leader, LoggedSetting("history_limit", 25), ClockOffset(SECOND_NS))
                leader.clock.offset_ns = SECOND_NS
            await leader.run(Delete(b"/none"))
            await leader.committer.drain()
            await follow(leader, follower)
            assert follower.store.applied.chain == leader.store.applied.chain
        await until(lambda: watches[0].seen() == watches[1].seen())
        assert leader.stats.expirations > 0
        assert watches[0].documents
        assert dump(follower.store) == dump(leader.store)
        assert digest(follower.store) == digest(leader.store)
        follower.clock.time_ns = leader.clock.time_ns
        assert not follower.committer.expiry_timer.is_overdue
        assert leader.failures == follower.failures == []


@on_a_loop
async def test_watches_below_a_removed_directory_get_its_event_from_the_follower(tmp_path):
    async with both(tmp_path) as (leader, follower):
        await leader.run(Set(b"/d/e/f", b"1", ttl_s=1))
        await follow(leader, follower)
        received = [engine.watch(b"/d/e/f") for engine in (leader, follower)]
        await leader.run(Delete(b"/d", recursive=True))
        await follow(leader, follower)
        await until(lambda: received[1])
        assert received[0] == received[1]


@on_a_loop
async def test_nothing_is_visible_at_a_follower_before_it_is_in_its_log(tmp_path, monkeypatch):
    async with both(tmp_path) as (leader, follower):
        await leader.run(Set(b"/a", b"1"))
        received = follower.watch(b"/a", stream=True)
        gate = Gate(monkeypatch)
        following = asyncio.ensure_future(follower.committer.follow(leader.logged[0]))
        await gate.reached()
        drained = asyncio.ensure_future(follower.committer.drain())
        await turns()
        assert (received, follower.value(b"/a"), drained.done()) == ([], None, False)
        gate.open()
        assert await asyncio.wait_for(following, PATIENCE_S)
        await asyncio.wait_for(drained, PATIENCE_S)
        assert follower.value(b"/a") == b"1"
        await until(lambda: received)


@on_a_loop
async def test_what_does_not_go_on_from_the_state_is_refused_and_changes_nothing(tmp_path):
    async with both(tmp_path) as (leader, follower), started(tmp_path / "other") as other:
        for number in range(3):
            await leader.run(Set(b"/a", b"%d" % number))
            await other.run(Set(b"/a", b"other"))
        first, second, third = leader.logged
        assert await follower.committer.follow(first)
        before = digest(follower.store)
        foreign = other.logged[-2]
        for payload in (first, third, foreign):
            with pytest.raises(OtherHistory, match="it belongs to another history"):
                await follower.committer.follow(payload)
        for payload in (b"", b"\xff", second[:-1], b"\x89\x18\x63" + second[2:]):
            with pytest.raises(UnknownRecord):
                await follower.committer.follow(payload)
        assert digest(follower.store) == before
        assert await follower.committer.follow(second)
        assert await follower.committer.follow(third)
        assert digest(follower.store) == digest(leader.store)


@on_a_loop
async def test_a_follower_without_room_applies_the_same_later(tmp_path, monkeypatch):
    async with both(tmp_path) as (leader, follower):
        await leader.run(Set(b"/a", b"1"))
        with monkeypatch.context() as patch:
            fail_writes(patch, "write_at", errno.ENOSPC)
            assert not await follower.committer.follow(leader.logged[0])
            assert follower.committer.no_room
            assert follower.value(b"/a") is None
        assert await follower.committer.follow(leader.logged[0])
        assert not follower.committer.no_room
        assert follower.value(b"/a") == b"1"
        assert follower.committer.responses.aborted == 0


@on_a_loop
async def test_a_follower_that_stops_waits_for_no_room(tmp_path, monkeypatch):
    async with both(tmp_path) as (leader, follower):
        await leader.run(Set(b"/a", b"1"))
        # As while the index has refused more than memory may hold.
        monkeypatch.setattr(follower.committer.flusher, "holds", True)
        monkeypatch.setattr(type(follower.store.state), "is_full", True)
        following = asyncio.ensure_future(follower.committer.follow(leader.logged[0]))
        await turns()
        follower.committer.stop()
        assert await asyncio.wait_for(following, PATIENCE_S) is False
        assert await follower.committer.follow(leader.logged[0]) is False
        assert follower.value(b"/a") is None


@on_a_loop
async def test_a_follower_goes_on_where_its_leader_ended_and_the_other_way_round(tmp_path):
    async with both(tmp_path) as (leader, follower):
        await leader.run(Set(b"/a", b"1", ttl_s=5), Set(b"/b", b"2"))
        leader.committer.close_gate()
        (waiting,) = leader.submit(Set(b"/late", b""))
        await leader.committer.drain()
        await follow(leader, follower)
        follower.logged.clear()
        follower.clock.time_ns = NOW_NS + 5 * SECOND_NS
        follower.committer.open_gate()
        await until(lambda: follower.value(b"/a") is None)
        (outcome,) = await follower.run(Set(b"/b", b"3"))
        assert outcome.change.index == 5
        await follow(follower, leader)
        assert leader.value(b"/b") == b"3"
        assert not waiting.done()
        assert digest(follower.store) == digest(leader.store)


@on_a_loop
async def test_the_time_of_a_leader_goes_on_from_that_of_the_one_before(tmp_path, caplog):
    up_ns = 5
    clock = Clock(raw_ns=lambda: up_ns, wall_ns=lambda: NOW_NS - 3600 * SECOND_NS + up_ns)
    async with both(tmp_path, clock) as (leader, follower):
        leader.clock.time_ns += SECOND_NS
        await leader.run(Set(b"/a", b"", ttl_s=2))
        await follow(leader, follower)
        follower.committer.open_gate()
        assert "3601.0 s behind the log" in caplog.text
        (outcome,) = await follower.run(Set(b"/b", b"", ttl_s=2))
        assert outcome.time_ns == leader.clock.time_ns
        up_ns += 2 * SECOND_NS - 1
        assert not follower.committer.expiry_timer.is_overdue
        up_ns += 1
        assert follower.committer.expiry_timer.is_overdue
        await follower.run(Delete(b"/none"))
        assert (follower.value(b"/a"), follower.value(b"/b")) == (None, None)


@on_a_loop
async def test_the_first_batch_of_a_new_leader_has_its_term(tmp_path):
    """What a start logs at once where it leads, another logs when its gate opens."""
    async with both(tmp_path) as (leader, follower):
        await leader.run(Set(b"/a", b"1"))
        leader.committer.close_gate()
        await follow(leader, follower)
        follower.logged.clear()
        assert follower.store.applied.term == 1
        follower.store.unlogged_start = (Term(2),)
        (outcome,) = await asyncio.wait_for(_opened_with(follower, Set(b"/a", b"2")), PATIENCE_S)
        assert outcome.change.index == 3
        assert follower.store.unlogged_start == ()
        await follow(follower, leader)
        assert leader.store.applied.term == follower.store.applied.term == 2
        assert digest(follower.store) == digest(leader.store)


async def _opened_with(engine, *commands):
    answers = engine.submit(*commands)
    engine.committer.open_gate()
    return await asyncio.gather(*answers)


def rids_of(payload):
    return decode_with_rids(payload)[1]


def event_rows(store):
    store.flush()
    with store.index.env.begin() as txn, txn.cursor(store.index.tables[b"events"]) as cursor:
        return [(key, bytes(row)) for key, row in cursor]


def forward(engine, command, rid, done):
    if isinstance(command, (Set, Create, Delete, CompareAndSwap, Transaction)):
        engine.committer.forward(command, done, rid)
    else:
        engine.committer.submit_document(command, done, rid)


@on_a_loop
async def test_what_was_forwarded_is_responded_to_where_it_came_from(tmp_path):
    """By the rids in the log: each once, with the event that its own member has applied."""
    async with both(tmp_path) as (leader, follower):
        await leader.run(Set(b"/x", b"0"), Set(b"/ends", b"", ttl_s=1))
        await follow(leader, follower)
        leader.clock.time_ns += SECOND_NS
        ops = Set(b"/t/1", b"1"), Set(b"/t/2", b"2")
        asked = {
            b"a" * 16: Set(b"/a", b"1"),
            b"b" * 16: CompareAndSwap(b"/x", b"1", b"0", 0),
            b"c" * 16: Transaction(b"", (), ops),
            b"d" * 16: put("al", b"1"),
            b"e" * 16: Create(b"/x", b""),
            b"f" * 16: refuse,
            b"g" * 16: Transaction(b"", (), ()),
        }
        at_leader, at_follower = {}, {}
        (own,) = leader.submit(Set(b"/own", b""))
        for rid, command in asked.items():
            forward(leader, command, rid, partial(at_leader.__setitem__, rid))
        await own
        await leader.committer.drain()
        # The leader reports what is not in the log: refusals, and what has changed nothing.
        assert error(at_leader[b"e" * 16])[0] == 105
        assert received(at_leader[b"f" * 16]) == (409, "no")
        assert at_leader[b"g" * 16] == []
        (payload,) = leader.logged
        assert [rid and rid[:1] for rid in rids_of(payload)] == [
            None, b"d", None, b"a", b"b", b"c", b"c"
        ]  # fmt: skip
        awaited = {
            rid: (command, partial(at_follower.setdefault(rid, []).append))
            for rid, command in asked.items()
        }
        assert await follower.committer.follow(payload, awaited)
        for letter in (b"a", b"b", b"c", b"d"):
            assert at_follower[letter * 16] == [at_leader[letter * 16]]
        assert [at_follower[letter * 16] for letter in (b"e", b"f", b"g")] == [[], [], []]
        assert [event.change.key for event in at_follower[b"c" * 16][0]] == [b"/t/1", b"/t/2"]
        assert received(at_follower[b"d" * 16][0]) == (200, b"")
        assert follower.stats.operations()["sets"] == leader.stats.operations()["sets"]
        assert digest(follower.store) == digest(leader.store)


@on_a_loop
async def test_the_history_is_the_same_with_rids_live_followed_and_replayed(tmp_path):
    async with both(tmp_path) as (leader, follower):
        for number in range(20):
            done = asyncio.get_running_loop().create_future()
            await leader.run(Set(b"/own", b"%d" % number))
            leader.committer.forward(Set(b"/a", b"%d" % number), done.set_result, b"%016d" % number)
            await done
        assert sum(rid is not None for payload in leader.logged for rid in rids_of(payload)) == 20
        await follow(leader, follower)
        rows = event_rows(leader.store)
        assert len(rows) >= 40
        assert event_rows(follower.store) == rows
    with closing(open_store(tmp_path / "follower", rebuild_index=True)) as replayed:
        assert event_rows(replayed) == rows


@on_a_loop
async def test_a_follower_without_room_responds_when_it_has_applied(tmp_path, monkeypatch):
    async with both(tmp_path) as (leader, follower):
        rid, answers = b"r" * 16, []
        leader.committer.forward(Set(b"/a", b"1"), lambda _: None, rid)
        await leader.committer.drain()
        awaited = {rid: (Set(b"/a", b"1"), answers.append)}
        with monkeypatch.context() as patch:
            fail_writes(patch, "write_at", errno.ENOSPC)
            assert not await follower.committer.follow(leader.logged[0], awaited)
        assert answers == []
        assert await follower.committer.follow(leader.logged[0], awaited)
        assert [answer.change.index for answer in answers] == [2]

"""The gate of the committer: while it is closed, nothing is decided and nothing is logged."""

import asyncio
import errno
from contextlib import asynccontextmanager

from kvd.storage.format.event import Event
from kvd.storage.format.records import Kind
from kvd.v2.commands import Create, Delete, Set, Transaction
from tests.support.committing import (
    PATIENCE_S,
    Engine,
    Gate,
    SetClock,
    fail_writes,
    on_a_loop,
    put,
    started,
    turns,
)
from tests.support.stores import NOW_NS, SECOND_NS, open_store
from tests.support.waiting import until


@asynccontextmanager
async def closed(path, clock=None):
    """An engine whose gate is closed from its beginning."""
    store = open_store(path)
    engine = Engine(store, clock or SetClock(), may_decide=False)
    try:
        yield engine
    finally:
        engine.committer.stop()
        engine.sync.stop()
        store.close()


async def idle(engine):
    """Let all come that comes without being waited for."""
    await turns()
    assert not engine.sync.waiting


@on_a_loop
async def test_behind_a_closed_gate_everything_waits_and_the_log_stays_as_it_is(tmp_path):
    path = tmp_path / "data"
    async with started(path) as engine:
        await engine.run(Set(b"/lease", b"", ttl_s=1), Set(b"/later", b"", ttl_s=3))
    clock = SetClock()
    clock.time_ns += SECOND_NS
    async with closed(path, clock) as engine:
        committer = engine.committer
        before, end = engine.store.applied, engine.store.wal.writer.tail
        await asyncio.wait_for(committer.settle(), PATIENCE_S)
        answers = engine.submit(Create(b"/lease", b"new"), Delete(b"/none"))
        answers += engine.submit_documents(put("al"))
        transacted = asyncio.get_running_loop().create_future()
        committer.transact(Transaction(b"", (), (Set(b"/t", b""),)), transacted.set_result)
        clock.offset_ns = SECOND_NS
        committer.look_at_clock()
        clock.time_ns += 2 * SECOND_NS
        assert committer.expiry_timer.is_overdue
        for _ in range(3):
            committer.tick()
            await idle(engine)
        await asyncio.wait_for(committer.drain(), PATIENCE_S)
        assert not any(answer.done() for answer in (*answers, transacted))
        assert committer.waiting == 4
        assert (engine.store.applied, engine.store.wal.writer.tail) == (before, end)

        committer.open_gate()
        await asyncio.wait_for(committer.drain(), PATIENCE_S)
        kinds = [(e.change.kind, e.change.key) for e in engine.store.view.events(before.index + 1)]
        assert kinds[:3] == [
            (Kind.EXPIRE, b"/lease"), (Kind.CREATE, b"/lease"), (Kind.SET, b"/t")
        ]  # fmt: skip
        assert all(answer.done() for answer in (*answers, transacted))
        assert engine.store.applied.clock_offset_ns == SECOND_NS
        await until(lambda: engine.value(b"/later") is None)
        end = engine.store.wal.writer.tail
        committer.tick()
        await until(lambda: engine.store.wal.writer.tail != end)  # a heartbeat


@on_a_loop
async def test_a_batch_under_way_ends_behind_the_gate_and_the_next_waits(tmp_path, monkeypatch):
    async with started(tmp_path / "data") as engine:
        gate = Gate(monkeypatch)
        (first,) = engine.submit(Set(b"/a", b"1"))
        await gate.reached()
        engine.committer.close_gate()
        (second,) = engine.submit(Set(b"/a", b"2"))
        drained = asyncio.ensure_future(engine.committer.drain())
        await turns()
        assert not drained.done()
        gate.open()
        await asyncio.wait_for(drained, PATIENCE_S)
        assert first.done()
        assert (engine.value(b"/a"), second.done()) == (b"1", False)
        commits = engine.commits
        engine.committer.open_gate()
        assert (await second).prev.value == b"1"
        assert engine.commits == commits + 1


@on_a_loop
async def test_a_gate_that_opens_again_begins_no_second_batch_beside_the_first(
    tmp_path, monkeypatch
):
    async with started(tmp_path / "data") as engine:
        gate = Gate(monkeypatch)
        answers = engine.submit(Set(b"/a", b"1"))
        await gate.reached()
        engine.committer.close_gate()
        engine.committer.open_gate()
        engine.committer.open_gate()
        answers += engine.submit(Set(b"/a", b"2"), Set(b"/b", b"3"))
        await turns()
        assert engine.store.applied.index == 1
        gate.open()
        await asyncio.wait_for(asyncio.gather(*answers), PATIENCE_S)
        assert engine.commits == 2
        assert engine.store.applied.index == 4


@on_a_loop
async def test_a_batch_that_was_due_does_not_begin_behind_the_gate(tmp_path):
    async with started(tmp_path / "data") as engine:
        (answer,) = engine.submit(Set(b"/a", b"1"))
        engine.committer.close_gate()
        await idle(engine)
        assert not answer.done()
        # Closed and open again within one turn: it begins once.
        engine.committer.open_gate()
        engine.committer.close_gate()
        engine.committer.open_gate()
        assert isinstance(await asyncio.wait_for(answer, PATIENCE_S), Event)
        await turns()
        assert engine.failures == []


@on_a_loop
async def test_no_heartbeat_follows_a_batch_behind_the_gate(tmp_path):
    async with started(tmp_path / "data") as engine:
        await engine.run(Set(b"/a", b"1"))
        engine.committer.close_gate()
        end = engine.store.wal.writer.tail
        for _ in range(3):
            engine.committer.tick()
            await idle(engine)
        assert engine.store.wal.writer.tail == end
        engine.committer.open_gate()
        await asyncio.wait_for(engine.committer.drain(), PATIENCE_S)
        engine.committer.tick()
        await until(lambda: engine.store.wal.writer.tail != end)


@on_a_loop
async def test_a_gate_that_closes_during_a_probe_for_room_stays_closed(tmp_path, monkeypatch):
    async with started(tmp_path / "data") as engine:
        with monkeypatch.context() as patch:
            fail_writes(patch, "write_at", errno.ENOSPC)
            await engine.run(Set(b"/a", b"1"))
        assert engine.committer.no_room
        gate = Gate(monkeypatch)
        (answer,) = engine.submit(Set(b"/a", b"2"))
        await gate.reached()  # the sync of the probe
        engine.committer.close_gate()
        gate.open()
        await asyncio.wait_for(engine.committer.drain(), PATIENCE_S)
        await idle(engine)
        assert not answer.done()
        engine.committer.open_gate()
        assert isinstance(await asyncio.wait_for(answer, PATIENCE_S), Event)


@on_a_loop
async def test_a_gate_stays_closed_after_a_stop(tmp_path):
    async with started(tmp_path / "data") as engine:
        engine.committer.stop()
        engine.committer.open_gate()
        (answer,) = engine.submit(Set(b"/a", b"1"))
        await turns()
        assert not answer.done()
        await asyncio.wait_for(engine.committer.drain(), PATIENCE_S)
        assert engine.store.applied.time_ns == NOW_NS


@on_a_loop
async def test_what_the_gate_holds_back_is_taken_by_its_receiver(tmp_path):
    async with closed(tmp_path / "data") as engine:
        committer = engine.committer
        taken = []
        committer.on_held = lambda: taken.append(committer.take_held())
        await turns()
        assert taken == []
        decide = put("al")
        answers = engine.submit(Set(b"/a", b"1"), Delete(b"/b"))
        answers += engine.submit_documents(decide)
        await turns()
        ((commands, documents),) = taken  # once, of all that came in one turn
        assert [(command, came) for command, _, came in commands] == [
            (Set(b"/a", b"1"), NOW_NS), (Delete(b"/b"), NOW_NS)
        ]  # fmt: skip
        assert [one for one, _ in documents] == [decide]
        assert committer.waiting == 0
        commands[0][1]("elsewhere")
        assert answers[0].result() == "elsewhere"
        committer.on_held = None
        engine.submit(Set(b"/c", b"3"))
        committer.open_gate()
        await asyncio.wait_for(committer.drain(), PATIENCE_S)
        assert (engine.value(b"/a"), engine.value(b"/c")) == (None, b"3")
        assert not any(answer.done() for answer in answers[1:])

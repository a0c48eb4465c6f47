"""Expiration in batches: its order, its timer, and what waits for room."""

import asyncio
import errno

from kvd.storage.format.event import Event
from kvd.storage.format.records import Kind
from kvd.v2.commands import Create, Delete, Set, Update
from tests.support.committing import (
    PATIENCE_S,
    Engine,
    SetClock,
    error,
    fail_writes,
    on_a_loop,
    started,
)
from tests.support.stores import SECOND_NS, open_store
from tests.support.waiting import until


@on_a_loop
async def test_what_has_expired_goes_first_in_a_batch_and_in_order(tmp_path):
    async with started(tmp_path / "data") as engine:
        await engine.run(
            Set(b"/c", b"3", ttl_s=3),
            Set(b"/a", b"1", ttl_s=1),
            Set(b"/b", b"2", ttl_s=2),
            Set(b"/later", b"", ttl_s=9),
        )
        received = engine.watch(b"/", recursive=True, stream=True)
        engine.clock.time_ns += 3 * SECOND_NS
        created, missing = await engine.run(Create(b"/a", b"new"), Update(b"/b", b""))
        assert created.change.index == 9
        assert error(missing) == (100, b"/b", 9)
        await until(lambda: len(received) == 4)
        expired = list(engine.store.view.events(6))[:3]
        assert [(e.change.kind, e.change.key) for e in expired] == [
            (Kind.EXPIRE, b"/a"), (Kind.EXPIRE, b"/b"), (Kind.EXPIRE, b"/c"),
        ]  # fmt: skip
        assert [event.prev.value for event in expired] == [b"1", b"2", b"3"]
        assert engine.value(b"/later") == b""
        assert b'"expireCount":3' in engine.stats.body(0)


@on_a_loop
async def test_nothing_expires_early(tmp_path):
    async with started(tmp_path / "data") as engine:
        await engine.run(Set(b"/a", b"", ttl_s=1))
        engine.clock.time_ns += SECOND_NS - 1
        await engine.run(Delete(b"/nothing"))
        assert engine.value(b"/a") == b""
        engine.clock.time_ns += 1
        await engine.run(Delete(b"/nothing"))
        assert engine.value(b"/a") is None


@on_a_loop
async def test_what_has_expired_goes_by_itself(tmp_path):
    async with started(tmp_path / "data") as engine:
        received = engine.watch(b"/a")
        await engine.run(Set(b"/b", b"", ttl_s=100), Set(b"/a", b"", ttl_s=0))
        await until(lambda: engine.value(b"/a") is None)
        assert engine.value(b"/b") == b""
        assert len(received) == 1


@on_a_loop
async def test_the_timer_follows_what_is_left(tmp_path):
    async with started(tmp_path / "data") as engine:
        await engine.run(Set(b"/a", b"", ttl_s=1), Set(b"/b", b"", ttl_s=2))
        engine.clock.time_ns += 2 * SECOND_NS - 20_000_000
        await engine.run(Set(b"/c", b"", ttl_s=0))  # takes /a along; of /b 20 ms are left
        await until(lambda: engine.value(b"/c") is None)
        assert engine.value(b"/a") is None
        assert engine.value(b"/b") == b""
        engine.clock.time_ns += 20_000_000
        await until(lambda: engine.value(b"/b") is None)


@on_a_loop
async def test_a_directory_that_expires_takes_its_children_along(tmp_path):
    async with started(tmp_path / "data") as engine:
        await engine.run(
            Create(b"/d", b"", dir=True, ttl_s=2),
            Set(b"/d/early", b"", ttl_s=1),
            Set(b"/d/same", b"", ttl_s=2),
            Set(b"/d/late", b"", ttl_s=3),
            Set(b"/d/x/y", b""),
        )
        received = engine.watch(b"/d/x/y")
        engine.clock.time_ns += 3 * SECOND_NS
        (outcome,) = await engine.run(Set(b"/after", b""))
        assert outcome.change.index == 9
        events = [(e.change.kind, e.change.key) for e in engine.store.view.events(7)]
        assert events == [
            (Kind.EXPIRE, b"/d/early"), (Kind.EXPIRE, b"/d"), (Kind.SET, b"/after"),
        ]  # fmt: skip
        await until(lambda: len(received) == 1)
        assert b'"action":"expire"' in received[0]
        assert b'"key":"/d"' in received[0]
        await until(lambda: not engine.store.state.has_garbage)
        assert engine.store.state.flushed().first_due_ns() is None


@on_a_loop
async def test_no_command_sees_what_has_ended_however_much_else_is_due(tmp_path):
    """Rows of what hangs below a removed directory do not use up a batch's share of expiries."""
    async with started(tmp_path / "data") as engine:
        await engine.run(*(Set(b"/gone/%04d" % i, b"", ttl_s=1) for i in range(3000)))
        await engine.run(Set(b"/k", b"", ttl_s=2))
        answer = asyncio.get_running_loop().create_future()

        def removed(_):
            # Before any of the rows could be freed.
            engine.clock.time_ns += 2 * SECOND_NS
            engine.committer.submit(Create(b"/k", b"new"), answer.set_result)

        engine.committer.submit(Delete(b"/gone", recursive=True), removed)
        outcome = await asyncio.wait_for(answer, PATIENCE_S)
        assert isinstance(outcome, Event)
        assert engine.value(b"/k") == b"new"


@on_a_loop
async def test_expiry_waits_for_room_and_comes_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr("kvd.core.batch.flow._RETRY_S", 0.005)
    async with started(tmp_path / "data") as engine:
        await engine.run(Set(b"/a", b"", ttl_s=1))
        engine.clock.time_ns += SECOND_NS - 20_000_000
        await engine.run(Set(b"/now", b"", ttl_s=0))
        await until(lambda: engine.value(b"/now") is None)  # and /a follows in 20 ms
        with monkeypatch.context() as patch:
            fail_writes(patch, "write_at", errno.ENOSPC)
            engine.clock.time_ns += 20_000_000
            (outcome,) = await engine.run(Set(b"/b", b""))
            assert error(outcome)[0] == 300
            assert engine.value(b"/a") == b""
        await until(lambda: engine.value(b"/a") is None)
        assert engine.store.applied.index == 5


@on_a_loop
async def test_what_ended_while_no_server_ran_is_gone_before_the_first_request(tmp_path):
    path = tmp_path / "data"
    async with started(path) as engine:
        await engine.run(*(Set(b"/d/%d" % i, b"", ttl_s=1 + i) for i in range(1500)))
    store = open_store(path)
    clock = SetClock()
    clock.time_ns += 1400 * SECOND_NS
    engine = Engine(store, clock)
    await asyncio.wait_for(engine.committer.settle(), PATIENCE_S)
    assert sorted(engine.names(b"/d")) == sorted(b"%d" % i for i in range(1400, 1500))
    assert engine.store.applied.index == 1501 + 1400
    engine.committer.stop()
    engine.sync.stop()
    store.close()


@on_a_loop
async def test_on_a_full_disk_a_start_does_not_wait_for_expiry(tmp_path, monkeypatch):
    path = tmp_path / "data"
    async with started(path) as engine:
        await engine.run(Set(b"/a", b"", ttl_s=1))
    store = open_store(path)
    clock = SetClock()
    clock.time_ns += SECOND_NS
    with monkeypatch.context() as patch:
        fail_writes(patch, "write_at", errno.ENOSPC)
        engine = Engine(store, clock)
        await asyncio.wait_for(engine.committer.settle(), PATIENCE_S)
    assert engine.value(b"/a") == b""
    engine.committer.stop()
    engine.sync.stop()
    store.close()

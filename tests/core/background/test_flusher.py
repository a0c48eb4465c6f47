"""kvd/core/background/flusher.py: large flushes run on a thread, without an effect on answers."""

import asyncio
import threading

import lmdb
import pytest

from kvd.v2.commands import Delete, Set
from tests.core.test_committer import PATIENCE_S, on_a_loop, started, turns
from tests.support.stores import SECOND_NS, digest, open_store
from tests.support.waiting import until

MUCH = b"v" * (5 << 20)


class Commit:
    """Holds the commits of the index, or has them fail."""

    def __init__(self, monkeypatch):
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.threads = set()
        self.errors = []
        monkeypatch.setattr("kvd.storage.index.flushing.reach_commit", self._reach)

    def _reach(self, _faults):
        self.threads.add(threading.current_thread().name)
        self.entered.set()
        assert self.open.wait(PATIENCE_S)
        if self.errors:
            raise self.errors.pop()

    async def reached(self):
        assert await asyncio.to_thread(self.entered.wait, PATIENCE_S)


@on_a_loop
async def test_reads_go_on_while_a_large_value_is_flushed(tmp_path, monkeypatch):
    path = tmp_path / "data"
    async with started(path, segment_bytes_max=32 << 20) as engine:
        await engine.run(Set(b"/d/a", b"1"), Set(b"/d/c", b"3"), Set(b"/gone/x", b""))
        engine.store.flush()
        commit = Commit(monkeypatch)
        commit.open.clear()
        (event,) = await engine.run(Set(b"/d/b", MUCH))
        await commit.reached()
        stored = engine.store.state.stored
        later = engine.submit(Delete(b"/gone", recursive=True), Set(b"/d/a", b"2"))
        await turns()
        assert engine.sync.waiting == 1
        engine.committer.tick()
        engine.store.proof.go_on(1.0)
        assert engine.value(b"/d/b") == MUCH
        assert engine.value(b"/d/a") == b"1"
        assert engine.names(b"/d") == [b"a", b"b", b"c"]
        with engine.store.long_view() as view:
            assert view.find(b"/d/b").value == MUCH
        assert [event.change.index for event in engine.store.view.events(2)] == [2, 3, 4, 5]
        passed = engine.store.state.events_back(5, [b"/d/"])
        assert [index for index, _ in passed] == [5, 4, 3, 2, 1][: event.change.index - 1]
        # It is on its way still, and what would change the state waits.
        assert engine.store.state.stored is stored
        assert not any(future.done() for future in later)
        commit.open.set()
        removed, last = await asyncio.wait_for(asyncio.gather(*later), PATIENCE_S)
        assert (removed.change.index, last.change.index) == (6, 7)
        assert "test-sync" in commit.threads
        await until(lambda: not engine.store.state.has_garbage)
        assert engine.names(b"/d") == [b"a", b"b", b"c"]
        assert engine.failures == []
        held = digest(engine.store)
    store = open_store(path, segment_bytes_max=32 << 20, rebuild_index=True)
    assert digest(store) == held
    store.close()


@on_a_loop
async def test_what_the_history_forgets_meanwhile_is_still_delivered(tmp_path, monkeypatch):
    async with started(tmp_path / "data", segment_bytes_max=32 << 20) as engine:
        engine.store.start_term(SECOND_NS, 1000, history_bytes_max=6 << 20)
        await engine.run(Set(b"/a", MUCH))
        await until(lambda: not engine.committer.flusher.holds)
        first = engine.store.applied.oldest_event
        committed = threading.Event()
        hold = threading.Event()
        write = engine.store.write_flush

        def write_and_wait():
            position = write()
            committed.set()
            assert hold.wait(PATIENCE_S)
            return position

        monkeypatch.setattr(engine.store, "write_flush", write_and_wait)
        (event,) = await engine.run(Set(b"/a", MUCH))
        assert await asyncio.to_thread(committed.wait, PATIENCE_S)
        # The index has it, and has forgotten what was before; the state says neither yet.
        assert engine.store.applied.oldest_event == first
        indexes = [event.change.index for event in engine.store.view.events(first)]
        assert indexes == [2, event.change.index]
        hold.set()
        await until(lambda: engine.store.applied.oldest_event == event.change.index)
        assert engine.failures == []


@on_a_loop
async def test_what_the_index_refuses_on_the_thread_is_tried_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("kvd.core.background.flusher._RETRY_S", 0.005)
    async with started(tmp_path / "data", segment_bytes_max=32 << 20) as engine:
        commit = Commit(monkeypatch)
        commit.errors = [lmdb.DiskError("no room"), lmdb.DiskError("no room")]
        await engine.run(Set(b"/a", MUCH))
        await until(lambda: engine.committer.flusher.waits)
        assert engine.names(b"/") == [b"a"]
        (event,) = await engine.run(Set(b"/b", b"1"))
        assert event.change.index == 3
        assert not engine.committer.flusher.waits
        assert [record.getMessage()[:30] for record in caplog.records] == [
            "changes wait in memory, the in", "the index has taken the change",
        ]  # fmt: skip
        assert engine.failures == []


@pytest.mark.parametrize("failure", [lmdb.CorruptedError("damaged"), ZeroDivisionError()])
@on_a_loop
async def test_damage_that_is_met_on_the_thread_is_fatal(tmp_path, monkeypatch, failure):
    async with started(tmp_path / "data", segment_bytes_max=32 << 20) as engine:
        commit = Commit(monkeypatch)
        commit.errors = [failure]
        await engine.run(Set(b"/a", MUCH))
        await asyncio.wait_for(engine.failed.wait(), PATIENCE_S)
        assert engine.failures == [failure]


@on_a_loop
async def test_a_stop_waits_for_a_flush_on_the_thread(tmp_path, monkeypatch):
    path = tmp_path / "data"
    async with started(path, segment_bytes_max=32 << 20) as engine:
        commit = Commit(monkeypatch)
        commit.open.clear()
        await engine.run(Set(b"/a", MUCH))
        await commit.reached()
        threading.Timer(0.05, commit.open.set).start()
    store = open_store(path, segment_bytes_max=32 << 20)
    assert store.view.find(b"/a").value == MUCH
    assert store.recovery.records == 0
    store.close()


@on_a_loop
async def test_a_flush_that_takes_long_makes_the_next_ones_smaller(tmp_path, monkeypatch):
    async with started(tmp_path / "data", segment_bytes_max=32 << 20) as engine:
        state, flush = engine.store.state, engine.store.flush
        now_s, took_s, flushed = 0.0, 1.0, []

        def thread_time():
            nonlocal now_s
            now_s += took_s
            return now_s

        def flush_counted(*, free=0):
            flushed.append(state.applied.pos - state.stored.pos)
            flush(free=free)

        monkeypatch.setattr("kvd.core.background.flusher.thread_time", thread_time)
        monkeypatch.setattr(engine.store, "flush", flush_counted)
        while len(flushed) < 5:
            await engine.run(*[Set(b"/a", b"")] * 64)
        assert flushed == [512, 256, 128, 64, 64]
        took_s = 0.0
        while len(flushed) < 10:
            await engine.run(*[Set(b"/a", b"")] * 64)
        assert flushed[5:] == [64, 128, 256, 512, 512]

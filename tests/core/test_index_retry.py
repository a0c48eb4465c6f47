"""Changes that the index refuses: they wait in memory, are served, and are tried again."""

import asyncio

import lmdb

from kvd.storage.store import Store
from kvd.v2.commands import Delete, Set
from tests.support.committing import (
    PATIENCE_S,
    Counting,
    error,
    files_end_at,
    on_a_loop,
    put,
    refuse_room,
    started,
    turns,
)
from tests.support.stores import SEGMENT, digest, open_store
from tests.support.waiting import until


@on_a_loop
async def test_what_the_index_refuses_waits_in_memory_and_is_served(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("kvd.core.background.flusher._RETRY_S", 0.005)
    monkeypatch.setattr("kvd.storage.index.state.FLUSH_RECORDS", 50)
    path = tmp_path / "data"
    async with started(path, store_class=Counting) as engine:
        # The log's segment is there already, so that only the index can be refused to grow.
        await engine.run(*(Set(b"/%d" % i, b"v" * 100) for i in range(300)))
        engine.store.flush()
        received = engine.watch(b"/", recursive=True, stream=True)
        index_bytes = (path / "index" / "data.mdb").stat().st_size
        assert index_bytes > SEGMENT
        more = [b"%03d" % i for i in range(198)]
        with files_end_at(index_bytes):
            outcomes = await engine.run(*(Set(b"/more/" + name, b"v" * 100) for name in more))
            assert [outcome.change.index for outcome in outcomes] == list(range(302, 500))
            await engine.run(Set(b"/0", b"later"), Delete(b"/1"))
            assert engine.committer.flusher.waits
            # Now it is too much, and the next batch waits.
            futures = engine.submit(Set(b"/0", b"last"), Delete(b"/nothing"))
            for _ in range(3):
                attempt = engine.store.attempts
                await until(lambda attempt=attempt: engine.store.attempts > attempt)
            assert not any(future.done() for future in futures)
            # Nodes and listings are what was answered, and so is the history.
            assert (engine.value(b"/0"), engine.value(b"/1")) == (b"later", None)
            assert engine.names(b"/more") == more
            with engine.store.long_view() as view:
                assert [name for name, _ in view.children(view.find(b"/more").dir_id)] == more
            assert [event.change.index for event in engine.store.view.events(300)] == [
                *range(300, 502)
            ]
            await until(lambda: len(received) == 200)
        last, missing = await asyncio.wait_for(asyncio.gather(*futures), PATIENCE_S)
        assert (last.change.index, last.prev.value) == (502, b"later")
        assert error(missing) == (100, b"/nothing", 502)
        # One line when it begins and one when it ends, however often it was tried.
        assert [record.getMessage()[:30] for record in caplog.records] == [
            "changes wait in memory, the in", "the index has taken the change",
        ]  # fmt: skip
        assert not engine.committer.flusher.waits
        assert engine.failures == []
        held = digest(engine.store)
    store = open_store(path, rebuild_index=True)
    assert digest(store) == held
    store.close()


class Panicking(Store):
    """A store whose index cannot be written to any more."""

    panics = False

    def flush(self, *, free=0):
        if self.panics:
            raise lmdb.PanicError("the index has panicked")
        super().flush(free=free)


@on_a_loop
async def test_an_index_that_never_takes_it_is_fatal(tmp_path):
    path = tmp_path / "data"
    async with started(path, store_class=Panicking) as engine:
        engine.store.panics = True
        await engine.run(Set(b"/a", b"1"))
        engine.committer.tick()
        assert [type(failure) for failure in engine.failures] == [lmdb.PanicError]
        engine.store.panics = False
    # What was answered is there after the next start.
    store = open_store(path)
    assert store.view.find(b"/a").value == b"1"
    store.close()


@on_a_loop
async def test_a_full_map_refuses_what_is_too_much_to_wait_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("kvd.storage.index.environment._MAP_BYTES", 1 << 20)
    async with started(tmp_path / "data", segment_bytes_max=8 << 20) as engine:
        for key, value in ((b"/0", b"v" * (2 << 20)), (b"/a", b"1"), (b"/1", b"v" * (2 << 20))):
            await engine.run(Set(key, value))
        assert engine.committer.flusher.waits
        before = engine.store.applied
        outcomes = await engine.run(Set(b"/a", b"2"), Delete(b"/nothing"))
        assert [error(outcome)[::2] for outcome in outcomes] == [(300, 0)] * 2
        (reply,) = await asyncio.gather(*engine.submit_documents(put("al")))
        assert reply.status == 500
        assert engine.store.applied == before
        assert engine.value(b"/a") == b"1"
        assert engine.value(b"/1") == b"v" * (2 << 20)
        assert engine.failures == []


class Unfree(Store):
    """A store whose index has no room for a while."""

    full = False

    def flush(self, *, free=0):
        if self.full:
            raise lmdb.DiskError("no room")
        super().flush(free=free)


@on_a_loop
async def test_what_cannot_be_freed_now_is_freed_later(tmp_path, monkeypatch):
    monkeypatch.setattr("kvd.core.background.flusher._RETRY_S", 0.005)
    async with started(tmp_path / "data", store_class=Unfree) as engine:
        await engine.run(*(Set(b"/d/%d" % i, b"") for i in range(900)))
        await engine.run(*(Set(b"/e/%d" % i, b"") for i in range(900)))
        monkeypatch.setattr(engine.store, "probe_index", refuse_room)
        engine.store.full = True
        await engine.run(Delete(b"/d", recursive=True), Delete(b"/e", recursive=True))
        await turns()
        assert engine.store.state.has_garbage
        assert engine.failures == []
        engine.store.full = False
        await engine.run(Set(b"/a", b"1"))
        await until(lambda: not engine.committer.flusher.waits)
        engine.committer.tick()
        await until(lambda: not engine.store.state.has_garbage)
        assert engine.value(b"/a") == b"1"
        assert engine.failures == []

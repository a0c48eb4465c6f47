"""Documents, such as users and members: committed together with keys, or refused and unchanged."""

import asyncio
import errno

import pytest

from kvd.v2.commands import Set
from kvd.v2.errors import ApiError, RouteError
from tests.support.committing import (
    PATIENCE_S,
    Counting,
    Gate,
    error,
    fail_writes,
    files_end_at,
    on_a_loop,
    put,
    received,
    refuse,
    remove,
    started,
    turns,
)
from tests.support.stores import SECOND_NS, SEGMENT, digest, open_store
from tests.support.waiting import until


@on_a_loop
async def test_no_response_leaves_before_a_document_is_durable_and_visible(tmp_path, monkeypatch):
    async with started(tmp_path / "data") as engine:
        seen = []
        engine.committer.observe_documents(lambda: seen.append(engine.content("al")))
        index, pos = engine.store.applied.index, engine.store.applied.pos
        gate = Gate(monkeypatch)
        futures = engine.submit_documents(put("al", b"1"), refuse, put("al", b"2"))
        await gate.reached()
        await turns()
        assert not any(future.done() for future in futures)
        assert (engine.content("al"), seen) == (None, [])
        gate.open()
        outcomes = await asyncio.gather(*futures)
        # Each has seen what the one before it decided.
        assert [received(outcome) for outcome in outcomes] == [(200, b""), (409, "no"), (200, b"1")]
        assert (engine.content("al"), seen) == (b"2", [b"2"])
        assert (engine.store.applied.index, engine.store.applied.pos) == (index, pos + 2)
        held = digest(engine.store)
    store = open_store(tmp_path / "data", rebuild_index=True)
    assert digest(store) == held
    store.close()


@on_a_loop
async def test_what_is_refused_changes_nothing_and_asks_nothing_of_the_disk(tmp_path, monkeypatch):
    async with started(tmp_path / "data") as engine:
        engine.committer.observe_documents(lambda: pytest.fail("nothing has changed"))
        with monkeypatch.context() as patch:
            fail_writes(patch, "write_at", errno.EIO)
            (future,) = engine.submit_documents(refuse)
            assert received(await future) == (409, "no")
        assert engine.failures == []


@on_a_loop
async def test_documents_and_keys_share_a_batch(tmp_path):
    async with started(tmp_path / "data") as engine:
        commits = engine.commits
        futures = [*engine.submit(Set(b"/a", b"1")), *engine.submit_documents(put("al"))]
        await asyncio.gather(*futures, *engine.submit(Set(b"/a", b"2")))
        assert engine.commits == commits + 1
        assert (engine.value(b"/a"), engine.content("al")) == (b"2", b"{}")


@pytest.mark.parametrize("segment_bytes_max", [SEGMENT, 8 << 20], ids=["64 KiB", "8 MiB"])
@on_a_loop
async def test_documents_never_outgrow_a_frame(tmp_path, segment_bytes_max):
    async with started(tmp_path / "data", segment_bytes_max=segment_bytes_max) as engine:
        size = segment_bytes_max // 9
        futures = engine.submit_documents(*(put(f"{i}", b"d" * size) for i in range(20)))
        futures += engine.submit(*(Set(b"/%d" % i, b"v" * size) for i in range(20)))
        futures += engine.submit_documents(put("large", b"d" * segment_bytes_max))
        outcomes = await asyncio.wait_for(asyncio.gather(*futures), PATIENCE_S)
        assert received(outcomes.pop()) == (413, "too large for the log")
        assert not any(isinstance(outcome, RouteError | ApiError) for outcome in outcomes)
        assert len(engine.store.view.documents("user")) == 20
        assert engine.content("large") is None
        assert engine.failures == []


@on_a_loop
async def test_documents_wait_for_what_expires_and_fit_behind_it(tmp_path):
    async with started(tmp_path / "data") as engine:
        key = b"/" + b"k" * 470
        await engine.run(*(Set(key + b"%d" % i, b"", ttl_s=1) for i in range(120)))
        engine.clock.time_ns += 2 * SECOND_NS
        futures = engine.submit_documents(*(put(f"{i}", b"d" * 20_000) for i in range(3)))
        await asyncio.wait_for(asyncio.gather(*futures), PATIENCE_S)
        assert engine.store.state.flushed().first_due_ns() is None
        assert engine.failures == []


@on_a_loop
async def test_a_full_log_refuses_documents_but_takes_their_removal(tmp_path, monkeypatch):
    async with started(tmp_path / "data") as engine:
        await asyncio.gather(*engine.submit_documents(put("al"), put("bo")))
        before = engine.store.applied
        with monkeypatch.context() as patch:
            fail_writes(patch, "write_at", errno.ENOSPC)
            no_room = (500, "no space left on device (wal)")
            (future,) = engine.submit_documents(put("al", b"other"))
            assert received(await future) == no_room  # its batch was aborted
            (future,) = engine.submit_documents(put("al", b"other"))
            assert received(await future) == no_room
            assert engine.content("al") == b"{}"
            assert engine.store.applied == before
        monkeypatch.setattr(type(engine.store), "is_low_on_space", lambda _: True)
        engine.committer.tick()
        futures = engine.submit_documents(put("al", b"other"), remove("bo"))
        refused, removed = await asyncio.gather(*futures)
        assert received(refused)[0] == 500
        assert received(removed) == (200, b"")
        assert (engine.content("al"), engine.content("bo")) == (b"{}", None)


@on_a_loop
async def test_documents_that_the_index_refuses_wait_in_memory(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("kvd.core.background.flusher._RETRY_S", 0.005)
    path = tmp_path / "data"
    async with started(path, store_class=Counting) as engine:
        await asyncio.gather(*engine.submit_documents(put("old"), put("gone")))
        await engine.run(*(Set(b"/%d" % i, b"v" * 100) for i in range(300)))
        engine.store.flush()
        with files_end_at((path / "index" / "data.mdb").stat().st_size):
            futures = engine.submit_documents(
                *(put(f"{i}", b"d" * 500) for i in range(50)), remove("gone")
            )
            outcomes = await asyncio.wait_for(asyncio.gather(*futures), PATIENCE_S)
            assert {received(outcome) for outcome in outcomes} == {(200, b"")}
            engine.committer.tick()
            assert engine.committer.flusher.waits
            assert engine.content("1") == b"d" * 500
            names = [document.name for document in engine.store.view.documents("user")]
            assert names == sorted([*(str(i) for i in range(50)), "old"])
        await until(lambda: not engine.committer.flusher.waits)
        assert len(engine.store.view.documents("user")) == 51
        held = digest(engine.store)
    assert len(caplog.records) == 2
    store = open_store(path, rebuild_index=True)
    assert digest(store) == held
    store.close()


@on_a_loop
async def test_draining_waits_for_documents_and_after_a_stop_they_are_refused(tmp_path):
    async with started(tmp_path / "data") as engine:
        (future,) = engine.submit_documents(put("al"))
        await asyncio.wait_for(engine.committer.drain(), PATIENCE_S)
        assert future.done()
        engine.committer.stop()
        (future,) = engine.submit_documents(put("bo"))
        assert received(await future) == (500, "the server has stopped")


@on_a_loop
async def test_a_stop_right_after_a_refusal_leaves_nothing_to_do(tmp_path, monkeypatch):
    """An expiry that was refused tries again later, but not on a store that is closed."""
    monkeypatch.setattr("kvd.core.batch.flow._RETRY_S", 0.1)
    errors = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context))
    async with started(tmp_path / "data") as engine:
        with monkeypatch.context() as patch:
            fail_writes(patch, "write_at", errno.ENOSPC)
            (refused,) = await engine.run(Set(b"/a", b"1"))
        assert error(refused)[0] == 300
        again = loop.time() + 0.1
    await until(lambda: loop.time() > again)
    await turns()
    assert errors == []

"""Appends to the log, synced by the kernel or by a thread: the order of batches, and failures."""

import asyncio
import errno
import os

import pytest

from bench.cost.in_process import Inside
from bench.load.wire import is_complete, render
from kvd.core import log_writer
from kvd.http.sending import status_lines
from kvd.storage.errors import LogFull
from kvd.storage.format.frame import Position
from tests.support.committing import on_a_loop
from tests.support.held_sync import BOTH_WAYS, Log, a_log, can_be_read, values
from tests.support.kernel_sync import BY_EITHER, needs_the_kernel
from tests.support.server import PATIENCE_S
from tests.support.stores import SEGMENT, open_store


@BOTH_WAYS
@on_a_loop
async def test_batches_stand_in_the_log_in_order(tmp_path, thread_only):
    """Through several segments: some frames fit the one that is there, some begin the next."""
    sent = [b"%d" % i * (1 + i * 37 % 9000) for i in range(60)]
    async with a_log(tmp_path / "data", thread_only=thread_only) as log:
        ends = [await log.append(value) for value in sent]
        assert log.store.wal.position == ends[-1]
    assert ends == sorted(ends)
    assert ends[-1].segment - ends[0].segment > 1
    assert values(tmp_path / "data") == sent


@needs_the_kernel
@on_a_loop
async def test_a_batch_is_on_its_way_while_the_loop_goes_on(tmp_path, held):
    async with a_log(tmp_path / "data", thread_only=False) as log:
        await log.append(b"first")  # the thread begins the segment
        txn, received = log.begin(b"second")
        for _ in range(20):
            await asyncio.sleep(0)
        assert not received.done()
        assert log.store.wal.position.seq == log.store.applied.position.seq
        held.end()
        log.store.state.merge(txn, await asyncio.wait_for(received, PATIENCE_S))
        assert log.store.applied.index == 3


@needs_the_kernel
@on_a_loop
async def test_a_short_sync_is_waited_for(tmp_path, held):
    async with a_log(tmp_path / "data", thread_only=False) as log:
        await log.append(b"first")
        for number in range(100):
            held.end()
            txn, received = log.begin(b"%d" % number)
            assert received.done()
            log.store.state.merge(txn, received.result())
            await asyncio.sleep(0)  # the loop finds nothing else to tell
        assert held.waits == [0] * 100
    assert values(tmp_path / "data")[1:] == [b"%d" % number for number in range(100)]


@needs_the_kernel
@on_a_loop
async def test_long_syncs_are_hardly_waited_for_until_they_are_short_again(tmp_path, held):
    # In a segment so large that the thread need not prepare the next one.
    options = {"thread_only": False, "segment_bytes_max": 1 << 20}
    async with a_log(tmp_path / "data", **options) as log:
        await log.append(b"first")
        for number in range(200):
            txn, received = log.begin(b"%d" % number)
            assert not received.done()
            held.end()
            log.store.state.merge(txn, await asyncio.wait_for(received, PATIENCE_S))
        assert held.waits == [None] * 8
        for number in range(100):
            held.end()
            txn, received = log.begin(b"%d" % number)
            log.store.state.merge(txn, await asyncio.wait_for(received, PATIENCE_S))
        assert held.waits[:8] == [None] * 8
        assert len(held.waits) > 40
        assert not any(held.waits[8:])


@needs_the_kernel
@on_a_loop
async def test_the_loop_watches_for_the_ends_of_syncs_only_while_some_are_long(tmp_path, held):
    loop = asyncio.get_running_loop()
    options = {"thread_only": False, "segment_bytes_max": 1 << 20}
    async with a_log(tmp_path / "data", **options) as log:
        await log.append(b"first")
        for number in range(3):
            txn, received = log.begin(b"long %d" % number)
            assert not received.done()
            held.end()
            log.store.state.merge(txn, await asyncio.wait_for(received, PATIENCE_S))
            for short in range(100):
                held.end()
                txn, received = log.begin(b"short %d" % short)
                log.store.state.merge(txn, await asyncio.wait_for(received, PATIENCE_S))
            assert not loop.remove_reader(held.fileno)  # it was removed
        txn, received = log.begin(b"last")
        held.end()
        log.store.state.merge(txn, await asyncio.wait_for(received, PATIENCE_S))
        assert loop.remove_reader(held.fileno)


@needs_the_kernel
@pytest.mark.parametrize("served", [0, 1], ids=["found", "not found"])
@on_a_loop
async def test_while_clients_read_each_sync_is_waited_for_but_briefly(tmp_path, held, served):
    async with a_log(tmp_path / "data", thread_only=False) as log:
        await log.append(b"first")
        for number in range(100):
            log.reads[served] += 1
            if number % 2:
                held.end()
            txn, received = log.begin(b"%d" % number)
            assert received.done() == bool(number % 2)
            if not number % 2:
                held.end()
            log.store.state.merge(txn, await asyncio.wait_for(received, PATIENCE_S))
        assert held.brief_waits == [None, 0] * 50
        assert held.waits == []
        held.end()
        _, received = log.begin(b"nobody reads")
        assert held.waits == [0]
        await received


@needs_the_kernel
@pytest.mark.parametrize("short", [0, 2, 3], ids=["never", "each second", "each third"])
def test_a_read_is_answered_whatever_the_sync_of_a_write_takes(tmp_path, held, short):
    """Also where the syncs before it were short."""
    get, put = render("GET", "/v2/keys/k"), render("PUT", "/v2/keys/k", b"value=v")
    with Inside(tmp_path / "data", connections=2) as kvd:
        for number in range(100):
            held.submitted.clear()
            if number == 0 or (short and number % short == 0):
                held.end()
                kvd.exchange(0, put)
                kvd.exchange(1, get)
                if not held.submitted.is_set():  # a heartbeat was under way: the thread did it
                    held.take_back()
                continue
            kvd.sockets[0].sendall(put)
            while not (held.submitted.wait(0.01) or can_be_read(kvd.sockets[0])):
                pass
            kvd.exchange(1, get)
            if held.submitted.is_set():
                assert not can_be_read(kvd.sockets[0])
                held.end()
            kvd.receive(0)
    assert None in held.brief_waits
    assert len(held.waits) <= 1  # there was a read before each write but the first


@needs_the_kernel
def test_what_is_rendered_during_a_sync_is_shown_only_behind_it(tmp_path, held):
    get, put = render("GET", "/v2/keys/k"), "/v2/keys/k"
    with Inside(tmp_path / "data", connections=2) as kvd:
        held.end()
        kvd.exchange(0, render("PUT", put, b"value=old"))
        kvd.exchange(1, get)
        for request in (render("PUT", put, b"value=new"), render("DELETE", put)):
            before = kvd.exchange(1, get).body
            held.submitted.clear()
            kvd.sockets[0].sendall(request)
            assert held.submitted.wait(PATIENCE_S)
            # The loop answers reads: it has rendered what it renders, and holds it back.
            for _ in range(3):
                assert kvd.exchange(1, get).body == before
            assert not can_be_read(kvd.sockets[0])
            held.end()
            assert b'"prevNode":' in kvd.receive(0).body
            kvd.sockets[1].sendall(get)
            after = kvd.receive_until(1, lambda data: b"\r\n\r\n" in data)
            assert before not in after
        assert b" 404 " in after


@needs_the_kernel
def test_a_response_has_the_date_of_its_sending(tmp_path, held, monkeypatch):
    """Not that of its rendering, which is before the sync."""
    now = "the second of the rendering"
    monkeypatch.setattr(status_lines, "formatdate", lambda **_: now)
    with Inside(tmp_path / "data", connections=2) as kvd:
        # The first write: no heartbeat is due.
        kvd.sockets[0].sendall(render("PUT", "/v2/keys/k", b"value=v"))
        assert held.submitted.wait(PATIENCE_S)
        kvd.exchange(1, render("GET", "/v2/keys"))  # the loop has rendered what it renders
        now = "the second of the sending"
        kvd._loop.call_soon_threadsafe(kvd._server.running.http.tick)
        held.end()
        response = kvd.receive_until(0, is_complete)
    assert b"Date: the second of the sending\r\n" in response


@needs_the_kernel
@on_a_loop
async def test_what_the_thread_does_to_the_log_comes_first(tmp_path):
    async with a_log(tmp_path / "data", thread_only=False) as log:
        first = await log.append(b"first")
        beaten = asyncio.get_running_loop().create_future()
        log.sync.run(log.store.heartbeat, beaten.set_result)
        after = await log.append(b"second")
        await asyncio.wait_for(beaten, PATIENCE_S)
        assert after.seq == first.seq + 2
    assert values(tmp_path / "data") == [b"first", b"second"]


@needs_the_kernel
@on_a_loop
async def test_the_next_segment_is_prepared_ahead_of_time(tmp_path):
    async with a_log(tmp_path / "data", thread_only=False) as log:
        await log.append(b"x" * (SEGMENT // 2))
        spare = tmp_path / "data" / "wal" / "next.tmp"
        while not spare.exists():
            await log.append(b"y")
        assert log.store.wal.position.segment == 1


@BY_EITHER
@on_a_loop
async def test_a_sync_that_the_kernel_does_not_take_is_made_by_the_thread(
    tmp_path, monkeypatch, kind
):
    monkeypatch.setattr(log_writer, "data_sync", kind)
    async with a_log(tmp_path / "data", thread_only=False) as log:
        await log.append(b"first")
        with monkeypatch.context() as patch:
            patch.setattr(kind, "submit", failing(errno.EAGAIN))
            assert isinstance(await log.append(b"second"), Position)
        assert isinstance(await log.append(b"third"), Position)
    assert values(tmp_path / "data") == [b"first", b"second", b"third"]


@BY_EITHER
@pytest.mark.parametrize("found", ["wait", "outcome"])
@on_a_loop
async def test_a_sync_for_which_the_kernel_has_no_worker_is_made_by_the_thread(
    tmp_path, monkeypatch, found, kind
):
    monkeypatch.setattr(log_writer, "data_sync", kind)
    async with a_log(tmp_path / "data", thread_only=False) as log:
        await log.append(b"first")
        with monkeypatch.context() as patch:
            patch.setattr(kind, "submit", lambda *_: None)
            patch.setattr(kind, "wait", lambda *_, **__: None)
            patch.setattr(kind, found, lambda sync, **_: sync.clear() or errno.ECANCELED)
            os.eventfd_write(log.log_writer._kernel.fileno, 1)
            assert isinstance(await log.append(b"second"), Position)
        assert isinstance(await log.append(b"third"), Position)
    assert values(tmp_path / "data") == [b"first", b"second", b"third"]


@BOTH_WAYS
@on_a_loop
async def test_a_refused_write_is_reported_and_leaves_no_trace(tmp_path, monkeypatch, thread_only):
    async with a_log(tmp_path / "data", thread_only=thread_only) as log:
        await log.append(b"first")
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", failing(errno.ENOSPC))
            assert isinstance(await log.append(b"refused"), LogFull)
        assert isinstance(await log.append(b"third"), Position)
    assert values(tmp_path / "data") == [b"first", b"third"]


@BOTH_WAYS
@on_a_loop
async def test_after_a_failed_write_nothing_is_taken(tmp_path, monkeypatch, thread_only):
    log = Log(open_store(tmp_path / "data"), thread_only=thread_only)
    await log.append(b"first")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing(errno.EIO))
        assert (await log.append(b"lost")).errno == errno.EIO
    assert isinstance(await log.append(b"more"), OSError)
    log.sync.stop()
    log.log_writer.close()


@needs_the_kernel
def test_after_a_sync_that_the_kernel_failed_nothing_is_taken(tmp_path):
    store = open_store(tmp_path / "data")
    wal = store.wal
    wal.append(b"first", first_index=2, count=1)
    held = wal.position
    assert wal.writer.begin_append(b"second", first_index=3, count=1) is not None
    assert wal.position == held
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        wal.writer.end_append(0.0, errno.EIO)
    assert wal.position == held
    assert wal.writer.begin_append(b"third", first_index=3, count=1) is None
    with pytest.raises(OSError, match="closed to writing"):
        wal.append(b"third", first_index=3, count=1)


def failing(code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    return fail


@BY_EITHER
@pytest.mark.parametrize("found", ["wait", "outcome"])
@on_a_loop
async def test_a_sync_that_the_kernel_failed_is_reported_as_a_failure(
    tmp_path, monkeypatch, found, kind
):
    monkeypatch.setattr(log_writer, "data_sync", kind)
    log = Log(open_store(tmp_path / "data"), thread_only=False)
    await log.append(b"first")
    held = log.store.wal.position
    with monkeypatch.context() as patch:
        patch.setattr(kind, "wait", lambda *_, **__: None)
        patch.setattr(kind, found, lambda *_, **__: errno.EIO)
        assert (await log.append(b"lost")).errno == errno.EIO
    assert log.store.wal.position == held
    assert isinstance(await log.append(b"more"), OSError)
    log.sync.stop()
    log.log_writer.close()


@BY_EITHER
@on_a_loop
async def test_a_sync_whose_outcome_cannot_be_had_is_reported_as_a_failure(
    tmp_path, monkeypatch, kind
):
    monkeypatch.setattr(log_writer, "data_sync", kind)
    log = Log(open_store(tmp_path / "data"), thread_only=False)
    await log.append(b"first")
    with monkeypatch.context() as patch:
        patch.setattr(kind, "wait", lambda *_, **__: None)
        patch.setattr(kind, "outcome", failing(errno.EPERM))
        assert (await log.append(b"lost")).errno == errno.EPERM
    assert isinstance(await log.append(b"more"), OSError)
    log.sync.stop()
    log.log_writer.close()

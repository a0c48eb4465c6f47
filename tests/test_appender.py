"""The ways into the log: whoever syncs it, batches stand in it in order, and failures are told."""

import asyncio
import errno
import os
from contextlib import asynccontextmanager

import pytest

from kvd.appender import Appender
from kvd.commands import Set
from kvd.syncthread import SyncThread
from storage import disk
from storage.aio import DataSync
from storage.errors import LogFull
from storage.wal import Position
from tests.server import PATIENCE_S
from tests.stores import NOW_NS, SEGMENT, open_store, run
from tests.test_committer import on_a_loop


def kernel_can() -> bool:
    try:
        DataSync().close()
    except OSError:
        return False
    return True


needs_the_kernel = pytest.mark.skipif(not kernel_can(), reason="Linux AIO cannot be had here")
BOTH_WAYS = pytest.mark.parametrize(
    "thread_only", [pytest.param(False, marks=needs_the_kernel), True], ids=["kernel", "thread"]
)


class Log:
    """A store whose batches go through an appender; `append` commits what was appended."""

    def __init__(self, store, *, thread_only):
        loop = asyncio.get_running_loop()
        self.store = store
        self.sync = SyncThread[Position](loop, "test-sync", store.wal.prepare_next)
        self.appender = Appender(store, self.sync, loop, thread_only=thread_only)

    def begin(self, value):
        txn = self.store.begin()
        _, records = run(txn, (Set(b"/k", value),), NOW_NS)
        batch = self.store.batch(txn, records, self.store.applied.index + 1, NOW_NS)
        told = asyncio.get_running_loop().create_future()
        self.appender.append(batch, told.set_result)
        return txn, batch, told

    async def append(self, value):
        txn, batch, told = self.begin(value)
        outcome = await asyncio.wait_for(told, PATIENCE_S)
        if isinstance(outcome, Position):
            self.store.commit(txn, batch, outcome)
        else:
            txn.end()
        return outcome


@asynccontextmanager
async def a_log(path, *, thread_only):
    log = Log(open_store(path), thread_only=thread_only)
    try:
        yield log
    finally:
        log.sync.stop()
        log.appender.close()
        log.store.close()


def values(path):
    """What a log holds after a restart that reads all of it."""
    store = open_store(path, rebuild_index=True)
    try:
        return [event.change.value for event in store.view.events(0)]
    finally:
        store.close()


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


@BOTH_WAYS
@on_a_loop
async def test_a_batch_is_on_its_way_while_the_loop_goes_on(tmp_path, thread_only):
    async with a_log(tmp_path / "data", thread_only=thread_only) as log:
        await log.append(b"first")
        txn, batch, told = log.begin(b"second")
        assert not told.done()
        assert log.store.applied.index == 2
        log.store.commit(txn, batch, await asyncio.wait_for(told, PATIENCE_S))
        assert log.store.applied.index == 3


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


@BOTH_WAYS
@on_a_loop
async def test_a_refused_write_is_told_and_leaves_no_trace(tmp_path, monkeypatch, thread_only):
    async with a_log(tmp_path / "data", thread_only=thread_only) as log:
        await log.append(b"first")
        with monkeypatch.context() as patch:
            patch.setattr(disk, "write_at", failing(errno.ENOSPC))
            assert isinstance(await log.append(b"refused"), LogFull)
        assert isinstance(await log.append(b"third"), Position)
    assert values(tmp_path / "data") == [b"first", b"third"]


@BOTH_WAYS
@on_a_loop
async def test_after_a_failed_write_nothing_is_taken(tmp_path, monkeypatch, thread_only):
    log = Log(open_store(tmp_path / "data"), thread_only=thread_only)
    await log.append(b"first")
    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_at", failing(errno.EIO))
        assert (await log.append(b"lost")).errno == errno.EIO
    assert isinstance(await log.append(b"more"), OSError)
    log.sync.stop()
    log.appender.close()


@needs_the_kernel
def test_after_a_sync_that_the_kernel_failed_nothing_is_taken(tmp_path):
    store = open_store(tmp_path / "data")
    wal = store.wal
    wal.append(b"first", first_index=2, count=1)
    held = wal.position
    assert wal.begin_append(b"second", first_index=3, count=1) is not None
    assert wal.position == held
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        wal.end_append(0.0, errno.EIO)
    assert wal.position == held
    assert wal.begin_append(b"third", first_index=3, count=1) is None
    with pytest.raises(OSError, match="closed to writing"):
        wal.append(b"third", first_index=3, count=1)


@needs_the_kernel
def test_the_kernel_syncs_a_file_and_refuses_a_pipe(tmp_path):
    sync = DataSync()
    assert sync.outcome() is None
    with (tmp_path / "file").open("wb", buffering=0) as file:
        for _ in range(3):
            file.write(b"data")
            sync.submit(file.fileno())
            os.set_blocking(sync.fileno, True)
            os.eventfd_write(sync.fileno, os.eventfd_read(sync.fileno))  # waits for its end
            assert sync.outcome() == 0
            os.set_blocking(sync.fileno, False)
    source, target = os.pipe()
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        sync.submit(source)
    os.close(source)
    os.close(target)
    sync.close()


def failing(code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    return fail


@needs_the_kernel
@on_a_loop
async def test_nobody_is_told_before_the_kernel_has_synced(tmp_path, monkeypatch):
    async with a_log(tmp_path / "data", thread_only=False) as log:
        await log.append(b"first")
        asked = asyncio.Event()
        with monkeypatch.context() as patch:
            patch.setattr(DataSync, "outcome", lambda _: asked.set())  # not known yet
            txn, batch, told = log.begin(b"second")
            await asyncio.wait_for(asked.wait(), PATIENCE_S)
            await asyncio.sleep(0)
            assert not told.done()
            assert log.store.wal.position.seq == log.store.applied.position.seq
        log.store.commit(txn, batch, await asyncio.wait_for(told, PATIENCE_S))


@needs_the_kernel
@on_a_loop
async def test_a_sync_that_the_kernel_failed_is_told_as_a_failure(tmp_path, monkeypatch):
    log = Log(open_store(tmp_path / "data"), thread_only=False)
    await log.append(b"first")
    held = log.store.wal.position
    with monkeypatch.context() as patch:
        patch.setattr(DataSync, "outcome", lambda _: errno.EIO)
        assert (await log.append(b"lost")).errno == errno.EIO
    assert log.store.wal.position == held
    assert isinstance(await log.append(b"more"), OSError)
    log.sync.stop()
    log.appender.close()

"""A replica's own log: what waits for the disk, what does not, and what `durable` says."""

import asyncio
import errno
from contextlib import asynccontextmanager

import pytest

from kvd.core.replicated.unsynced_log import UnsyncedLog
from kvd.core.worker_thread import WorkerThread
from kvd.storage.errors import LogFull
from kvd.storage.format.frame import Position
from kvd.v2.commands import Set
from tests.support.committing import Gate, fail_writes, on_a_loop
from tests.support.held_sync import values
from tests.support.server import PATIENCE_S
from tests.support.stores import NOW_NS, open_store, run


class Log:
    """A store whose batches go through an `UnsyncedLog`."""

    def __init__(self, store):
        loop = asyncio.get_running_loop()
        self.store = store
        self.failures = []
        self.thread = WorkerThread[Position](loop, "test-sync", store.wal.prepare_next)
        self.log = UnsyncedLog(store, self.thread, loop, self.failures.append)

    def begin(self, value):
        txn = self.store.begin()
        _, records = run(txn, (Set(b"/k", value),), NOW_NS)
        self.store.journal.encode(txn, records, NOW_NS)
        received = asyncio.get_running_loop().create_future()
        assert not self.log.append(txn, received.set_result)
        return txn, received

    async def append(self, value):
        txn, received = self.begin(value)
        outcome = await asyncio.wait_for(received, PATIENCE_S)
        if isinstance(outcome, Position):
            self.store.state.merge(txn, outcome)
        return outcome


@asynccontextmanager
async def a_log(path, **options):
    log = Log(open_store(path, **options))
    try:
        yield log
    finally:
        log.thread.stop()
        log.log.close()
        log.store.close()


@on_a_loop
async def test_batches_stand_in_the_log_in_order(tmp_path):
    """Through several segments: some frames fit the one that is there, some begin the next."""
    sent = [b"%d" % i * (1 + i * 37 % 9000) for i in range(60)]
    async with a_log(tmp_path / "data") as log:
        ends = [await log.append(value) for value in sent]
        assert log.store.wal.position == ends[-1]
        await asyncio.wait_for(log.log.sync(), PATIENCE_S)
        assert log.log.durable == log.store.applied.seq == 60
    assert ends == sorted(ends)
    assert ends[-1].segment - ends[0].segment > 1
    assert values(tmp_path / "data") == sent


@pytest.fixture
def no_sync_unasked(monkeypatch):
    """No sync begins because of the time."""
    monkeypatch.setattr("kvd.core.replicated.unsynced_log._SYNC_S", 3600)


@pytest.mark.usefixtures("no_sync_unasked")
@on_a_loop
async def test_no_batch_waits_for_the_sync_of_others(tmp_path, monkeypatch):
    # In a segment so large that the thread need not prepare the next one.
    async with a_log(tmp_path / "data", segment_bytes_max=1 << 20) as log:
        await log.append(b"first")
        gate = Gate(monkeypatch)
        synced = asyncio.ensure_future(log.log.sync())
        await gate.reached()
        for number in range(20):
            txn, received = log.begin(b"%d" % number)
            assert received.done()
            log.store.state.merge(txn, received.result())
        assert log.log.durable == 0
        gate.open()
        await asyncio.wait_for(synced, PATIENCE_S)
        # Of those that came during the sync nothing is known yet.
        assert log.log.durable == 1
        await asyncio.wait_for(log.log.sync(), PATIENCE_S)
        assert log.log.durable == 21


@on_a_loop
async def test_what_was_written_is_synced_without_being_asked_for(tmp_path):
    async with a_log(tmp_path / "data") as log:
        for _ in range(2):
            await log.append(b"x")
            while log.log.durable < log.store.applied.seq:
                await asyncio.sleep(0.005)


@pytest.mark.usefixtures("no_sync_unasked")
@on_a_loop
async def test_much_is_synced_at_once(tmp_path):
    async with a_log(tmp_path / "data", segment_bytes_max=32 << 20) as log:
        for _ in range(22):
            await log.append(bytes(200_000))
        while log.log.durable < 20:
            await asyncio.sleep(0.005)


@pytest.mark.usefixtures("no_sync_unasked")
@on_a_loop
async def test_a_sync_that_fails_is_fatal_and_nothing_is_written_behind_it(tmp_path, monkeypatch):
    async with a_log(tmp_path / "data") as log:
        await log.append(b"first")
        with monkeypatch.context() as patch:
            fail_writes(patch, "sync_data", errno.EIO)
            await asyncio.wait_for(log.log.sync(), PATIENCE_S)
        assert [failure.errno for failure in log.failures] == [errno.EIO]
        outcome = await log.append(b"second")
        assert isinstance(outcome, OSError)
        assert log.log.durable == 0
        await log.log.sync()  # does not wait for what will not come


@on_a_loop
async def test_a_batch_without_room_is_refused_and_the_next_one_may_have_some(
    tmp_path, monkeypatch
):
    async with a_log(tmp_path / "data") as log:
        await log.append(b"first")
        with monkeypatch.context() as patch:
            fail_writes(patch, "write_at", errno.ENOSPC)
            assert isinstance(await log.append(b"no"), LogFull)
        assert isinstance(await log.append(b"third"), Position)
    assert values(tmp_path / "data") == [b"first", b"third"]


@on_a_loop
async def test_room_is_made_before_a_batch_is_sent_elsewhere(tmp_path, monkeypatch):
    async with a_log(tmp_path / "data") as log:
        await log.append(b"first")
        assert log.log.make_room(100, lambda _: None)
        received = asyncio.get_running_loop().create_future()
        assert not log.log.make_room(60_000, received.set_result)
        assert await asyncio.wait_for(received, PATIENCE_S) is None
        with monkeypatch.context() as patch:
            fail_writes(patch, "preallocate", errno.ENOSPC)
            received = asyncio.get_running_loop().create_future()
            assert not log.log.make_room(200_000, received.set_result)
            assert isinstance(await asyncio.wait_for(received, PATIENCE_S), LogFull)
            assert isinstance(await log.append(bytes(60_000)), Position)


@on_a_loop
async def test_a_chain_that_is_known_is_not_computed_again(tmp_path, monkeypatch):
    async with a_log(tmp_path / "data") as log:
        await log.append(b"first")
        monkeypatch.setattr("kvd.core.replicated.unsynced_log.next_chain", None)
        txn = log.store.begin()
        _, records = run(txn, (Set(b"/k", b"v"),), NOW_NS)
        log.store.journal.encode(txn, records, NOW_NS)
        txn.chain = b"12345678"
        received = asyncio.get_running_loop().create_future()
        log.log.append(txn, received.set_result)
        assert isinstance(received.result(), Position)

"""The ways into the log: whoever syncs it, batches stand in it in order, and failures are told."""

import asyncio
import errno
import os
import select
import signal
import threading
from contextlib import asynccontextmanager

import pytest

from bench.cost.in_process import Inside
from bench.load.wire import render
from kvd.core import log_writer
from kvd.core.log_writer import Appender
from kvd.core.worker_thread import SyncThread
from kvd.storage import aio
from kvd.storage.aio import DataSync
from kvd.storage.errors import LogFull
from kvd.storage.format.frame import Position
from kvd.v2.commands import Set
from tests.support.committing import on_a_loop
from tests.support.kernel_sync import needs_the_kernel
from tests.support.server import PATIENCE_S
from tests.support.stores import NOW_NS, SEGMENT, open_store, run

BOTH_WAYS = pytest.mark.parametrize(
    "thread_only", [pytest.param(False, marks=needs_the_kernel), True], ids=["kernel", "thread"]
)


class HeldSync(DataSync):
    """A disk whose syncs end when the test says so: the kernel waits for that instead of a disk.

    Attributes:
        submitted: set by each sync that begins.
        waits: what came of each wait for one; of the brief ones, `brief_waits`.
    """

    _IOCB_CMD_POLL = 5

    def __init__(self):
        super().__init__()
        self._gate = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
        self.submitted = threading.Event()
        self.waits = []
        self.brief_waits = []

    def submit(self, fd):
        os.fdatasync(fd)
        aio.IOCB.pack_into(
            self._iocb,
            0,
            *(0, 0, 0, self._IOCB_CMD_POLL, 0, self._gate),
            *(select.POLLIN, 0, 0, 0, aio._IOCB_FLAG_RESFD, self.fileno),
        )
        assert self._syscall(*self._submit) == 1
        self.submitted.set()

    def end(self):
        """Let one sync end, the one under way or the next."""
        os.eventfd_write(self._gate, 1)

    def take_back(self):
        """Let no sync end that has not."""
        os.eventfd_read(self._gate)

    def wait(self, *, briefly=False):
        code = self._ended(super().wait(briefly=briefly))
        (self.brief_waits if briefly else self.waits).append(code)
        return code

    def outcome(self):
        return self._ended(super().outcome())

    def _ended(self, result):
        if result is None:
            return None
        self.take_back()
        return 0

    def close(self):
        super().close()
        os.close(self._gate)


@pytest.fixture
def held(monkeypatch):
    """The disk of the appender that the test makes."""
    disk_sync = HeldSync()
    monkeypatch.setattr(log_writer, "DataSync", lambda: disk_sync)
    return disk_sync


def can_be_read(connected):
    return bool(select.select([connected], [], [], 0)[0])


class Log:
    """A store whose batches go through an appender; `append` commits what was appended."""

    def __init__(self, store, *, thread_only):
        loop = asyncio.get_running_loop()
        self.store = store
        self.sync = SyncThread[Position](loop, "test-sync", store.wal.prepare_next)
        self.reads = [0, 0]
        self.appender = Appender(store, self.sync, loop, thread_only=thread_only, reads=self.reads)

    def begin(self, value):
        txn = self.store.begin()
        _, records = run(txn, (Set(b"/k", value),), NOW_NS)
        self.store.encode(txn, records, NOW_NS)
        told = asyncio.get_running_loop().create_future()
        self.appender.append(txn, told.set_result)
        return txn, told

    async def append(self, value):
        txn, told = self.begin(value)
        outcome = await asyncio.wait_for(told, PATIENCE_S)
        if isinstance(outcome, Position):
            self.store.state.merge(txn, outcome)
        else:
            txn.end()
        return outcome


@asynccontextmanager
async def a_log(path, *, thread_only, **options):
    log = Log(open_store(path, **options), thread_only=thread_only)
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


@needs_the_kernel
@on_a_loop
async def test_a_batch_is_on_its_way_while_the_loop_goes_on(tmp_path, held):
    async with a_log(tmp_path / "data", thread_only=False) as log:
        await log.append(b"first")  # the thread begins the segment
        txn, told = log.begin(b"second")
        for _ in range(20):
            await asyncio.sleep(0)
        assert not told.done()
        assert log.store.wal.position.seq == log.store.applied.position.seq
        held.end()
        log.store.state.merge(txn, await asyncio.wait_for(told, PATIENCE_S))
        assert log.store.applied.index == 3


@needs_the_kernel
@on_a_loop
async def test_a_short_sync_is_waited_for(tmp_path, held):
    async with a_log(tmp_path / "data", thread_only=False) as log:
        await log.append(b"first")
        for number in range(100):
            held.end()
            txn, told = log.begin(b"%d" % number)
            assert told.done()
            log.store.state.merge(txn, told.result())
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
            txn, told = log.begin(b"%d" % number)
            assert not told.done()
            held.end()
            log.store.state.merge(txn, await asyncio.wait_for(told, PATIENCE_S))
        assert held.waits == [None] * 8
        for number in range(100):
            held.end()
            txn, told = log.begin(b"%d" % number)
            log.store.state.merge(txn, await asyncio.wait_for(told, PATIENCE_S))
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
            txn, told = log.begin(b"long %d" % number)
            assert not told.done()
            held.end()
            log.store.state.merge(txn, await asyncio.wait_for(told, PATIENCE_S))
            for short in range(100):
                held.end()
                txn, told = log.begin(b"short %d" % short)
                log.store.state.merge(txn, await asyncio.wait_for(told, PATIENCE_S))
            assert not loop.remove_reader(held.fileno)  # it was removed
        txn, told = log.begin(b"last")
        held.end()
        log.store.state.merge(txn, await asyncio.wait_for(told, PATIENCE_S))
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
            txn, told = log.begin(b"%d" % number)
            assert told.done() == bool(number % 2)
            if not number % 2:
                held.end()
            log.store.state.merge(txn, await asyncio.wait_for(told, PATIENCE_S))
        assert held.brief_waits == [None, 0] * 50
        assert held.waits == []
        held.end()
        _, told = log.begin(b"nobody reads")
        assert held.waits == [0]
        await told


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


@needs_the_kernel
@on_a_loop
async def test_a_sync_that_the_kernel_does_not_take_is_made_by_the_thread(tmp_path, monkeypatch):
    async with a_log(tmp_path / "data", thread_only=False) as log:
        await log.append(b"first")
        with monkeypatch.context() as patch:
            patch.setattr(DataSync, "submit", failing(errno.EAGAIN))
            assert isinstance(await log.append(b"second"), Position)
        assert isinstance(await log.append(b"third"), Position)
    assert values(tmp_path / "data") == [b"first", b"second", b"third"]


@BOTH_WAYS
@on_a_loop
async def test_a_refused_write_is_told_and_leaves_no_trace(tmp_path, monkeypatch, thread_only):
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
    log.appender.close()


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


@needs_the_kernel
def test_a_wait_ends_by_the_sync_or_by_the_bound_and_signals_do_not_harm_it(tmp_path):
    sync = HeldSync()
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, aio.WAIT_S / 10, aio.WAIT_S / 10)
    with (tmp_path / "file").open("wb") as file:
        try:
            sync.submit(file.fileno())
            assert [sync.wait(briefly=n > 10) for n in range(20)] == [None] * 20
            sync.end()
            while (code := sync.wait()) is None:
                pass
            assert code == 0
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        sync.submit(file.fileno())
        assert sync.wait() is None
        assert sync.outcome() is None  # what is left of the first is taken off the eventfd
        sync.end()
        assert select.select([sync.fileno], [], [], PATIENCE_S)[0]
        assert sync.outcome() == 0
        assert sync.outcome() is None
    sync.close()
    assert aio.BRIEFLY_S <= aio.WAIT_S / 5 <= 0.0002


def failing(code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    return fail


@needs_the_kernel
@pytest.mark.parametrize("found", ["wait", "outcome"])
@on_a_loop
async def test_a_sync_that_the_kernel_failed_is_told_as_a_failure(tmp_path, monkeypatch, found):
    log = Log(open_store(tmp_path / "data"), thread_only=False)
    await log.append(b"first")
    held = log.store.wal.position
    with monkeypatch.context() as patch:
        patch.setattr(DataSync, "wait", lambda *_, **__: None)
        patch.setattr(DataSync, found, lambda *_, **__: errno.EIO)
        assert (await log.append(b"lost")).errno == errno.EIO
    assert log.store.wal.position == held
    assert isinstance(await log.append(b"more"), OSError)
    log.sync.stop()
    log.appender.close()

"""A log on a loop, with syncs that end when the test says so."""

import asyncio
import os
import select
import threading
from contextlib import asynccontextmanager

import pytest

from kvd.core.log_writer import LogWriter
from kvd.core.worker_thread import WorkerThread
from kvd.storage import aio
from kvd.storage.aio import DataSync
from kvd.storage.format.frame import Position
from kvd.v2.commands import Set
from tests.support.kernel_sync import needs_the_kernel
from tests.support.server import PATIENCE_S
from tests.support.stores import NOW_NS, open_store, run

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


def can_be_read(connected):
    return bool(select.select([connected], [], [], 0)[0])


class Log:
    """A store whose batches go through a `LogWriter`; `append` commits what was appended."""

    def __init__(self, store, *, thread_only):
        loop = asyncio.get_running_loop()
        self.store = store
        self.sync = WorkerThread[Position](loop, "test-sync", store.wal.prepare_next)
        self.reads = [0, 0]
        self.log_writer = LogWriter(
            store, self.sync, loop, thread_only=thread_only, reads=self.reads
        )

    def begin(self, value):
        txn = self.store.begin()
        _, records = run(txn, (Set(b"/k", value),), NOW_NS)
        self.store.journal.encode(txn, records, NOW_NS)
        received = asyncio.get_running_loop().create_future()
        if self.log_writer.append(txn, received.set_result):
            self.log_writer.wait()
        return txn, received

    async def append(self, value):
        txn, received = self.begin(value)
        outcome = await asyncio.wait_for(received, PATIENCE_S)
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
        log.log_writer.close()
        log.store.close()


def values(path):
    """The values in a log after a restart that reads all of it."""
    store = open_store(path, rebuild_index=True)
    try:
        return [event.change.value for event in store.view.events(0)]
    finally:
        store.close()

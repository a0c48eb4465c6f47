"""A committer on an event loop, over a store of its own: its clock is set, its syncs are held."""

import asyncio
import errno
import functools
import os
import resource
import threading
from contextlib import asynccontextmanager, contextmanager

from kvd.core.committer import Committer
from kvd.core.log_writer import LogWriter
from kvd.core.stats import StoreStats
from kvd.core.watch.hub import Hub
from kvd.core.worker_thread import WorkerThread
from kvd.storage import disk
from kvd.storage.format.records import Document, Kind
from kvd.storage.store import Options, Store
from kvd.v2.commands import Delete, Watch
from kvd.v2.documents.decision import Decision, Reply
from kvd.v2.errors import ApiError, RouteError
from tests.support.stores import NOW_NS, SEGMENT

PATIENCE_S = 30


class SetClock:
    """A clock that is set by the test."""

    def __init__(self):
        self.time_ns = NOW_NS
        self.offset_ns = 0

    def now_ns(self):
        return self.time_ns

    raw_ns = now_ns

    def raise_floor(self, floor_ns):
        is_raised = floor_ns > self.time_ns
        self.time_ns = max(self.time_ns, floor_ns)
        return is_raised

    @staticmethod
    def at(raw_ns):
        return raw_ns

    def stepped_to(self, offset_ns):
        return None if offset_ns == self.offset_ns else self.offset_ns

    @staticmethod
    def raw_of(time_ns):
        return time_ns


class Listener:
    """Keeps the events of a watcher."""

    def __init__(self):
        self.received = []

    def begin(self, index):
        pass

    def deliver(self, body):
        self.received.append(body)

    def ready(self, _):
        return True


class Observer:
    """Hands on what is observed, while it keeps something."""

    def __init__(self, engine, count):
        self.kept = range(count)
        self._engine = engine

    def observe(self, events):
        self._engine.observe(events)


class Engine:
    """A store and its committer on the running loop; the options are the committer's."""

    def __init__(self, store, clock, **options):
        loop = asyncio.get_running_loop()
        self.store = store
        self.clock = clock
        self.failures = []
        self.failed = asyncio.Event()
        self.hub = Hub(store, loop)
        self.stats = StoreStats()
        self.sync = WorkerThread(loop, "test-sync")
        self.observe = lambda events: None
        self._first_seq = store.applied.seq
        # Its calls can be made to fail and to wait; tests/core/test_log_writer.py has both ways.
        log_writer = self._log_writer = LogWriter(store, self.sync, loop, thread_only=True)
        self.logged = []
        self.committer = Committer(
            store=store,
            hub=self.hub,
            observers=(Observer(self, 1), Observer(self, 0), Observer(self, 1)),
            stats=self.stats,
            clock=clock,
            sync=self.sync,
            append=self._append,
            wait=log_writer.wait,
            loop=loop,
            on_fatal=self._fail,
            on_flush=lambda: None,
            decide_document=lambda state, decide: decide(state),
            **options,
        )

    def _append(self, batch, done):
        self.logged.append(batch.payload)
        return self._log_writer.append(batch, done)

    def _fail(self, error):
        self.failures.append(error)
        self.failed.set()

    @property
    def commits(self):
        """Number of batches committed."""
        return self.store.applied.seq - self._first_seq

    def submit(self, *commands):
        """Queue commands in one turn of the loop; return a future for each."""
        return [self._queued(self.committer.submit, command) for command in commands]

    def submit_documents(self, *decisions):
        """Queue changes of documents in one turn of the loop; return a future for each."""
        return [self._queued(self.committer.submit_document, decide) for decide in decisions]

    @staticmethod
    def _queued(queue, item):
        future = asyncio.get_running_loop().create_future()
        queue(item, future.set_result)
        return future

    def content(self, name):
        document = self.store.view.document("user", name)
        return None if document is None else document.content

    async def run(self, *commands):
        """Return what becomes of commands that are queued at once."""
        return await asyncio.wait_for(asyncio.gather(*self.submit(*commands)), PATIENCE_S)

    def watch(self, key, **options):
        listener = Listener()
        self.hub.watch(Watch(key, **options), listener)
        return listener.received

    def value(self, key):
        node = self.store.view.find(key)
        return None if node is None else node.value

    def names(self, key):
        node = self.store.view.find(key)
        return [name for name, _ in self.store.view.children(node.dir_id)]


@asynccontextmanager
async def started(path, *, store_class=Store, segment_bytes_max=SEGMENT, term=True, **options):
    """An engine over a directory, stopped at the end; the options are the committer's."""
    store = store_class.open(path, Options(segment_bytes_max=segment_bytes_max))
    if term:
        store.start_term(NOW_NS, 1000)
    engine = Engine(store, SetClock(), **options)
    await engine.run(Delete(b"/nothing"))  # the batch that every start begins with is over
    try:
        yield engine
    finally:
        engine.committer.stop()
        engine.sync.stop()
        store.close()


def on_a_loop(test):
    """Let pytest run a coroutine function."""

    @functools.wraps(test)
    def run(**fixtures):
        asyncio.run(test(**fixtures))

    return run


async def turns(count=20):
    for _ in range(count):
        await asyncio.sleep(0)


def error(outcome):
    assert isinstance(outcome, ApiError)
    return outcome.code, outcome.cause, outcome.index


class Gate:
    """Holds the log's sync until it is opened."""

    def __init__(self, monkeypatch):
        self._open = threading.Event()
        self._entered = threading.Event()
        real = disk.sync_data

        def wait(fd):
            self._entered.set()
            assert self._open.wait(PATIENCE_S)
            real(fd)

        monkeypatch.setattr(disk, "sync_data", wait)

    async def reached(self):
        """Wait until the sync thread has reached the gate."""
        assert await asyncio.to_thread(self._entered.wait, PATIENCE_S)

    def open(self):
        self._open.set()


def fail_writes(monkeypatch, name, code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(disk, name, fail)


class Counting(Store):
    """A store that counts how often the index is to be flushed."""

    attempts = 0

    def flush(self, *, free=0):
        self.attempts += 1
        super().flush(free=free)


@contextmanager
def files_end_at(size):
    """Let no file of this process grow beyond a size: the index, here, cannot."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def refuse_room():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def user(name, content=b"{}"):
    return Document(Kind.AUTH, "user", name, content, b"hash")


def put(name, content=b"{}"):
    """A decision to log a user, which replies with what was there."""

    def decide(state):
        before = state.document("user", name)
        return Decision([user(name, content)], Reply(200, before.content if before else b""))

    return decide


def remove(name):
    return lambda _: Decision([user(name, None)._replace(secret=None)], Reply())


def refuse(_):
    raise RouteError(409, "no")


def received(outcome):
    return (outcome.status, outcome.body if isinstance(outcome, Reply) else outcome.message)

"""kvd/core/committer.py: who is told what, and when, whatever the disk does."""

import asyncio
import errno
import functools
import os
import resource
import threading
from contextlib import asynccontextmanager, contextmanager

import lmdb
import pytest

from kvd.core.committer import Committer
from kvd.core.log_writer import Appender
from kvd.core.stats import StoreStats
from kvd.core.watch.hub import Hub
from kvd.core.worker_thread import SyncThread
from kvd.storage import disk
from kvd.storage.format.event import Event
from kvd.storage.format.records import Entry, Kind
from kvd.storage.store import Store
from kvd.v2.commands import (
    CompareAndSwap,
    Create,
    CreateInOrder,
    Delete,
    Set,
    Update,
    Watch,
)
from kvd.v2.documents.decision import Decision, Reply
from kvd.v2.errors import ApiError, RouteError
from tests.support.stores import NOW_NS, SECOND_NS, SEGMENT, digest, open_store

PATIENCE_S = 30


class SetClock:
    """A clock that goes when it is told to."""

    def __init__(self):
        self.time_ns = NOW_NS
        self.offset_ns = 0

    def now_ns(self):
        return self.time_ns

    raw_ns = now_ns

    @staticmethod
    def at(raw_ns):
        return raw_ns

    def stepped_to(self, offset_ns):
        return None if offset_ns == self.offset_ns else self.offset_ns

    @staticmethod
    def raw_of(time_ns):
        return time_ns


class Listener:
    """Keeps what a watcher is told."""

    def __init__(self):
        self.told = []

    def begin(self, index):
        pass

    def tell(self, body):
        self.told.append(body)

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
    """A store and its committer on the running loop."""

    def __init__(self, store, clock):
        loop = asyncio.get_running_loop()
        self.store = store
        self.clock = clock
        self.failures = []
        self.failed = asyncio.Event()
        self.hub = Hub(store, loop)
        self.stats = StoreStats()
        self.sync = SyncThread(loop, "test-sync")
        self.observe = lambda events: None
        self._first_seq = store.applied.seq
        self.committer = Committer(
            store=store,
            hub=self.hub,
            observers=(Observer(self, 1), Observer(self, 0), Observer(self, 1)),
            stats=self.stats,
            clock=clock,
            sync=self.sync,
            # Its calls can be made to fail and to wait; tests/core/test_log_writer.py has both
            # ways.
            append=Appender(store, self.sync, loop, thread_only=True).append,
            loop=loop,
            on_fatal=self._fail,
            on_flush=lambda: None,
        )

    def _fail(self, error):
        self.failures.append(error)
        self.failed.set()

    @property
    def commits(self):
        """How many batches were committed."""
        return self.store.applied.seq - self._first_seq

    def submit(self, *commands):
        """Queue commands in one turn of the loop; return a future for each."""
        return [self._queued(self.committer.submit, command) for command in commands]

    def administer(self, *decisions):
        """Queue changes beside the keys in one turn of the loop; return a future for each."""
        return [self._queued(self.committer.administer, decide) for decide in decisions]

    @staticmethod
    def _queued(queue, item):
        future = asyncio.get_running_loop().create_future()
        queue(item, future.set_result)
        return future

    def document(self, name):
        entry = self.store.view.entry("user", name)
        return None if entry is None else entry.document

    async def run(self, *commands):
        """Return what becomes of commands that are queued at once."""
        return await asyncio.wait_for(asyncio.gather(*self.submit(*commands)), PATIENCE_S)

    def watch(self, key, **options):
        listener = Listener()
        self.hub.watch(Watch(key, **options), listener)
        return listener.told

    def value(self, key):
        node = self.store.view.find(key)
        return None if node is None else node.value

    def names(self, key):
        node = self.store.view.find(key)
        return [name for name, _ in self.store.view.children(node.dir_id)]


@asynccontextmanager
async def started(path, *, store_class=Store, segment_bytes_max=SEGMENT, term=True):
    """An engine over a directory, stopped at the end."""
    store = store_class.open(path, segment_bytes_max=segment_bytes_max)
    if term:
        store.start_term(NOW_NS, 1000)
    engine = Engine(store, SetClock())
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


async def until(condition):
    """Let the loop go on until something holds."""

    async def poll():
        while not condition():
            await asyncio.sleep(0.001)

    await asyncio.wait_for(poll(), PATIENCE_S)


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
        """Wait until the sync thread stands before it."""
        assert await asyncio.to_thread(self._entered.wait, PATIENCE_S)

    def open(self):
        self._open.set()


def fail_writes(monkeypatch, name, code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(disk, name, fail)


# Order: durable, visible, told


@on_a_loop
async def test_commands_are_answered_in_order_with_an_index_each(tmp_path):
    async with started(tmp_path / "data") as engine:
        outcomes = await engine.run(Set(b"/a", b"1"), Set(b"/a", b"2"), Delete(b"/a"))
        assert [outcome.change.index for outcome in outcomes] == [2, 3, 4]
        assert outcomes[1].prev.value == b"1"
        assert engine.commits == 1
        assert engine.store.applied.index == 4


@on_a_loop
async def test_nobody_is_told_anything_before_the_sync_has_returned(tmp_path, monkeypatch):
    async with started(tmp_path / "data") as engine:
        await engine.run(Set(b"/a", b"0"))
        told = engine.watch(b"/a", stream=True)
        gate = Gate(monkeypatch)
        futures = engine.submit(
            Set(b"/a", b"1"),
            CompareAndSwap(b"/a", b"2", b"0", 0),  # refused because of the one before it
            Create(b"/x/y", b""),
            Create(b"/x/y", b""),
        )
        await gate.reached()
        late = engine.submit(Create(b"/a", b""))
        await turns()
        assert not any(future.done() for future in (*futures, *late))
        assert told == []
        assert engine.value(b"/a") == b"0"
        assert engine.store.view.find(b"/x") is None
        assert engine.store.applied.index == 2
        gate.open()
        first, swap, created, again = await asyncio.gather(*futures)
        assert first.change.index == 3
        assert error(swap) == (101, b"[0 != 1]", 3)
        assert created.change.index == 4
        assert error(again) == (105, b"/x/y", 4)
        assert error(await late[0]) == (105, b"/a", 4)
        assert engine.value(b"/a") == b"1"
        await until(lambda: len(told) == 1)


@on_a_loop
async def test_observers_get_what_is_visible_before_those_who_asked_for_it(tmp_path):
    async with started(tmp_path / "data") as engine:
        observed = []

        def observe(events):
            answered = [future.done() for future in futures]
            observed.append(
                ([event.change.key for event, _ in events], engine.value(b"/a"), answered)
            )

        engine.observe = observe
        futures = engine.submit(Set(b"/a", b"1"), Delete(b"/none"), Set(b"/b", b"2"))
        await asyncio.gather(*futures)
        # Those that keep something, once each.
        assert observed == [([b"/a", b"/b"], b"1", [False] * 3)] * 2


@on_a_loop
async def test_what_comes_during_a_sync_is_one_batch(tmp_path, monkeypatch):
    async with started(tmp_path / "data") as engine:
        gate = Gate(monkeypatch)
        first = engine.submit(Set(b"/a", b""))
        await gate.reached()
        rest = []
        for i in range(50):
            rest += engine.submit(Set(b"/%d" % i, b""))
            await turns(1)
        gate.open()
        await asyncio.gather(*first, *rest)
        assert engine.commits == 2
        assert engine.store.applied.index == 52


@on_a_loop
async def test_a_batch_that_changes_nothing_asks_nothing_of_the_disk(tmp_path, monkeypatch):
    async with started(tmp_path / "data") as engine:
        before = engine.store.applied
        for name in ("write_at", "sync_data"):
            fail_writes(monkeypatch, name, errno.EIO)
        outcomes = await engine.run(Delete(b"/a"), Update(b"/b", b""))
        assert [error(outcome) for outcome in outcomes] == [(100, b"/a", 1), (100, b"/b", 1)]
        assert engine.store.applied == before
        monkeypatch.undo()


@on_a_loop
async def test_draining_waits_for_every_answer(tmp_path):
    async with started(tmp_path / "data") as engine:
        futures = engine.submit(*(Set(b"/%d" % i, b"") for i in range(2500)))
        await engine.committer.drain()
        assert all(future.done() for future in futures)
        # A batch takes a thousand records.
        assert engine.commits == 3


@on_a_loop
async def test_long_keys_make_short_batches(tmp_path):
    """Whatever comes of the commands: to look for deep keys that do not exist takes as long."""
    async with started(tmp_path / "data") as engine:
        keys = [b"/%b%d" % (b"k" * 2000, number) for number in range(64)]
        await engine.run(*(Set(key, b"") for key in keys))
        assert engine.commits == 4
        turns_taken = []
        for key in keys:
            engine.committer.submit(Delete(key + b"x"), lambda _: turns_taken.append(turn))
        turn = 0
        while len(turns_taken) < len(keys):
            await turns(1)
            turn += 1
        assert len(set(turns_taken)) >= 4


@pytest.mark.parametrize(
    ("depth", "commands", "commits"),
    [(1000, 16, 4), (60, 200, 2), (3, 1000, 1)],
    ids=["deep", "rather deep", "usual"],
)
@on_a_loop
async def test_deep_keys_make_short_batches(tmp_path, depth, commands, commits):
    """Each component is looked up, and others wait meanwhile."""
    async with started(tmp_path / "data") as engine:
        keys = [b"/%03d" % number + b"/d" * (depth - 1) for number in range(commands)]
        await engine.run(*(Set(key, b"") for key in keys))
        assert engine.commits == commits


@on_a_loop
async def test_after_a_stop_nothing_begins(tmp_path):
    async with started(tmp_path / "data") as engine:
        engine.committer.stop()
        (future,) = engine.submit(Set(b"/a", b""))
        await turns()
        assert not future.done()
        assert engine.value(b"/a") is None


@pytest.mark.parametrize("segment_bytes_max", [SEGMENT, 8 << 20], ids=["64 KiB", "8 MiB"])
@on_a_loop
async def test_a_batch_never_outgrows_a_frame(tmp_path, segment_bytes_max):
    """Whatever is queued at once, and with whatever has expired at the same time."""
    async with started(tmp_path / "data", segment_bytes_max=segment_bytes_max) as engine:
        value = b"v" * (segment_bytes_max // 40)
        outcomes = await engine.run(*(Set(b"/%d" % i, value) for i in range(200)))
        assert [outcome.change.index for outcome in outcomes] == list(range(2, 202))
        names = [b"%03d" % i + b"n" * 3000 for i in range(100)]
        await engine.run(*(Set(b"/d/" + name, b"", ttl_s=1) for name in names))
        engine.clock.time_ns += SECOND_NS
        largest = b"v" * (segment_bytes_max * 9 // 10)
        (outcome,) = await engine.run(Set(b"/large", largest))
        assert outcome.change.index == 402
        assert engine.names(b"/d") == []
        assert engine.value(b"/large") == largest
        too_large = b"v" * segment_bytes_max
        outcomes = await engine.run(Set(b"/a", b"1"), Set(b"/a", too_large), Set(b"/b", b"2"))
        assert error(outcomes[1])[0] == 210
        assert isinstance(outcomes[2], Event)
        assert engine.failures == []


# When the disk says no


@on_a_loop
async def test_a_full_log_refuses_a_batch_and_takes_its_indexes_back(tmp_path, monkeypatch):
    path = tmp_path / "data"
    async with started(path) as engine:
        await engine.run(Set(b"/a", b"0"))
        told = engine.watch(b"/", recursive=True, stream=True)
        before = engine.store.applied
        commands = (
            Set(b"/a", b"1"),
            CreateInOrder(b"/q", b""),
            CompareAndSwap(b"/a", b"2", b"0", 0),
            Delete(b"/nothing"),
        )
        with monkeypatch.context() as patch:
            fail_writes(patch, "write_at", errno.ENOSPC)
            no_room = (300, b"no space left on device (wal)", 0)
            # The whole batch goes; from then on only what users write, each on its own.
            assert [error(outcome) for outcome in await engine.run(*commands)] == [no_room] * 4
            assert engine.committer.no_room == "no space left on device (wal)"
            *refused, missing = await engine.run(*commands)
            assert [error(outcome) for outcome in refused] == [no_room] * 3
            assert error(missing) == (100, b"/nothing", 2)
            assert error((await engine.run(Delete(b"/a")))[0]) == no_room
            assert engine.store.applied == before
            assert engine.value(b"/a") == b"0"
            assert engine.store.view.find(b"/q") is None
        written, posted, swap, missing = await engine.run(*commands)
        assert engine.committer.no_room == ""
        assert written.change.index == 3
        assert posted.change.key == b"/q/00000000000000000004"
        assert error(swap) == (101, b"[0 != 1]", 4)
        assert error(missing) == (100, b"/nothing", 4)
        await until(lambda: len(told) == 2)
        assert engine.failures == []
        held = digest(engine.store)
    store = open_store(path, rebuild_index=True)
    assert digest(store) == held
    store.close()


@pytest.mark.parametrize("call", ["write_at", "sync_data"])
@on_a_loop
async def test_a_failing_disk_is_fatal_and_the_outcome_unknown(tmp_path, monkeypatch, call):
    async with started(tmp_path / "data") as engine:
        await engine.run(Set(b"/a", b"0"))
        with monkeypatch.context() as patch:
            fail_writes(patch, call, errno.EIO)
            outcomes = await engine.run(Set(b"/a", b"1"), Delete(b"/nothing"))
        for outcome in outcomes:
            code, cause, index = error(outcome)
            assert (code, index) == (300, 0)
            assert b"unknown" in cause
        (failure,) = engine.failures
        assert failure.errno == errno.EIO
        # It is not asked again, and what is unknown is not shown.
        (future,) = engine.submit(Set(b"/a", b"2"))
        await turns()
        assert not future.done()
        assert engine.value(b"/a") == b"0"
        assert engine.commits == 1


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


@on_a_loop
async def test_what_the_index_refuses_waits_in_memory_and_is_served(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("kvd.core.flusher._RETRY_S", 0.005)
    monkeypatch.setattr("kvd.storage.index.state.FLUSH_RECORDS", 50)
    path = tmp_path / "data"
    async with started(path, store_class=Counting) as engine:
        # The log's segment is there already, so that only the index can be refused to grow.
        await engine.run(*(Set(b"/%d" % i, b"v" * 100) for i in range(300)))
        engine.store.flush()
        told = engine.watch(b"/", recursive=True, stream=True)
        index_bytes = (path / "index" / "data.mdb").stat().st_size
        assert index_bytes > SEGMENT
        more = [b"%03d" % i for i in range(198)]
        with files_end_at(index_bytes):
            outcomes = await engine.run(*(Set(b"/more/" + name, b"v" * 100) for name in more))
            assert [outcome.change.index for outcome in outcomes] == list(range(302, 500))
            await engine.run(Set(b"/0", b"later"), Delete(b"/1"))
            assert engine.committer.index_waits
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
            await until(lambda: len(told) == 200)
        last, missing = await asyncio.wait_for(asyncio.gather(*futures), PATIENCE_S)
        assert (last.change.index, last.prev.value) == (502, b"later")
        assert error(missing) == (100, b"/nothing", 502)
        # One line when it begins and one when it ends, however often it was tried.
        assert [record.getMessage()[:30] for record in caplog.records] == [
            "changes wait in memory, the in", "the index has taken the change",
        ]  # fmt: skip
        assert not engine.committer.index_waits
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
        assert engine.committer.index_waits
        before = engine.store.applied
        outcomes = await engine.run(Set(b"/a", b"2"), Delete(b"/nothing"))
        assert [error(outcome)[::2] for outcome in outcomes] == [(300, 0)] * 2
        (reply,) = await asyncio.gather(*engine.administer(put("al")))
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
    monkeypatch.setattr("kvd.core.flusher._RETRY_S", 0.005)
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
        await until(lambda: not engine.committer.index_waits)
        engine.committer.tick()
        await until(lambda: not engine.store.state.has_garbage)
        assert engine.value(b"/a") == b"1"
        assert engine.failures == []


def refuse_room():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@on_a_loop
async def test_a_bug_ends_the_process(tmp_path):
    async with started(tmp_path / "data") as engine:
        engine.submit("no command")
        await asyncio.wait_for(engine.failed.wait(), PATIENCE_S)
        assert isinstance(engine.failures[0], (AttributeError, KeyError))


# Expiry


@on_a_loop
async def test_what_has_expired_goes_first_in_a_batch_and_in_order(tmp_path):
    async with started(tmp_path / "data") as engine:
        await engine.run(
            Set(b"/c", b"3", ttl_s=3),
            Set(b"/a", b"1", ttl_s=1),
            Set(b"/b", b"2", ttl_s=2),
            Set(b"/later", b"", ttl_s=9),
        )
        told = engine.watch(b"/", recursive=True, stream=True)
        engine.clock.time_ns += 3 * SECOND_NS
        created, missing = await engine.run(Create(b"/a", b"new"), Update(b"/b", b""))
        assert created.change.index == 9
        assert error(missing) == (100, b"/b", 9)
        await until(lambda: len(told) == 4)
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
        told = engine.watch(b"/a")
        await engine.run(Set(b"/b", b"", ttl_s=100), Set(b"/a", b"", ttl_s=0))
        await until(lambda: engine.value(b"/a") is None)
        assert engine.value(b"/b") == b""
        assert len(told) == 1


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
        told = engine.watch(b"/d/x/y")
        engine.clock.time_ns += 3 * SECOND_NS
        (outcome,) = await engine.run(Set(b"/after", b""))
        assert outcome.change.index == 9
        events = [(e.change.kind, e.change.key) for e in engine.store.view.events(7)]
        assert events == [
            (Kind.EXPIRE, b"/d/early"), (Kind.EXPIRE, b"/d"), (Kind.SET, b"/after"),
        ]  # fmt: skip
        await until(lambda: len(told) == 1)
        assert b'"action":"expire"' in told[0]
        assert b'"key":"/d"' in told[0]
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
    monkeypatch.setattr("kvd.core.committer._RETRY_S", 0.005)
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
async def test_what_ended_while_nobody_served_is_gone_before_anybody_asks(tmp_path):
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


# Watchers of what a directory takes along


@on_a_loop
async def test_a_removed_directory_is_told_to_those_who_watch_what_was_in_it(tmp_path):
    async with started(tmp_path / "data") as engine:
        await engine.run(Set(b"/d/a/b", b""), Set(b"/dd/a", b""), Set(b"/d/_h", b""))
        there = [engine.watch(key) for key in (b"/d", b"/d/a", b"/d/a/b", b"/d/_h")]
        # A plain watch of /d is told of /d itself; of its parent only if recursive.
        elsewhere = [
            engine.watch(key) for key in (b"/d/never", b"/d/a/never", b"/dd", b"/dd/a", b"/")
        ]
        recursive = engine.watch(b"/", recursive=True)
        await engine.run(Delete(b"/d", recursive=True))
        await until(lambda: len(recursive) == 1)
        assert [len(told) for told in there] == [1] * 4
        assert [len(told) for told in elsewhere] == [0] * 5
        assert all(b'"key":"/d","dir":true' in body for told in there for body in told)


@on_a_loop
async def test_so_it_is_to_those_who_began_to_watch_during_the_sync(tmp_path, monkeypatch):
    async with started(tmp_path / "data") as engine:
        await engine.run(Set(b"/d/a", b""), Set(b"/d/gone", b""), Set(b"/keep", b""))
        gate = Gate(monkeypatch)
        early = engine.watch(b"/d/a", stream=True)
        futures = engine.submit(
            Set(b"/d/new/x", b""), Delete(b"/d/gone"), Delete(b"/d", recursive=True)
        )
        await gate.reached()
        existing, made, parent, removed, never = (
            engine.watch(key, stream=True)
            for key in (b"/d/a", b"/d/new/x", b"/d/new", b"/d/gone", b"/d/never")
        )
        assert early == existing == []
        gate.open()
        await asyncio.gather(*futures)
        await until(lambda: len(early) == 1)
        await turns()
        assert [len(told) for told in (early, existing)] == [1, 1]
        # Each saw the whole life of its key, and its end once.
        assert [b'"action":"set"' in body for body in made] == [True, False]
        assert [b'"key":"/d"' in body for body in parent] == [True]
        assert [b'"key":"/d/gone"' in body for body in removed] == [True]
        assert never == []


# What is counted


@on_a_loop
async def test_outcomes_are_counted_by_kind(tmp_path):
    async with started(tmp_path / "data") as engine:
        await engine.run(Set(b"/a", b""), Set(b"/a/b", b""), Create(b"/a", b""))
        body = engine.stats.body(0)
        assert b'"setsSuccess":1,"setsFail":1' in body
        assert b'"createSuccess":0,"createFail":1' in body


# Beside the keys


def user(name, document=b"{}"):
    return Entry(Kind.AUTH, "user", name, document, b"hash")


def put(name, document=b"{}"):
    """A decision to log a user, which replies with what was there."""

    def decide(state):
        before = state.entry("user", name)
        return Decision([user(name, document)], Reply(200, before.document if before else b""))

    return decide


def remove(name):
    return lambda _: Decision([user(name, None)._replace(secret=None)], Reply())


def refuse(_):
    raise RouteError(409, "no")


def told(outcome):
    return (outcome.status, outcome.body if isinstance(outcome, Reply) else outcome.message)


@on_a_loop
async def test_nobody_is_told_of_an_entry_before_it_is_durable_and_visible(tmp_path, monkeypatch):
    async with started(tmp_path / "data") as engine:
        seen = []
        engine.committer.on_entries = lambda: seen.append(engine.document("al"))
        index, pos = engine.store.applied.index, engine.store.applied.pos
        gate = Gate(monkeypatch)
        futures = engine.administer(put("al", b"1"), refuse, put("al", b"2"))
        await gate.reached()
        await turns()
        assert not any(future.done() for future in futures)
        assert (engine.document("al"), seen) == (None, [])
        gate.open()
        outcomes = await asyncio.gather(*futures)
        # Each has seen what the one before it decided.
        assert [told(outcome) for outcome in outcomes] == [(200, b""), (409, "no"), (200, b"1")]
        assert (engine.document("al"), seen) == (b"2", [b"2"])
        assert (engine.store.applied.index, engine.store.applied.pos) == (index, pos + 2)
        held = digest(engine.store)
    store = open_store(tmp_path / "data", rebuild_index=True)
    assert digest(store) == held
    store.close()


@on_a_loop
async def test_what_is_refused_changes_nothing_and_asks_nothing_of_the_disk(tmp_path, monkeypatch):
    async with started(tmp_path / "data") as engine:
        engine.committer.on_entries = lambda: pytest.fail("nothing has changed")
        with monkeypatch.context() as patch:
            fail_writes(patch, "write_at", errno.EIO)
            (future,) = engine.administer(refuse)
            assert told(await future) == (409, "no")
        assert engine.failures == []


@on_a_loop
async def test_entries_and_keys_share_a_batch(tmp_path):
    async with started(tmp_path / "data") as engine:
        commits = engine.commits
        futures = [*engine.submit(Set(b"/a", b"1")), *engine.administer(put("al"))]
        await asyncio.gather(*futures, *engine.submit(Set(b"/a", b"2")))
        assert engine.commits == commits + 1
        assert (engine.value(b"/a"), engine.document("al")) == (b"2", b"{}")


@pytest.mark.parametrize("segment_bytes_max", [SEGMENT, 8 << 20], ids=["64 KiB", "8 MiB"])
@on_a_loop
async def test_entries_never_outgrow_a_frame(tmp_path, segment_bytes_max):
    async with started(tmp_path / "data", segment_bytes_max=segment_bytes_max) as engine:
        size = segment_bytes_max // 9
        futures = engine.administer(*(put(f"{i}", b"d" * size) for i in range(20)))
        futures += engine.submit(*(Set(b"/%d" % i, b"v" * size) for i in range(20)))
        futures += engine.administer(put("large", b"d" * segment_bytes_max))
        outcomes = await asyncio.wait_for(asyncio.gather(*futures), PATIENCE_S)
        assert told(outcomes.pop()) == (413, "too large for the log")
        assert not any(isinstance(outcome, RouteError | ApiError) for outcome in outcomes)
        assert len(engine.store.view.entries("user")) == 20
        assert engine.document("large") is None
        assert engine.failures == []


@on_a_loop
async def test_entries_wait_for_what_expires_and_fit_behind_it(tmp_path):
    async with started(tmp_path / "data") as engine:
        key = b"/" + b"k" * 470
        await engine.run(*(Set(key + b"%d" % i, b"", ttl_s=1) for i in range(120)))
        engine.clock.time_ns += 2 * SECOND_NS
        futures = engine.administer(*(put(f"{i}", b"d" * 20_000) for i in range(3)))
        await asyncio.wait_for(asyncio.gather(*futures), PATIENCE_S)
        assert engine.store.state.flushed().first_due_ns() is None
        assert engine.failures == []


@on_a_loop
async def test_a_full_log_refuses_entries_but_takes_their_removal(tmp_path, monkeypatch):
    async with started(tmp_path / "data") as engine:
        await asyncio.gather(*engine.administer(put("al"), put("bo")))
        before = engine.store.applied
        with monkeypatch.context() as patch:
            fail_writes(patch, "write_at", errno.ENOSPC)
            no_room = (500, "no space left on device (wal)")
            (future,) = engine.administer(put("al", b"other"))
            assert told(await future) == no_room  # its batch was aborted
            (future,) = engine.administer(put("al", b"other"))
            assert told(await future) == no_room
            assert engine.document("al") == b"{}"
            assert engine.store.applied == before
        monkeypatch.setattr(type(engine.store), "is_low_on_space", lambda _: True)
        engine.committer.tick()
        futures = engine.administer(put("al", b"other"), remove("bo"))
        refused, removed = await asyncio.gather(*futures)
        assert told(refused)[0] == 500
        assert told(removed) == (200, b"")
        assert (engine.document("al"), engine.document("bo")) == (b"{}", None)


@on_a_loop
async def test_entries_that_the_index_refuses_wait_in_memory(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("kvd.core.flusher._RETRY_S", 0.005)
    path = tmp_path / "data"
    async with started(path, store_class=Counting) as engine:
        await asyncio.gather(*engine.administer(put("old"), put("gone")))
        await engine.run(*(Set(b"/%d" % i, b"v" * 100) for i in range(300)))
        engine.store.flush()
        with files_end_at((path / "index" / "data.mdb").stat().st_size):
            futures = engine.administer(
                *(put(f"{i}", b"d" * 500) for i in range(50)), remove("gone")
            )
            outcomes = await asyncio.wait_for(asyncio.gather(*futures), PATIENCE_S)
            assert {told(outcome) for outcome in outcomes} == {(200, b"")}
            engine.committer.tick()
            assert engine.committer.index_waits
            assert engine.document("1") == b"d" * 500
            names = [entry.name for entry in engine.store.view.entries("user")]
            assert names == sorted([*(str(i) for i in range(50)), "old"])
        await until(lambda: not engine.committer.index_waits)
        assert len(engine.store.view.entries("user")) == 51
        held = digest(engine.store)
    assert len(caplog.records) == 2
    store = open_store(path, rebuild_index=True)
    assert digest(store) == held
    store.close()


@on_a_loop
async def test_draining_waits_for_entries_and_after_a_stop_they_are_refused(tmp_path):
    async with started(tmp_path / "data") as engine:
        (future,) = engine.administer(put("al"))
        await asyncio.wait_for(engine.committer.drain(), PATIENCE_S)
        assert future.done()
        engine.committer.stop()
        (future,) = engine.administer(put("bo"))
        assert told(await future) == (500, "the server has stopped")


@on_a_loop
async def test_a_stop_right_after_a_refusal_leaves_nothing_to_do(tmp_path, monkeypatch):
    """An expiry that was refused tries again later, but not on a store that is closed."""
    monkeypatch.setattr("kvd.core.committer._RETRY_S", 0.1)
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

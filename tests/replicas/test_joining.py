"""A snapshot of one replica becomes the content of another: over a real link, or not at all."""

import asyncio
from contextlib import asynccontextmanager
from random import Random

import pytest

from kvd.core.background.housekeeping import Housekeeping
from kvd.core.worker_thread import WorkerThread
from kvd.replicas import joining as joining_module
from kvd.replicas import snapshots
from kvd.replicas.engine import Candidate
from kvd.replicas.joining import NoSource, in_order, install_newest
from kvd.replicas.links import Hello, Listener, dial
from kvd.replicas.snapshots import Snapshots
from kvd.replicas.upkeep.report import Report, decode, encode
from kvd.storage.format.identity import NewIds
from kvd.storage.snapshot import directory
from kvd.v2.commands import Set
from tests.support.committing import on_a_loop
from tests.support.memory_engine import MemoryEngine, MemoryLog
from tests.support.server import PATIENCE_S
from tests.support.stores import NOW_NS, digest, live, open_store, write

SECRET = bytes(range(32))
ME = Candidate(2, "h2", "", 0)


def report(name, port, state="following", applied=9):
    return Report(name, f"http://127.0.0.1:{port}", (), state, applied, applied, "1", 2, 0)


def described(durable):
    return report("h2", 0, "joining", 0)._replace(durable=durable)


class Source:
    """A replica with a store, and what serves its snapshots."""

    def __init__(self, path):
        loop = asyncio.get_running_loop()
        self.store = open_store(path, new_ids=NewIds(0xC1, 1))
        self.store.start_term(NOW_NS, 40)
        live(self.store, Random(5), 30)
        self.failures = []
        self.sync = WorkerThread(loop, "test-sync")
        self.housekeeping = Housekeeping(
            store=self.store,
            sync=self.sync,
            loop=loop,
            on_fatal=self.failures.append,
            snapshot_count=None,
        )
        self.snapshots = Snapshots(self.store, self.housekeeping)

    @property
    def files(self):
        return directory.available(self.store.directory.snap)

    async def serve(self, link):
        name, (at_least,) = await link.receive()
        assert name == "snapshot"
        await self.snapshots.serve(link, at_least)

    def close(self):
        self.housekeeping.stop()
        self.sync.stop()
        self.store.close()
        assert self.failures == []


async def dialed(url):
    return await dial("127.0.0.1", int(url.rpartition(":")[2]), SECRET, Hello(2, "1", 2))


@asynccontextmanager
async def listening(serve):
    listener = Listener(SECRET, Hello(1, "1", 2), serve)
    await listener.start("127.0.0.1", 0)
    try:
        yield listener.port
    finally:
        await listener.stop()


@asynccontextmanager
async def a_source(path):
    source = Source(path)
    try:
        async with listening(source.serve) as port:
            yield source, port
    finally:
        source.close()


async def engine_with(*reports, end=0):
    """An engine whose log ends with a frame, with the reports of replicas 1, 3, 4, ..."""
    engine = MemoryEngine(MemoryLog())
    await engine.open(0xC1, end, bytes(8), made_by="h1", made_at_ns=0)
    for number, document in zip((1, *range(3, 9)), reports, strict=False):
        await engine.report(number, encode(document))
    return engine


def joining(path):
    return open_store(path, new_ids=NewIds(0xC1, 2))


async def joined(store, engine, **options):
    path = store.directory.path
    async with asyncio.timeout(PATIENCE_S):
        return await install_newest(
            store, lambda: joining(path), engine, ME, dialed, describe=described, **options
        )


@on_a_loop
async def test_a_new_replica_gets_what_another_one_holds(tmp_path):
    async with a_source(tmp_path / "source") as (source, port):
        engine = await engine_with(report("h1", port))
        store = await joined(joining(tmp_path / "new"), engine)
        assert digest(store) == digest(source.store)
        assert store.identity.member_id == 2
        write(store, Set(b"/next", b"1"), now_ns=store.applied.time_ns)
        store.close()
    assert not any((tmp_path / "new").rglob("*.tmp"))


@on_a_loop
async def test_a_snapshot_is_taken_only_if_the_newest_does_not_reach_far_enough(tmp_path):
    async with a_source(tmp_path / "source") as (source, port):
        source.store.flush()
        source.store.snapshot()
        (first,) = source.files
        write(source.store, Set(b"/later", b"1"))
        held, end = source.store.applied.seq, source.store.applied.seq + 500
        store = await joined(
            joining(tmp_path / "a"), await engine_with(report("h1", port), end=end - 1)
        )
        assert store.applied.seq == held - 1
        assert source.files == [first]
        store = await joined(store, await engine_with(report("h1", port), end=end))
        assert store.applied.seq == held
        assert len(source.files) == 2
        store.close()


@on_a_loop
async def test_a_replica_that_has_not_come_so_far_gives_none(tmp_path):
    async with a_source(tmp_path / "source") as (source, port):
        seq = source.store.applied.seq
        engine = await engine_with(report("h1", port), end=seq + 501)
        store = joining(tmp_path / "new")
        with pytest.raises(NoSource, match=f"h1: it has applied frame {seq} only, not {seq + 1}"):
            await joined(store, engine, patience_s=0)
        write(store, Set(b"/still", b"open"))
        store.close()


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param([], id="ends at once"),
        pytest.param([("piece", b"x" * 5000)], id="ends in the middle"),
        pytest.param([("piece", b"x" * 5000), ("piece", b"")], id="no snapshot"),
        pytest.param([("piece", b"")], id="nothing"),
        pytest.param([("applied", 1, 1)], id="something else"),
        pytest.param([("alive",), ("nosnapshot", "none")], id="refuses"),
    ],
)
@on_a_loop
async def test_a_replica_that_fails_leaves_the_store_as_it_was(tmp_path, sent):
    async def serve(link):
        await link.receive()
        for name, *fields in sent:
            link.send(name, *fields)
        await link.drain()
        if ("piece", b"") in sent or len(sent) == 2:
            await link.receive()

    async with listening(serve) as port:
        store = joining(tmp_path / "new")
        write(store, Set(b"/mine", b"1"))
        with pytest.raises(NoSource, match="h1: "):
            await joined(store, await engine_with(report("h1", port)), patience_s=0)
        assert not any((tmp_path / "new").rglob("*.tmp"))
        write(store, Set(b"/mine", b"2"))
        store.close()


@on_a_loop
async def test_the_next_replica_is_asked_and_all_of_them_again(tmp_path, monkeypatch):
    monkeypatch.setattr(joining_module, "_AGAIN_S", 0.01)
    calls = []

    async with a_source(tmp_path / "source") as (source, port):

        async def refuse(link):
            await link.receive()
            calls.append(link.peer.id)
            if len(calls) == 2:
                await engine.report(4, encode(report("h4", port, applied=7)))
            link.send("nosnapshot", "not now")
            await link.receive()

        async with listening(refuse) as refusing:
            engine = await engine_with(report("h1", refusing))
            store = await joined(joining(tmp_path / "new"), engine)
        assert digest(store) == digest(source.store)
        assert len(calls) == 3
        store.close()


@on_a_loop
async def test_a_silent_replica_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "SILENCE_S", 0.05)

    async def serve(link):
        await link.receive()
        await link.receive()

    async with listening(serve) as port:
        store = joining(tmp_path / "new")
        with pytest.raises(NoSource, match="silent"):
            await joined(store, await engine_with(report("h1", port)), patience_s=0)
        store.close()


@on_a_loop
async def test_the_log_is_needed_from_the_beginning_on(tmp_path):
    reported = asyncio.Event()

    async def serve(link):
        await link.receive()
        assert decode((await engine.reports())[ME.id]) == described(501)
        reported.set()
        link.send("nosnapshot", "seen")
        await link.receive()

    async with listening(serve) as port:
        engine = await engine_with(report("h1", port), end=1001)
        store = joining(tmp_path / "new")
        with pytest.raises(NoSource):
            await joined(store, engine, patience_s=0)
        assert reported.is_set()
        store.close()


@on_a_loop
async def test_waiting_for_a_snapshot_can_be_given_up(tmp_path):
    begun = asyncio.Event()

    async def serve(link):
        await link.receive()
        link.send("piece", b"x" * 5000)
        begun.set()
        await link.receive()

    async with listening(serve) as port:
        store = joining(tmp_path / "new")
        waiting = []

        def wait(fetching):
            waiting.append(asyncio.ensure_future(fetching))
            return waiting[0]

        engine = await engine_with(report("h1", port))
        joined_store = asyncio.ensure_future(joined(store, engine, wait=wait))
        await asyncio.wait_for(begun.wait(), PATIENCE_S)
        waiting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await joined_store
        assert not any((tmp_path / "new").rglob("*.tmp"))
        write(store, Set(b"/still", b"open"))
        store.close()


@on_a_loop
async def test_without_another_replica_nothing_is_waited_for(tmp_path):
    store = joining(tmp_path / "new")
    with pytest.raises(NoSource, match="there is no other one"):
        await joined(store, await engine_with())
    store.close()


def test_followers_are_asked_before_the_leader_and_the_furthest_first():
    reports = {
        1: encode(report("leader", 1, "leading", 30)),
        2: encode(report("me", 2)),
        3: encode(report("behind", 3, applied=10)),
        4: encode(report("near", 4, applied=29)),
        5: b"damaged",
        6: encode(report("joining", 6, "joining", 31)),
    }
    assert [found.name for found in in_order(reports, 2)] == ["near", "behind", "leader"]

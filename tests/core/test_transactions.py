"""Transactions in the committer: all of one in a batch, whatever comes before or goes wrong."""

import asyncio
import errno

import pytest

from kvd.storage import disk
from kvd.storage.format.records import Kind
from kvd.v2.commands import Condition, Create, CreateInOrder, Delete, Set, Transaction
from kvd.v2.errors import ApiError
from tests.support.committing import PATIENCE_S, error, fail_writes, on_a_loop, started
from tests.support.stores import NOW_NS, SECOND_NS, digest, open_store

MIB = 1 << 20


def of(*ops, when=()):
    return Transaction(b"".join(item.key for item in (*when, *ops)), when, ops)


def transact(engine, *transactions):
    """Queue transactions in one turn of the loop; return a future for each."""
    return [engine._queued(engine.committer.transact, transaction) for transaction in transactions]


async def run(engine, *transactions):
    return await asyncio.wait_for(asyncio.gather(*transact(engine, *transactions)), PATIENCE_S)


def indexes(outcome):
    return [event.change.index for event in outcome]


@on_a_loop
async def test_it_takes_its_turn_among_commands(tmp_path):
    async with started(tmp_path / "data") as engine:
        commits = engine.commits
        (first,) = engine.submit(Set(b"/a", b"1"))
        (all_,) = transact(engine, of(
            Set(b"/a", b"2"), CreateInOrder(b"/q", b""), Delete(b"/q2", recursive=True),
            when=(Condition(b"/a", value=b"1"), Condition(b"/q", exists=False)),
        ))  # fmt: skip
        (refused,) = engine.submit(Create(b"/a", b"3"))
        (again,) = transact(engine, of(Set(b"/a", b"2"), CreateInOrder(b"/q", b"")))
        (last,) = engine.submit(Set(b"/b", b""))
        assert (await first).change.index == 2
        assert error(await all_) == (100, b"/q2", 2)
        assert error(await refused)[0] == 105
        assert indexes(await again) == [3, 4]
        assert (await again)[1].change.key == b"/q/%020d" % 4
        assert (await last).change.index == 5
        assert engine.commits == commits + 1


@on_a_loop
async def test_without_changes_it_asks_nothing_of_the_disk(tmp_path):
    async with started(tmp_path / "data") as engine:
        await engine.run(Set(b"/a", b"1"))
        before = engine.store.wal.position
        held, failed = await run(
            engine,
            of(when=(Condition(b"/a", value=b"1"),)),
            of(Set(b"/b", b""), when=(Condition(b"/a", value=b"2"),)),
        )
        assert held == []
        assert error(failed) == (101, b"[2 != 1]", 2)
        assert failed.place == ("when", 0)
        assert engine.store.wal.position == before


@on_a_loop
async def test_one_that_does_not_fit_begins_the_next_batch(tmp_path):
    path = tmp_path / "data"
    async with started(path, segment_bytes_max=16 * MIB) as engine:
        commits = engine.commits
        transactions = [
            of(*(Set(b"/%d/%d" % (n, m), b"v" * (MIB // 2)) for m in range(5))) for n in range(4)
        ]
        outcomes = await run(engine, *transactions)
        assert [len(indexes(outcome)) for outcome in outcomes] == [5] * 4
        assert [outcome[0].change.index for outcome in outcomes] == [2, 7, 12, 17]
        # Two and a half mebibytes each, of four that a batch takes.
        assert engine.commits == commits + 4
        (refused,) = await run(engine, of(*(Set(b"/x/%d" % n, b"v" * MIB) for n in range(4))))
        assert error(refused)[0] == 210
        assert engine.value(b"/x/0") is None
        held = digest(engine.store)
    store = open_store(path, rebuild_index=True, segment_bytes_max=16 * MIB)
    assert digest(store) == held
    store.close()


@on_a_loop
async def test_on_a_full_disk_all_of_it_is_refused_but_what_only_removes(tmp_path, monkeypatch):
    async with started(tmp_path / "data") as engine:
        await engine.run(Set(b"/a", b"0"), Set(b"/b", b"0"))
        before = digest(engine.store)
        writes = of(Delete(b"/a"), Set(b"/c", b""))
        with monkeypatch.context() as patch:
            fail_writes(patch, "write_at", errno.ENOSPC)
            assert [error(one)[0] for one in await run(engine, writes)] == [300]
            assert engine.committer.no_room
            missing = of(Delete(b"/none"), Delete(b"/a"))
            found = [error(outcome)[:2] for outcome in await run(engine, missing, writes)]
            assert found == [(100, b"/none"), (300, b"no space left on device (wal)")]
            assert digest(engine.store) == before
        monkeypatch.setattr(
            "kvd.core.disk_space.DiskSpace.check", lambda self, size: ApiError(300, b"full")
        )
        refused, removed = await run(engine, writes, of(Delete(b"/a"), Delete(b"/b")))
        assert error(refused)[:2] == (300, b"full")
        assert indexes(removed) == [4, 5]


@on_a_loop
async def test_of_one_whose_sync_fails_the_outcome_is_unknown(tmp_path, monkeypatch):
    async with started(tmp_path / "data") as engine:
        with monkeypatch.context() as patch:
            fail_writes(patch, "sync_data", errno.EIO)
            changes, nothing = await run(engine, of(Set(b"/a", b""), Set(b"/b", b"")), of())
        for outcome in (changes, nothing):
            assert error(outcome)[0] == 300
            assert b"unknown" in outcome.cause
        assert engine.value(b"/a") is None


@on_a_loop
async def test_nothing_is_sent_or_seen_of_it_before_it_is_durable(tmp_path, monkeypatch):
    async with started(tmp_path / "data") as engine:
        received = engine.watch(b"/", recursive=True, stream=True)
        seen = []
        real = disk.sync_data

        def sync(fd):
            seen.append((len(received), engine.value(b"/0"), [future.done() for future in futures]))
            real(fd)

        monkeypatch.setattr(disk, "sync_data", sync)
        futures = transact(engine, of(*(Set(b"/%d" % n, b"1") for n in range(9))))
        await asyncio.wait_for(asyncio.gather(*futures), PATIENCE_S)
        assert seen[0] == (0, None, [False])
        await asyncio.sleep(0)
        assert len(received) == 9


@on_a_loop
async def test_what_had_ended_when_it_came_goes_before_it(tmp_path):
    async with started(tmp_path / "data") as engine:
        await engine.run(*(Set(b"/ended/%04d" % n, b"", ttl_s=1) for n in range(700)))
        await engine.run(Set(b"/k", b"", ttl_s=2), Set(b"/d/x", b"", ttl_s=2))
        engine.clock.time_ns = NOW_NS + 2 * SECOND_NS
        (first,) = engine.submit(Set(b"/other", b""))  # it came when all that is due had ended
        (outcome,) = await run(engine, of(
            Create(b"/k", b"new"), Delete(b"/d", dir=True), when=(Condition(b"/k", exists=False),)
        ))  # fmt: skip
        assert (await first).change.kind == Kind.SET
        assert [event.change.kind for event in outcome] == [Kind.CREATE, Kind.DELETE]
        assert engine.value(b"/k") == b"new"


@on_a_loop
async def test_a_removed_directory_is_an_event_for_watchers_of_what_was_in_it(tmp_path):
    async with started(tmp_path / "data") as engine:
        await engine.run(Set(b"/d/x", b""))
        received = engine.watch(b"/d/x")
        await run(engine, of(Set(b"/a", b""), Delete(b"/d", recursive=True)))
        await asyncio.sleep(0)
        assert len(received) == 1
        assert b'"action":"delete"' in received[0]


@on_a_loop
async def test_each_is_counted_also_when_all_are_refused_for_want_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("kvd.storage.index.environment._MAP_BYTES", 1 << 20)
    async with started(tmp_path / "data", segment_bytes_max=8 * MIB) as engine:
        for n in range(2):
            await engine.run(Set(b"/%d" % n, b"v" * (2 * MIB)))
        assert engine.committer.flusher.waits
        (outcome,) = await run(engine, of(Set(b"/a", b"")))
        assert error(outcome)[::2] == (300, 0)
        assert engine.value(b"/a") is None
        assert engine.failures == []


@on_a_loop
@pytest.mark.parametrize("wrap", [False, True], ids=["commands", "transactions"])
async def test_a_batch_replaces_no_more_than_it_may_hold(tmp_path, wrap):
    """Its events hold the values that were there before."""
    async with started(tmp_path / "data", segment_bytes_max=64 << 10) as engine:
        keys = [b"/%d" % number for number in range(40)]
        for key in keys:
            await engine.run(Set(key, bytes(8 << 10)))
        commits = engine.commits
        if wrap:
            await run(engine, *(of(Delete(key)) for key in keys))
        else:
            await engine.run(*map(Delete, keys))
        # A batch may hold what a segment does, and one value more.
        assert engine.commits - commits >= 40 // 8


@on_a_loop
async def test_many_in_a_row_make_several_batches(tmp_path):
    async with started(tmp_path / "data", segment_bytes_max=16 * MIB) as engine:
        commits = engine.commits
        many = [of(*(Set(b"/%d/%d" % (n, m), b"") for m in range(128))) for n in range(40)]
        await run(engine, *many)
        assert engine.store.applied.index == 1 + 40 * 128
        assert engine.commits >= commits + 5, "about a thousand changes each"


@on_a_loop
async def test_it_looks_at_so_many_bytes_of_values_at_most(tmp_path):
    async with started(tmp_path / "data", segment_bytes_max=64 * MIB) as engine:
        await engine.run(*(Set(b"/%d" % number, b"v" * (3 * MIB)) for number in range(6)))
        conditions = [Condition(b"/%d" % number, exists=True) for number in range(6)]
        await run(engine, of(Set(b"/ok", b""), when=conditions[:5]))
        (same,) = await run(engine, of(Set(b"/ok", b""), when=conditions[:5] * 20))
        assert len(same) == 1
        (refused,) = await run(engine, of(Set(b"/ok", b""), when=conditions))
        assert (refused.code, refused.limit) == (210, "transaction_too_large")
        assert refused.place == ("when", 5)
        assert engine.failures == []

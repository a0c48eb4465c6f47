"""core/background/housekeeping.py: snapshots come when due, and no answer depends on them."""

import asyncio
import errno
import os

import pytest

from kvd.storage import failpoints
from tests.support.house import SMALL_SEGMENT, kept
from tests.support.log_texts import log_text
from tests.support.stores import digest, open_store
from tests.support.waiting import until


def test_a_snapshot_is_taken_after_so_many_records(tmp_path):
    async def scenario():
        async with kept(tmp_path / "data") as house:
            house.commit(49)
        assert house.begun == 0
        async with kept(tmp_path / "data") as house:
            # Those before the start count, and while one is being taken none is begun.
            for _ in range(3):
                house.commit(1)
            await until(house.taken)
        assert house.begun == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(("member_id", "due"), [(0, 100), (1 << 63, 75), ((1 << 64) - 1, 50)])
def test_replicas_of_one_log_take_their_snapshots_at_other_moments(tmp_path, member_id, due):
    async def scenario():
        async with kept(tmp_path / "data", 100, member_id=member_id) as house:
            house.commit(due - 1)
            assert house.begun == 0
            house.commit(1)
            await until(lambda: house.begun == 1)

    asyncio.run(scenario())


def test_a_snapshot_that_is_asked_for_says_how_it_went(tmp_path, monkeypatch, caplog):
    async def scenario():
        async with kept(tmp_path / "data", None) as house:
            house.commit(3)
            loop = asyncio.get_running_loop()
            taken, refused = loop.create_future(), loop.create_future()
            assert house.housekeeping.snapshot_now(taken.set_result)
            assert not house.housekeeping.snapshot_now(refused.set_result)
            assert await taken is None
            assert len(house.taken()) == 1
            monkeypatch.setattr(house.store, "snapshot", fail)
            assert house.housekeeping.snapshot_now(refused.set_result)
            assert isinstance(await refused, OSError)

    def fail():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    asyncio.run(scenario())
    assert "no snapshot was made" in caplog.text


def test_the_log_goes_behind_the_older_of_two_snapshots(tmp_path):
    async def scenario():
        async with kept(tmp_path / "data") as house:
            house.commit(1)
            first = house.log_begins_with()
            house.commit(50)
            await until(house.taken)
            house.commit(10)
            await house.turn()
            assert house.log_begins_with() == first
            await until(lambda: house.commit(10) or len(house.taken()) == 2)
            await until(lambda: house.log_begins_with() != first)
            held = digest(house.store)
        store = open_store(tmp_path / "data", segment_bytes_max=SMALL_SEGMENT, rebuild_index=True)
        assert digest(store) == held
        assert store.recovery.source.startswith("snapshot ")
        store.close()

    asyncio.run(scenario())


def test_without_a_number_a_small_log_needs_no_snapshot(tmp_path):
    async def scenario():
        async with kept(tmp_path / "data", None) as house:
            for _ in range(5):
                house.commit(100)
        assert house.begun == 0

    asyncio.run(scenario())


def test_without_a_number_the_size_of_the_log_decides(tmp_path, monkeypatch):
    monkeypatch.setattr("kvd.core.background.housekeeping._SNAPSHOT_BYTES_MIN", 20_000)

    async def scenario():
        async with kept(tmp_path / "data", None) as house:
            house.commit(50)
        assert house.begun == 0
        async with kept(tmp_path / "data", None) as house:
            house.commit(200)
            await until(house.taken)

    asyncio.run(scenario())


@pytest.fixture
def small_logs(monkeypatch):
    """A snapshot is due after 20 kB of log, but waits for the next hour."""
    monkeypatch.setattr("kvd.core.background.housekeeping._SNAPSHOT_BYTES_MIN", 20_000)
    monkeypatch.setattr("kvd.core.background.housekeeping._SNAPSHOT_PART", 1000)
    monkeypatch.setattr("kvd.core.background.housekeeping._SNAPSHOT_INTERVAL_S", 3600)


async def due_again(house):
    """Take the first snapshot, and write as much log again as makes one due."""
    house.commit(200)
    await until(lambda: house.ended() == 1)
    house.commit(200)
    assert house.begun == 1


@pytest.mark.usefixtures("small_logs")
def test_a_snapshot_that_was_postponed_is_taken_in_time_without_a_write(tmp_path, monkeypatch):
    async def scenario():
        async with kept(tmp_path / "data", None) as house:
            await due_again(house)
            monkeypatch.setattr("kvd.core.background.housekeeping._SNAPSHOT_INTERVAL_S", 0)
            await until(lambda: house.housekeeping.tick() or len(house.taken()) == 2)

    asyncio.run(scenario())


@pytest.mark.usefixtures("small_logs")
def test_the_log_is_bounded_while_a_snapshot_is_postponed(tmp_path, monkeypatch):
    monkeypatch.setattr("kvd.core.background.housekeeping._POSTPONED_BYTES", 100_000)

    async def scenario():
        async with kept(tmp_path / "data", None) as house:
            before = house.store.wal.log_bytes
            await due_again(house)
            while house.begun == 1:
                held = house.store.wal.log_bytes
                house.commit(10)
            assert 100_000 < held - before < 160_000
            await until(lambda: len(house.taken()) == 2)

    asyncio.run(scenario())


@pytest.mark.usefixtures("small_logs")
def test_no_snapshot_is_postponed_where_space_is_scarce(tmp_path, monkeypatch):
    async def scenario():
        async with kept(tmp_path / "data", None) as house:
            await due_again(house)
            free = house.store.low_water_bytes + (1 << 30)
            monkeypatch.setattr("kvd.storage.disk.free_bytes", lambda _: free)
            house.housekeeping.tick()
            await until(lambda: house.commit(1) or not house.housekeeping._busy)
            assert house.begun == 1
            monkeypatch.setattr("kvd.storage.disk.free_bytes", lambda _: free - 1)
            house.housekeeping.tick()
            await until(lambda: house.commit(1) or len(house.taken()) == 2)

    asyncio.run(scenario())


def test_a_number_of_records_is_not_postponed(tmp_path, monkeypatch):
    monkeypatch.setattr("kvd.core.background.housekeeping._SNAPSHOT_INTERVAL_S", 3600)

    async def scenario():
        async with kept(tmp_path / "data") as house:
            for number in (1, 2):
                house.commit(60)
                await until(lambda number=number: house.ended() == number)

    asyncio.run(scenario())


def test_a_snapshot_that_fails_is_tried_again_later(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("kvd.core.background.housekeeping._BACK_OFF_S", 0.01)
    real = os.open

    def open_full(path, *args, **options):
        if str(path).endswith("scratch.tmp"):
            return real("/dev/full", os.O_WRONLY)
        return real(path, *args, **options)

    async def scenario():
        async with kept(tmp_path / "data") as house:
            with monkeypatch.context() as patch:
                patch.setattr(os, "open", open_full)
                house.commit(50)
                await until(lambda: log_text("no snapshot was made") in caplog.text)
            assert os.strerror(errno.ENOSPC) in caplog.text
            assert list(house.snapshots.iterdir()) == []
            house.commit(1)
            await asyncio.sleep(0.02)
            house.commit(50)
            await until(lambda: len(house.taken()) == 1)

    asyncio.run(scenario())
    assert "Exception in callback" not in caplog.text


def test_a_snapshot_that_cannot_be_looked_at_again_is_taken_all_the_same(
    tmp_path, monkeypatch, caplog
):
    def refuse():
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def scenario():
        async with kept(tmp_path / "data") as house:
            house.commit(1)
            first = house.log_begins_with()
            monkeypatch.setattr(house.store, "last_snapshot", refuse)
            await until(lambda: house.commit(10) or len(house.taken()) == 2)
            await until(lambda: house.log_begins_with() != first)

    asyncio.run(scenario())
    assert "Exception in callback" not in caplog.text


def test_a_stop_gives_up_a_snapshot_without_a_word(tmp_path, caplog):
    async def scenario():
        async with kept(tmp_path / "data") as house:
            house.commit(60)
        assert house.begun == 1
        assert list(house.snapshots.glob("*.tmp")) == []

    asyncio.run(scenario())
    assert caplog.text == ""


def test_the_index_is_written_out_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr("kvd.core.background.housekeeping._INDEX_BYTES", 10_000)
    synced = []

    async def scenario():
        async with kept(tmp_path / "data", None) as house:
            real = house.store.index.sync
            monkeypatch.setattr(house.store.index, "sync", lambda: synced.append(real()))
            house.commit(20)
            house.commit(100)
            await until(lambda: synced)
            house.commit(20)
            assert len(synced) == 1  # the stop syncs it once more

    asyncio.run(scenario())


def test_a_sync_of_the_index_that_fails_ends_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr("kvd.core.background.housekeeping._INDEX_BYTES", 10_000)

    async def scenario():
        async with kept(tmp_path / "data", None) as house:
            house.store.faults.arm([failpoints.parse("indexBeforeSync=error:EIO@1")])
            house.commit(100)
            await until(lambda: house.fatal)
        assert house.fatal[0].errno == errno.EIO

    asyncio.run(scenario())
    assert not (tmp_path / "data" / "index" / "RUNNING").exists()

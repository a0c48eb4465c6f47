"""kvd/housekeeping.py: snapshots come when they are due, and no answer depends on them."""

import asyncio
import errno
import os
from contextlib import asynccontextmanager

from kvd.commands import Set
from kvd.housekeeping import Housekeeping
from kvd.syncthread import SyncThread
from storage import snapshot
from tests.stores import digest, open_store, write

SMALL_SEGMENT = 8192


class House:
    """A store and its housekeeping on the running loop."""

    def __init__(self, path, snapshot_count):
        loop = asyncio.get_running_loop()
        self.snapshots = path / "snap"
        self.segments = path / "wal"
        self.store = open_store(path, segment_bytes_max=SMALL_SEGMENT)
        self.begun = 0
        self._take, self.store.snapshot = self.store.snapshot, self._snapshot
        self.sync = SyncThread(loop, "test-sync")
        self.housekeeping = Housekeeping(
            store=self.store, sync=self.sync, loop=loop, snapshot_count=snapshot_count
        )

    def _snapshot(self):
        self.begun += 1
        return self._take()

    def commit(self, records):
        for start in range(0, records, 10):
            count = min(10, records - start)
            write(self.store, *(Set(b"/%d" % i, b"v" * 100) for i in range(count)))
        self.housekeeping.after_commit()

    async def turn(self):
        """Wait for what the thread of the log has been given."""
        given = asyncio.get_running_loop().create_future()
        self.sync.run(lambda: None, given.set_result)
        await given

    def taken(self):
        return snapshot.available(self.snapshots)

    def log_begins_with(self):
        return sorted(self.segments.glob("*.wal"))[0].name

    def stop(self):
        self.housekeeping.stop()
        self.sync.stop()
        self.store.close()


@asynccontextmanager
async def kept(path, snapshot_count=50):
    house = House(path, snapshot_count)
    try:
        yield house
    finally:
        house.stop()


async def until(condition):
    async def poll():
        while not condition():
            await asyncio.sleep(0.002)

    await asyncio.wait_for(poll(), 30)


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
    monkeypatch.setattr("kvd.housekeeping._SNAPSHOT_BYTES_MIN", 20_000)

    async def scenario():
        async with kept(tmp_path / "data", None) as house:
            house.commit(50)
        assert house.begun == 0
        async with kept(tmp_path / "data", None) as house:
            house.commit(200)
            await until(house.taken)

    asyncio.run(scenario())


def test_a_snapshot_that_fails_is_tried_again_later(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("kvd.housekeeping._BACK_OFF_S", 0.01)
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
                await until(lambda: "no snapshot was made" in caplog.text)
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
    monkeypatch.setattr("kvd.housekeeping._INDEX_BYTES", 10_000)
    synced = []

    async def scenario():
        async with kept(tmp_path / "data", None) as house:
            real = house.store.sync_index
            monkeypatch.setattr(house.store, "sync_index", lambda: synced.append(real()))
            house.commit(20)
            house.commit(100)
            await until(lambda: synced)
            house.commit(20)
        assert len(synced) == 1

    asyncio.run(scenario())

"""A store whose housekeeping runs on a loop."""

import asyncio
from contextlib import asynccontextmanager

from kvd.core.background.housekeeping import Housekeeping
from kvd.core.worker_thread import WorkerThread
from kvd.storage.snapshot import directory
from kvd.v2.commands import Set
from tests.support.stores import open_store, write

SMALL_SEGMENT = 8192


class House:
    """A store and its housekeeping on the running loop."""

    def __init__(self, path, snapshot_count, member_id=0):
        loop = asyncio.get_running_loop()
        self.snapshots = path / "snap"
        self.segments = path / "wal"
        self.store = open_store(path, segment_bytes_max=SMALL_SEGMENT)
        self.begun = 0
        self.fatal = []
        self._take, self.store.snapshot = self.store.snapshot, self._snapshot
        self.sync = WorkerThread(loop, "test-sync")
        self.housekeeping = Housekeeping(
            store=self.store,
            sync=self.sync,
            loop=loop,
            on_fatal=self.fatal.append,
            snapshot_count=snapshot_count,
            member_id=member_id,
        )

    def _snapshot(self):
        self.begun += 1
        return self._take()

    def commit(self, records):
        for start in range(0, records, 10):
            count = min(10, records - start)
            write(self.store, *(Set(b"/%d" % i, b"v" * 100) for i in range(count)))
        self.housekeeping.after_flush()

    async def turn(self):
        """Wait for what the thread of the log has been given."""
        given = asyncio.get_running_loop().create_future()
        self.sync.run(lambda: None, given.set_result)
        await given

    def taken(self):
        return directory.available(self.snapshots)

    def ended(self):
        return sum(self.housekeeping.snapshot_s.counts)

    def log_begins_with(self):
        return sorted(self.segments.glob("*.wal"))[0].name

    def stop(self):
        self.housekeeping.stop()
        self.sync.stop()
        self.store.close()


@asynccontextmanager
async def kept(path, snapshot_count=50, **options):
    house = House(path, snapshot_count, **options)
    try:
        yield house
    finally:
        house.stop()

"""A store whose log is written without syncs: what its other files say of frames that may go."""

import os

import pytest

from kvd.storage import disk
from kvd.storage.errors import CorruptLog
from kvd.storage.index.integrity.durable import durable_frame
from kvd.v2.commands import Set
from tests.support.lives import segments
from tests.support.stores import digest, open_store, write
from tests.support.unsynced_store import log_unsynced, lose_power, write_unsynced


@pytest.fixture
def ahead(tmp_path):
    """A store with an index that is ahead of the disk: the path, the digest and the end of what
    is durable.
    """
    store = open_store(tmp_path / "data")
    write(store, Set(b"/synced", b"1"))
    unsynced = log_unsynced(store)
    write_unsynced(store, unsynced, Set(b"/later", b"2"))
    unsynced.sync()
    held, end = digest(store), store.wal.position.offset
    write_unsynced(store, unsynced, Set(b"/lost", b"3"))
    write_unsynced(store, unsynced, Set(b"/lost", b"4"))
    store.flush()
    yield tmp_path, held, end
    store.abandon()


def test_an_index_that_is_ahead_of_the_disk_proves_no_loss(ahead):
    path, held, end = ahead
    store = open_store(lose_power(path / "data", path / "found", end))
    assert digest(store) == held
    write(store, Set(b"/next", b"5"))
    store.close()


def test_a_log_that_ends_before_what_was_durable_is_refused(ahead):
    path, _, end = ahead
    with pytest.raises(CorruptLog, match=r"ends with frame 1, but frame 2 was .*data.mdb names"):
        open_store(lose_power(path / "data", path / "found", end - 8))


def test_a_start_has_the_index_vouch_for_all_that_it_found(ahead):
    path, _, end = ahead
    found = lose_power(path / "data", path / "found", 1 << 20)
    assert durable_frame(path / "data" / "index" / "data.mdb") == 2
    store = open_store(found)
    assert durable_frame(found / "index" / "data.mdb") is None
    write(store, Set(b"/a", b""))
    store.flush()
    with pytest.raises(CorruptLog, match="ends with frame 2, but frame 5 was"):
        open_store(lose_power(found, path / "again", end))
    store.close()


def test_an_index_that_is_reused_vouches_again(tmp_path):
    store = open_store(tmp_path)
    write_unsynced(store, log_unsynced(store), Set(b"/a", b""))
    store.flush()
    held = digest(store)
    store.close()
    file = tmp_path / "index" / "data.mdb"
    assert durable_frame(file) == 0
    store = open_store(tmp_path)
    assert (store.recovery.source, digest(store)) == ("clean stop", held)
    assert durable_frame(file) is None
    store.close()


def test_a_store_that_was_never_a_replicas_has_no_such_row(tmp_path):
    store = open_store(tmp_path)
    write(store, Set(b"/a", b""))
    store.flush()
    assert durable_frame(tmp_path / "index" / "data.mdb") is None
    store.close()


def test_a_snapshot_gets_its_name_after_a_sync_of_the_log(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    write_unsynced(store, log_unsynced(store), Set(b"/a", b""))
    store.flush()
    place = segments(tmp_path)[-1].stat().st_ino
    done = []
    sync_data, rename = disk.sync_data, disk.rename

    def syncing(fd):
        sync_data(fd)
        done.append("synced" if os.fstat(fd).st_ino == place else "wrote")

    def renaming(source, target):
        done.append(target.suffix)
        rename(source, target)

    monkeypatch.setattr(disk, "sync_data", syncing)
    monkeypatch.setattr(disk, "rename", renaming)
    store.snapshot()
    assert done == ["synced", ".snap"]
    store.close()

"""storage/store.py: whatever a start finds, it finds all that was acknowledged, or refuses."""

import logging
from random import Random

import pytest

from kvd.storage.errors import CorruptLog, DirectoryLocked, DirectoryUnusable
from kvd.v2.commands import Delete, Set
from tests.support.lives import reopened
from tests.support.stores import NOW_NS, digest, dump, live, open_store, reclaim_all, write


def test_a_new_store_is_empty(store):
    assert store.recovery == ("log", 0)
    assert store.applied.index == 1
    assert store.applied.seq == store.applied.pos == store.applied.term == 0
    assert list(dump(store)["nodes"]) == [b"/"]


def test_what_was_committed_is_seen_and_what_was_not_is_not(store):
    write(store, Set(b"/a", b"1"))
    txn = store.begin()
    before = store.view
    assert txn.find(b"/a") == before.find(b"/a")
    txn.end()
    write(store, Set(b"/a", b"2"), Set(b"/b/c", b"3"))
    assert store.view.find(b"/a").value == b"2"
    assert store.view.find(b"/b/c").modified_index == store.applied.index == 4


def test_a_long_view_stays_as_it_was(store):
    write(store, Set(b"/a/b", b"1"))
    with store.long_view() as view:
        write(store, Delete(b"/a", recursive=True))
        write(store, Set(b"/a/c", b"2"))
        assert view.find(b"/a/b").value == b"1"
        assert view.find(b"/a/c") is None
    assert store.view.find(b"/a/b") is None


def test_freeing_uses_no_index_and_no_record(store):
    write(store, *(Set(b"/d/%d" % i, b"") for i in range(50)), Delete(b"/d", recursive=True))
    before = dump(store)
    reclaim_all(store)
    assert dump(store) == before


def test_a_store_in_use_is_left_alone(store, tmp_path):
    with pytest.raises(DirectoryLocked):
        open_store(tmp_path / "data")


def test_the_log_may_have_a_directory_of_its_own(tmp_path):
    path, log_dir = tmp_path / "data", tmp_path / "disk" / "log"
    store = open_store(path, wal_dir=log_dir)
    live(store, Random(1), 20)
    held = digest(store)
    store.close()
    assert list(log_dir.glob("*.wal"))
    assert log_dir.stat().st_mode & 0o777 == 0o700
    # Whoever opens it later need not know.
    assert reopened(path, rebuild_index=True)[0] == held
    assert reopened(path, wal_dir=log_dir)[0] == held


def test_a_log_elsewhere_than_it_is_said_to_be_is_refused(tmp_path):
    open_store(tmp_path / "data").close()
    with pytest.raises(DirectoryUnusable, match=r"the log of this store is in .*/data/wal, not in"):
        open_store(tmp_path / "data", wal_dir=tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_a_log_whose_disk_is_not_mounted_is_refused(tmp_path):
    path, log_dir = tmp_path / "data", tmp_path / "log"
    store = open_store(path, wal_dir=log_dir)
    live(store, Random(1), 5)
    store.close()
    log_dir.rename(tmp_path / "away")
    with pytest.raises(DirectoryUnusable, match=r"is its disk mounted"):
        open_store(path)
    log_dir.mkdir()  # the mount point, empty
    with pytest.raises(CorruptLog, match=f"is {log_dir} mounted"):
        open_store(path)


def test_a_log_of_another_store_is_not_taken(tmp_path):
    store = open_store(tmp_path / "one", wal_dir=tmp_path / "log")
    live(store, Random(1), 5)
    store.close()
    with pytest.raises(DirectoryUnusable, match=r"holds wal/.*\.wal, but no FORMAT"):
        open_store(tmp_path / "two", wal_dir=tmp_path / "log")


def test_nothing_is_logged_above_info_in_an_ordinary_life(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for seed in range(2):
        store = open_store(tmp_path / "data", rebuild_index=bool(seed))
        store.start_term(NOW_NS, 10)
        live(store, Random(seed), 5)
        store.flush()
        store.snapshot()
        store.close()
    assert {record.levelname for record in caplog.records} <= {"INFO"}

"""Snapshots of a running store: one moment of it, and what a failure leaves."""

import os
import threading
from random import Random

import lmdb
import pytest

from kvd.storage.errors import CorruptSnapshot
from kvd.storage.snapshot import directory
from kvd.v2.commands import Set
from tests.support.lives import SMALL_SEGMENT, reopened
from tests.support.stores import digest, live, open_store, write


def test_a_snapshot_is_of_one_moment_while_others_write(tmp_path):
    path = tmp_path / "data"
    store = open_store(path, segment_bytes_max=SMALL_SEGMENT)
    live(store, Random(1), 20)
    store.flush()
    started = store.applied.index
    taker = threading.Thread(target=store.snapshot)
    taker.start()
    dice = Random(2)
    while taker.is_alive():
        live(store, dice, 1)
    live(store, dice, 5)
    held = digest(store)
    store.close()
    (taken,) = directory.available(path / "snap")
    assert started <= directory.read_header(taken).index < store.applied.index
    found, recovery = reopened(path, segment_bytes_max=SMALL_SEGMENT, rebuild_index=True)
    assert (found, recovery.source) == (held, f"snapshot {taken.name}")


def test_a_snapshot_names_the_last_batch_in_it(tmp_path):
    store = open_store(tmp_path / "data", segment_bytes_max=SMALL_SEGMENT)
    live(store, Random(1), 30)
    store.heartbeat()
    write(store, Set(b"/a", b"1"))
    store.flush()
    store.snapshot()
    (taken,) = directory.available(tmp_path / "data" / "snap")
    header = directory.read_header(taken)
    store.close()
    assert header.payload_seq == store.applied.seq
    assert header.seq == store.applied.position.seq > header.payload_seq


def test_a_snapshot_that_finds_no_room_changes_nothing(tmp_path, monkeypatch):
    store = open_store(tmp_path / "data")
    write(store, Set(b"/a", b"1"))
    store.flush()
    store.snapshot()
    before = directory.available(tmp_path / "data" / "snap")
    real = os.open

    def open_full(path, *args, **options):
        return real("/dev/full" if str(path).endswith("scratch.tmp") else path, os.O_WRONLY)

    with monkeypatch.context() as patch:
        patch.setattr("kvd.storage.snapshot.checkpoint.os.open", open_full)
        store.flush()
        with pytest.raises(OSError, match="No space"):
            store.snapshot()
    assert sorted((tmp_path / "data" / "snap").iterdir()) == before
    write(store, Set(b"/a", b"2"))
    store.flush()
    store.snapshot()
    store.close()
    assert len(directory.available(tmp_path / "data" / "snap")) == 2


def test_a_snapshot_whose_copy_cannot_be_opened_is_a_failure_of_the_disk(tmp_path, monkeypatch):
    """Which housekeeping tries again later; LMDB's own errors would be taken for a bug."""
    store = open_store(tmp_path / "data")
    write(store, Set(b"/a", b"1"))

    def refuse(path, **options):
        raise lmdb.DiskError(f"{path}: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("kvd.storage.snapshot.checkpoint.lmdb.open", refuse)
        store.flush()
        with pytest.raises(OSError, match=r"scratch\.tmp.*No space"):
            store.snapshot()
    assert list((tmp_path / "data" / "snap").iterdir()) == []
    store.flush()
    store.snapshot()
    store.close()


def test_a_snapshot_that_is_given_up_leaves_nothing(tmp_path):
    store = open_store(tmp_path / "data")
    write(store, Set(b"/a", b"1"))
    store.snapshots.stop()
    store.flush()
    with pytest.raises(CorruptSnapshot):
        store.snapshot()
    store.close()
    assert list((tmp_path / "data" / "snap").iterdir()) == []


def test_what_is_known_of_the_last_snapshot(snapshots):
    path, newest, _, _ = snapshots
    store = open_store(path, segment_bytes_max=SMALL_SEGMENT)
    known = store.last_snapshot()
    assert known.pos == directory.read_header(newest).pos
    assert known.size == newest.stat().st_size
    assert 0 < known.log_bytes_since < 100 * SMALL_SEGMENT
    store.close()

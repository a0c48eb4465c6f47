"""A store whose log is written without syncs: what its other files say of frames that may go."""

import os
import re
from random import Random

import pytest

from kvd.storage import disk
from kvd.storage.directory import replica_file
from kvd.storage.directory.replica_file import Replica
from kvd.storage.errors import CorruptLog
from kvd.storage.index.integrity.durable import durable_frame
from kvd.storage.tools.repair import explained, repair
from kvd.v2.commands import Set
from tests.storage.test_replicas import frames
from tests.support.lives import SMALL_SEGMENT, damage, segments
from tests.support.stores import NOW_NS, digest, live, open_store, write
from tests.support.unsynced_store import (
    follow_unsynced,
    log_unsynced,
    lose_power,
    lose_sectors,
    write_unsynced,
)


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


def test_what_a_repair_of_a_replica_drops_is_followed_again(tmp_path, leader):
    payloads, held = leader
    store = open_store(tmp_path, segment_bytes_max=SMALL_SEGMENT)
    unsynced = log_unsynced(store)
    for payload in payloads:
        follow_unsynced(store, unsynced, payload)
    store.close()
    replica_file.write(tmp_path, Replica("etcd://h/kvd", 1, joined=True))
    damage(segments(tmp_path)[2], 4200)
    with pytest.raises(CorruptLog) as caught:
        open_store(tmp_path, segment_bytes_max=SMALL_SEGMENT, rebuild_index=True)
    advice = explained(caught.value, tmp_path)
    assert "This is a replica" in advice
    repair(tmp_path, int(re.search(r"--truncate-at (\d+)", advice)[1]))
    store = open_store(tmp_path, segment_bytes_max=SMALL_SEGMENT)
    assert 0 < store.applied.seq < len(payloads)
    unsynced = log_unsynced(store)
    for payload in payloads[store.applied.seq :]:
        follow_unsynced(store, unsynced, payload)
    assert digest(store) == held
    store.close()


@pytest.fixture(scope="module")
def leader(tmp_path_factory):
    """The payloads of a log, and the digest of what they make."""
    store = open_store(tmp_path_factory.mktemp("leader") / "data")
    store.start_term(NOW_NS, 40)
    live(store, Random(3), 120)
    held, payloads = digest(store), frames(store)
    store.close()
    return payloads, held


def followed(store, payloads, dice):
    """Follow some of the log, and do what a server does meanwhile; return what is durable then."""
    unsynced, end = log_unsynced(store), len(payloads)
    seq, durable = store.applied.seq, (store.applied.seq, store.wal.position)
    for payload in payloads[seq : min(end, seq + dice.randint(5, 40))]:
        follow_unsynced(store, unsynced, payload)
        if dice.random() < 0.3:
            store.flush()
        if dice.random() < 0.1:
            unsynced.sync()
            durable = store.applied.seq, store.wal.position
    if dice.random() < 0.2:
        store.flush()
        store.snapshot()
        durable = store.applied.seq, store.wal.position
    return durable


@pytest.mark.parametrize("seed", range(4))
def test_a_replica_goes_on_from_what_its_disk_had_at_a_power_loss(tmp_path, leader, seed):
    payloads, held = leader
    dice = Random(seed)
    path, last = tmp_path / "data", 0
    for losses in range(100):
        store = open_store(path, segment_bytes_max=SMALL_SEGMENT)
        assert store.applied.seq >= last
        if store.applied.seq == len(payloads):
            break
        last, position = followed(store, payloads, dice)
        path = lose_sectors(path, tmp_path / f"after {losses}", position, dice)
        store.abandon()
    assert losses > 3
    assert digest(store) == held
    store.close()

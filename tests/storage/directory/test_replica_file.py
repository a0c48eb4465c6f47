"""The file REPLICA, and the ways out for the store of a replica."""

import pytest

from kvd.storage.directory import replica_file
from kvd.storage.directory.detach import detach, replicate_again
from kvd.storage.directory.format_file import read_format
from kvd.storage.directory.replica_file import Replica
from kvd.storage.errors import DirectoryLocked, DirectoryUnusable, OutOfReach
from kvd.storage.store import Store
from kvd.storage.tools.compact import compact

URL = "etcd://h1:2379/kvd/prod"


@pytest.fixture
def path(tmp_path):
    """A replica's store."""
    Store.open(tmp_path / "data").close()
    replica_file.write(tmp_path / "data", Replica(URL, 0xC1, joined=True))
    return tmp_path / "data"


@pytest.mark.parametrize("joined", [True, False])
def test_what_is_written_is_read(tmp_path, joined):
    replica = Replica(URL, 2**64 - 1, joined)
    replica_file.write(tmp_path, replica)
    assert replica_file.read(tmp_path) == replica


def test_without_one_a_store_is_alone(tmp_path):
    assert replica_file.read(tmp_path) is None
    assert replica_file.read(tmp_path / "missing") is None
    replica_file.require_alone(tmp_path)
    replica_file.remove(tmp_path)


def test_a_replica_is_not_to_be_started_alone(path):
    with pytest.raises(DirectoryUnusable) as refusal:
        replica_file.require_alone(path)
    assert refusal.value.exit_status == 78
    assert str(refusal.value) == (
        f"{path}: the store is a replica, whose log is in {URL}: start it with --replicate {URL}, "
        f"or make it a store of its own with `kvdctl detach {path}`"
    )


@pytest.mark.parametrize("place", range(0, 100, 7))
def test_a_damaged_one_is_refused(path, place):
    file = path / "REPLICA"
    data = bytearray(file.read_bytes())
    place %= len(data)
    data[place] ^= 1
    file.write_bytes(data)
    with pytest.raises(DirectoryUnusable) as refusal:
        replica_file.require_alone(path)
    assert refusal.value.exit_status == 65


def test_one_that_cannot_be_read_is_refused(path):
    (path / "REPLICA").unlink()
    (path / "REPLICA").mkdir()
    with pytest.raises((DirectoryUnusable, OSError)):
        replica_file.require_alone(path)


def test_a_detached_store_has_ids_of_its_own_and_the_rest_as_it_was(path):
    before = read_format(path).identity
    ids = detach(path)
    after = read_format(path).identity
    assert replica_file.read(path) is None
    assert (after.cluster_id, after.member_id) == ids
    assert after.store_uuid == before.store_uuid
    assert {after.cluster_id, after.member_id}.isdisjoint({before.cluster_id, before.member_id})
    Store.open(path).close()


def test_a_detached_store_may_keep_the_cluster_id(path):
    before = read_format(path).identity
    ids = detach(path, keep_cluster_id=True)
    assert ids.cluster_id == before.cluster_id
    assert ids.member_id != before.member_id


def test_a_new_log_is_made_elsewhere_by_the_next_start(path):
    assert replicate_again(path, "etcd://h1:2379/kvd/two").joined is False
    assert replica_file.read(path) == Replica("etcd://h1:2379/kvd/two", 0xC1, joined=False)


@pytest.mark.parametrize("way", [detach, lambda path: replicate_again(path, URL)])
def test_a_store_that_is_no_replica_is_left_alone(tmp_path, way):
    Store.open(tmp_path / "data").close()
    before = (tmp_path / "data" / "FORMAT").read_bytes()
    with pytest.raises(OutOfReach, match="is no replica"):
        way(tmp_path / "data")
    assert (tmp_path / "data" / "FORMAT").read_bytes() == before
    with pytest.raises(DirectoryUnusable):
        way(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


def test_a_store_in_use_is_not_detached(path):
    store = Store.open(path)
    try:
        with pytest.raises(DirectoryLocked):
            detach(path)
    finally:
        store.close()
    assert replica_file.read(path) is not None


def test_a_replica_is_not_compacted(path):
    # It would log a term that the others do not have.
    with pytest.raises(DirectoryUnusable, match="is a replica"):
        compact(path)

"""kvdctl restore: a state of the past, as a store of its own."""

import shutil

import pytest

from kvd.storage.errors import CorruptLog
from kvd.storage.snapshot import directory as snapshots
from kvd.storage.store import Options, Store
from kvd.storage.tools.dump import rfc3339
from kvd.v2.commands import Delete, Set
from tests.support.ctl import check_restores, contents, kvdctl, printed_digest
from tests.support.stores import NOW_NS, SECOND_NS, digest, open_store, write


@pytest.mark.usefixtures("no_sync")
def test_a_restore_to_an_index_gives_the_digest_the_store_had_there(tmp_path, capsys):
    check_restores(tmp_path, capsys, 30)


@pytest.mark.durability_full
@pytest.mark.usefixtures("no_sync")
def test_a_hundred_restores_to_an_index_give_the_digest_the_store_had_there(tmp_path, capsys):
    check_restores(tmp_path, capsys, 100)


@pytest.mark.parametrize("value", [b"1", b"1" * 20_000], ids=["small", "large"])
def test_a_restore_may_end_in_the_middle_of_a_batch(tmp_path, capsys, monkeypatch, value):
    monkeypatch.setattr("kvd.storage.journal.has_sha256", lambda: True)
    whole, half = tmp_path / "whole", tmp_path / "half"
    commands = [Set(b"/a", value), Set(b"/b/c", b"2", ttl_s=50), Delete(b"/a"), Set(b"/d", b"4")]
    for path, sent in ((whole, commands), (half, commands[:2])):
        store = open_store(path)
        write(store, Set(b"/before", b""))
        write(store, *sent)
        store.close()
    restored = tmp_path / "restored"
    assert kvdctl(capsys, "restore", "--to-index", 4, whole, restored)[0] == 0
    assert printed_digest(capsys, restored) == printed_digest(capsys, half)
    assert printed_digest(capsys, whole, "--to-index", 4) == printed_digest(capsys, half)
    store = open_store(restored)
    write(store, Set(b"/a", value))
    store.close()
    assert kvdctl(capsys, "verify", restored)[0] == 0


def test_a_restore_to_a_time_holds_what_was_decided_by_then(tmp_path, capsys):
    store = open_store(tmp_path / "data")
    for second in range(5):
        write(store, Set(b"/at", b"%d" % second), now_ns=NOW_NS + second * SECOND_NS)
    store.close()
    time = rfc3339(NOW_NS + 3 * SECOND_NS)
    target = tmp_path / "restored"
    status, out, _ = kvdctl(capsys, "restore", "--to-time", time, tmp_path / "data", target)
    assert status == 0
    assert f"index 5, last written {time}" in out
    store = open_store(target)
    assert store.view.find(b"/at").value == b"3"
    store.close()


def test_a_restored_store_is_another_one_that_goes_on_where_the_old_one_was(made, tmp_path, capsys):
    target = tmp_path / "restored"
    status, out, err = kvdctl(capsys, "restore", made, target)
    assert (status, err) == (0, "")
    old, new = Store.open(shutil.copytree(made, tmp_path / "old")), Store.open(target)
    assert digest(old).encode()
    assert not set(old.identity) & set(new.identity)
    assert f"{new.identity.cluster_id:x}" in out
    assert (new.applied.index, new.applied.pos) == (old.applied.index, old.applied.pos)
    write(new, Set(b"/more", b"1"), now_ns=new.applied.time_ns)
    assert new.applied.index == old.applied.index + 1
    new.close()
    old.close()
    again = Store.open(target, Options(rebuild_index=True))
    assert again.view.find(b"/more").value == b"1"
    again.close()
    assert kvdctl(capsys, "verify", target)[0] == 0


def test_a_restored_store_without_its_snapshot_is_refused_not_empty(made, tmp_path, capsys):
    target = tmp_path / "restored"
    kvdctl(capsys, "restore", made, target)
    for path in snapshots.available(target / "snap"):
        path.unlink()
    with pytest.raises(CorruptLog):
        Store.open(target)


@pytest.mark.parametrize(
    ("point", "words"),
    [
        (["--to-index", "1000000"], "the log ends with index"),
        (["--to-time", "1970-01-02T00:00:00Z"], "the oldest state that can be rebuilt"),
    ],
    ids=["future", "past"],
)
def test_a_point_that_is_not_in_the_log_is_refused(made, tmp_path, capsys, point, words):
    # A log that begins late: what was before its oldest snapshot is gone.
    assert kvdctl(capsys, "restore", made, tmp_path / "late")[0] == 0
    status, _, err = kvdctl(capsys, "restore", *point, tmp_path / "late", tmp_path / "new")
    assert status == 64
    assert words in err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["late"]


def test_a_directory_with_something_in_it_is_no_target(made, data, tmp_path, capsys):
    before = contents(data)
    for verb in ("restore", "backup"):
        status, _, err = kvdctl(capsys, verb, made, data)
        assert status == 73
        assert "is not empty" in err
    assert contents(data) == before

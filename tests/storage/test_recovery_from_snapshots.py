"""Starts from snapshots, and how much of the log stays behind them."""

import shutil
from random import Random

import pytest

from kvd.storage.errors import CorruptLog
from kvd.storage.snapshot import directory
from tests.support.lives import SMALL_SEGMENT, damage, reopened, segments
from tests.support.log_texts import log_text
from tests.support.stores import digest, live, open_store


def test_the_newest_snapshot_is_taken(snapshots):
    path, newest, _, held = snapshots
    found, recovery = reopened(path, segment_bytes_max=SMALL_SEGMENT)
    assert found == held
    assert recovery.source == f"snapshot {newest.name}"


def test_of_a_damaged_snapshot_the_older_one_is_taken(snapshots, caplog):
    path, newest, older, held = snapshots
    damage(newest)
    found, recovery = reopened(path, segment_bytes_max=SMALL_SEGMENT)
    assert found == held
    assert recovery.source == f"snapshot {older.name}"
    assert newest.name in caplog.text
    assert newest.with_name(newest.name + ".broken").exists()


def test_of_two_damaged_snapshots_the_log_is_taken(snapshots):
    path, newest, older, held = snapshots
    damage(newest)
    damage(older)
    found, recovery = reopened(path, segment_bytes_max=SMALL_SEGMENT)
    assert found == held
    assert recovery.source == "log"


def test_without_a_good_snapshot_the_whole_log_is_needed(snapshots):
    path, newest, older, _ = snapshots
    damage(newest)
    damage(older)
    segments(path)[0].unlink()
    for _ in range(2):
        with pytest.raises(CorruptLog, match="begins with frame"):
            open_store(path, segment_bytes_max=SMALL_SEGMENT)


def test_a_snapshot_that_the_log_does_not_reach_is_refused(snapshots):
    path, newest, _, _ = snapshots
    kept = directory.read_header(newest).segment
    for segment in segments(path)[kept - 1 :]:
        segment.unlink()
    with pytest.raises(CorruptLog):
        open_store(path, segment_bytes_max=SMALL_SEGMENT)


@pytest.mark.parametrize("others", ["beside", "instead of"])
@pytest.mark.parametrize("index", ["used", "rebuilt"])
def test_a_snapshot_of_another_store_is_set_aside(snapshots, tmp_path, caplog, others, index):
    path, newest, _, held = snapshots
    if index == "used":
        reopened(path, segment_bytes_max=SMALL_SEGMENT)
    other = open_store(tmp_path / "other", segment_bytes_max=SMALL_SEGMENT)
    live(other, Random(5), 400)
    other.flush()
    other.snapshot()
    other.close()
    (stranger,) = directory.available(tmp_path / "other" / "snap")
    assert stranger.name > newest.name
    if others == "instead of":
        for own in directory.available(path / "snap"):
            own.unlink()
    shutil.copy(stranger, path / "snap")
    caplog.clear()
    # Neither then nor later does it say how far the log must go.
    for turn in range(3):
        store = open_store(path, segment_bytes_max=SMALL_SEGMENT, rebuild_index=turn == 2)
        assert digest(store) == held
        store.last_snapshot()
        store.close()
    own = directory.available(path / "snap")
    assert [file.name for file in own[:1]] == ([newest.name] if others == "beside" else [])
    received = [record.message for record in caplog.records]
    assert len(received) == 2
    assert "a snapshot of another store" in received[0]
    assert log_text("is set aside") in received[1]


def test_the_log_behind_the_older_snapshot_is_enough(snapshots):
    path, newest, older, held = snapshots
    store = open_store(path, segment_bytes_max=SMALL_SEGMENT)
    before = len(segments(path))
    store.purge(directory.read_header(older).seq)
    store.close()
    assert len(segments(path)) < before
    assert reopened(path, segment_bytes_max=SMALL_SEGMENT, rebuild_index=True)[0] == held
    damage(newest)
    found, recovery = reopened(path, segment_bytes_max=SMALL_SEGMENT, rebuild_index=True)
    assert (found, recovery.source) == (held, f"snapshot {older.name}")


def test_the_log_goes_only_where_two_snapshots_cover_it(tmp_path):
    store = open_store(tmp_path / "data", segment_bytes_max=SMALL_SEGMENT)
    covered = []
    for seed in range(3):
        live(store, Random(seed), 30)
        before = len(segments(tmp_path / "data"))
        store.flush()
        store.purge(store.snapshot())
        covered.append(before - len(segments(tmp_path / "data")))
        kept = directory.available(tmp_path / "data" / "snap")
        assert len(kept) == min(seed + 1, 2)
    assert covered[0] == 0
    assert covered[1] > 0
    assert covered[2] > 0
    held = digest(store)
    store.close()
    for path in directory.available(tmp_path / "data" / "snap")[:-1]:
        damage(path)
    options = {"segment_bytes_max": SMALL_SEGMENT, "rebuild_index": True}
    assert reopened(tmp_path / "data", **options)[0] == held


def test_more_snapshots_are_kept_with_the_log_since_the_oldest(tmp_path):
    path = tmp_path / "data"
    store = open_store(path, segment_bytes_max=SMALL_SEGMENT, snapshots_kept=4)
    for seed in range(6):
        live(store, Random(seed), 30)
        store.flush()
        store.purge(store.snapshot())
    kept = directory.available(path / "snap")
    assert len(kept) == 4
    held = digest(store)
    store.close()
    for newer in kept[:-1]:
        damage(newer)
    found, recovery = reopened(path, segment_bytes_max=SMALL_SEGMENT, rebuild_index=True)
    assert (found, recovery.source) == (held, f"snapshot {kept[-1].name}")


@pytest.mark.parametrize("asked", [0, 1])
def test_no_fewer_than_two_snapshots_are_kept(tmp_path, asked):
    store = open_store(tmp_path / "data", snapshots_kept=asked)
    for seed in range(3):
        live(store, Random(seed), 5)
        store.flush()
        store.snapshot()
    store.close()
    assert len(directory.available(tmp_path / "data" / "snap")) == 2


def test_a_damaged_snapshot_does_not_keep_a_good_index_from_being_used(snapshots, caplog):
    path, newest, older, held = snapshots
    reopened(path, segment_bytes_max=SMALL_SEGMENT)
    damage(newest, 4096)
    store = open_store(path, segment_bytes_max=SMALL_SEGMENT)
    assert store.recovery.source == "clean stop"
    assert store.last_snapshot().pos == directory.read_header(older).pos
    assert digest(store) == held
    store.close()
    assert log_text("is set aside") in caplog.text
    assert directory.available(path / "snap") == [older]

"""A start: rebuilds of the index, torn tails, and an index that knows more than the log."""

import errno
import shutil
import subprocess
import sys
from random import Random

import lmdb
import pytest

import kvd.storage.recovery
import kvd.storage.store
from kvd.storage.errors import CorruptLog, StorageError
from kvd.storage.format.node import CorruptIndex
from kvd.v2.commands import Set
from tests.support.lives import (
    ROOT,
    SMALL_SEGMENT,
    append_garbage,
    damage,
    live_and_die,
    reopened,
    segments,
)
from tests.support.log_texts import log_text
from tests.support.stores import SEGMENT, digest, live, open_store, sweep, write


@pytest.mark.parametrize("seed", range(3))
def test_everything_comes_back_in_every_way(tmp_path, seed):
    path = tmp_path / "data"
    held = live_and_die(path, seed)
    copy = shutil.copytree(path, tmp_path / "copy")
    marked = (path / "index" / "RUNNING").exists()

    found, recovery = reopened(path, segment_bytes_max=SMALL_SEGMENT)
    assert found == held
    # Without the mark the kernel cannot name a mount for ever, and the index is rebuilt.
    assert recovery.source == ("same boot" if marked else "log")
    assert bool(recovery.records) != marked

    assert reopened(path, segment_bytes_max=SMALL_SEGMENT) == (held, ("clean stop", 0))

    found, recovery = reopened(copy, segment_bytes_max=SMALL_SEGMENT)
    assert found == held
    assert recovery.source == "log"
    assert recovery.records > 40

    store = open_store(path, segment_bytes_max=SMALL_SEGMENT)
    store.flush()
    store.snapshot()
    live(store, Random(-seed), 20)
    sweep(store, store.applied.time_ns + 1)
    grown = digest(store)
    assert grown != held
    store.close()
    found, recovery = reopened(path, segment_bytes_max=SMALL_SEGMENT, rebuild_index=True)
    assert found == grown
    assert recovery.source.startswith("snapshot ")
    assert 0 < recovery.records < 200


def test_a_store_lives_on_after_a_rebuild(tmp_path):
    path = tmp_path / "data"
    for seed in range(4):
        store = open_store(path, rebuild_index=True)
        live(store, Random(seed), 15)
        held = digest(store)
        store.close()
        assert reopened(path) == (held, ("clean stop", 0))


@pytest.mark.parametrize(
    "limits",
    [
        {"_FLUSH_BYTES": 700},
        {"_FLUSH_NODES": 7, "_REPLAY_RECORDS": 7, "_INDEX_BYTES": 0},
    ],
    ids=["bytes", "records"],
)
def test_a_log_larger_than_one_transaction_is_replayed_whole(tmp_path, monkeypatch, limits):
    for name, limit in limits.items():
        monkeypatch.setattr(f"kvd.storage.replay.{name}", limit)
    path = tmp_path / "data"
    held = live_and_die(path, 5)
    assert reopened(path, rebuild_index=True)[0] == held


def test_large_and_small_batches_are_one_history(tmp_path):
    path = tmp_path / "data"
    store = open_store(path, segment_bytes_max=4 << 20)
    for size in (10, 600_000, 300_000, 10, 600_000):
        write(store, Set(b"/a", b"v" * size))
    held = digest(store), store.applied.chain
    store.close()
    store = open_store(path, segment_bytes_max=4 << 20, rebuild_index=True)
    assert (digest(store), store.applied.chain) == held
    store.close()


@pytest.mark.parametrize(
    "damage", [lmdb.CorruptedError("x"), lmdb.PanicError("x"), CorruptIndex("x")]
)
def test_an_index_that_proves_damaged_during_recovery_is_rebuilt(
    tmp_path, monkeypatch, caplog, damage
):
    path = tmp_path / "data"
    held = live_and_die(path, 5)
    real = kvd.storage.recovery.replay
    damages = [damage]

    def replay(*arguments):
        if damages:
            raise damages.pop()
        return real(*arguments)

    monkeypatch.setattr("kvd.storage.recovery.replay", replay)
    found, recovery = reopened(path)
    assert found == held
    assert recovery.source == "log"
    assert log_text("the index is damaged and is rebuilt") in caplog.text


def test_a_start_that_has_no_room_for_the_index_says_so_in_one_line(tmp_path, monkeypatch):
    path = tmp_path / "data"
    held = live_and_die(path, 5)

    def replay(*_):
        raise lmdb.DiskError("mdb_txn_commit: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("kvd.storage.recovery.replay", replay)
        with pytest.raises(StorageError, match="is the disk full") as refused:
            open_store(path)
    assert refused.value.exit_status == 74
    assert reopened(path)[0] == held


@pytest.mark.parametrize("stop", ["clean", "killed"])
@pytest.mark.parametrize(
    "place", ["kvd.storage.snapshot.directory.read_chunks", "kvd.storage.replay.next_chain"]
)
def test_a_crash_in_the_middle_of_a_rebuild_takes_nothing_away(tmp_path, monkeypatch, place, stop):
    path = tmp_path / "data"
    store = open_store(path)
    live(store, Random(1), 20)
    store.flush()
    store.snapshot()
    live(store, Random(2), 20)
    held = digest(store)
    store.close()
    if stop == "killed":
        (path / "index" / "CLEAN").unlink()  # and the machine went, too: nothing vouches for it

    def crash(*_):
        raise OSError(errno.EIO, "the machine goes here")

    monkeypatch.setattr("kvd.storage.replay._FLUSH_BYTES", 700)
    with monkeypatch.context() as patch:
        patch.setattr(place, crash)
        with pytest.raises(OSError, match="goes here"):
            open_store(path, rebuild_index=True)
    found, recovery = reopened(path)
    assert found == held
    assert (recovery.source == "clean stop") == (stop == "clean")
    assert not (path / "index.tmp").exists()


def test_a_refused_rebuild_leaves_the_index_that_is_good(tmp_path):
    path = tmp_path / "data"
    store = open_store(path)
    write(store, Set(b"/a", b"1"))
    held = digest(store)
    store.close()
    (segment,) = (path / "wal").glob("*.wal")
    good = segment.read_bytes()
    segment.write_bytes(good.replace(b"/a", b"/b", 1))
    with pytest.raises(CorruptLog):
        open_store(path, rebuild_index=True)
    segment.write_bytes(good)
    found, recovery = reopened(path)
    assert (found, recovery.source) == (held, "clean stop")


def test_a_log_that_ends_before_a_snapshot_is_refused_though_that_one_is_damaged(tmp_path, caplog):
    path = tmp_path / "data"
    store = open_store(path)
    write(store, Set(b"/a", b"1"))
    before = store.wal.position.offset
    write(store, Set(b"/b", b"2"))
    store.flush()
    store.snapshot()
    store.close()
    (newest,) = (path / "snap").iterdir()
    newest.write_bytes(newest.read_bytes()[:-1])
    (segment,) = (path / "wal").glob("*.wal")
    segment.write_bytes(segment.read_bytes()[:before])
    shutil.rmtree(path / "index")
    with pytest.raises(CorruptLog, match="the log ends with frame 1, but frame 2 was acknowledged"):
        open_store(path)
    assert "set aside" in caplog.text


@pytest.mark.parametrize("stop", ["clean", "killed"])
def test_a_log_that_ends_before_what_a_mark_of_the_index_names_is_refused(tmp_path, stop):
    path = tmp_path / "data"
    store = open_store(path)
    write(store, Set(b"/a", b"1"))
    before = store.wal.position.offset
    write(store, Set(b"/b", b"2"))
    store.close()
    if stop == "killed":
        script = "import os, sys; from pathlib import Path; "
        script += "from tests.support.stores import open_store; "
        script += "store = open_store(Path(sys.argv[1])); os._exit(0)"
        subprocess.run([sys.executable, "-c", script, path], cwd=ROOT, check=True)
        assert not (path / "index" / "CLEAN").exists()
    (segment,) = (path / "wal").glob("*.wal")
    segment.write_bytes(segment.read_bytes()[:before])
    (path / "index" / "data.mdb").unlink()
    # The second start knows as much as the first.
    for _ in range(2):
        with pytest.raises(CorruptLog, match="log ends with frame 1, but frame 2 was acknowledged"):
            open_store(path)


def test_a_torn_tail_is_no_part_of_the_state(tmp_path, caplog):
    path = tmp_path / "data"
    store = open_store(path)
    write(store, Set(b"/a", b"1"))
    held = digest(store)
    end = store.wal.position.offset
    store.close()
    (path / "index" / "CLEAN").unlink()  # as if it had been killed
    append_garbage(path, end)
    assert reopened(path)[0] == held
    assert "cut off" in caplog.text
    assert reopened(path, rebuild_index=True)[0] == held


@pytest.mark.parametrize("rebuild_index", [False, True])
def test_a_torn_tail_after_a_clean_stop_is_damage(tmp_path, rebuild_index):
    path = tmp_path / "data"
    store = open_store(path)
    write(store, Set(b"/a", b"1"))
    end = store.wal.position.offset
    store.close()
    append_garbage(path, end)
    before = {
        file: file.read_bytes()
        for file in path.rglob("*")
        if file.name not in ("LOCK", "lock.mdb") and file.is_file()
    }
    with pytest.raises(CorruptLog, match=f"offset {end}: 36 bytes .* stopped cleanly") as refused:
        open_store(path, rebuild_index=rebuild_index)
    assert refused.value.exit_status == 65
    assert "Nothing was changed" in str(refused.value)
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.parametrize("clean", [True, False], ids=["clean stop", "same boot"])
def test_an_index_that_knows_more_than_the_log_is_a_reason_to_refuse(tmp_path, clean):
    path = tmp_path / "data"
    live_and_die(path, 3, SEGMENT)
    if clean:
        open_store(path).close()
    elif not (path / "index" / "RUNNING").exists():
        pytest.skip("this kernel cannot name a mount for ever (statx, Linux 6.8)")
    last = segments(path)[-1]
    data = last.read_bytes()
    frame = data.rindex(b"KVDF")
    with last.open("r+b") as file:
        file.seek(frame)
        file.write(bytes(len(data) - frame))
    for _ in range(2):
        with pytest.raises(CorruptLog):
            open_store(path)


def test_a_damaged_frame_before_a_good_one_is_refused(tmp_path):
    path = tmp_path / "data"
    live_and_die(path, 4, SEGMENT)
    data = segments(path)[0].read_bytes()
    damage(segments(path)[0], data.index(b"KVDF", 8000))
    with pytest.raises(CorruptLog, match="intact"):
        open_store(path, rebuild_index=True)

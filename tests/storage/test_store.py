"""storage/store.py: whatever a start finds, it finds all that was acknowledged, or refuses."""

import errno
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from random import Random

import lmdb
import pytest

import kvd.storage.recovery
import kvd.storage.store
from kvd.storage import disk
from kvd.storage.errors import (
    CorruptLog,
    CorruptSnapshot,
    DirectoryLocked,
    DirectoryUnusable,
    LogFull,
    LogTooNew,
    StorageError,
)
from kvd.storage.format.node import CorruptIndex
from kvd.storage.format.records import (
    VERSION,
    VERSION_SHA256,
    Setting,
    Term,
    encode_payload,
    encode_record,
)
from kvd.storage.snapshot import directory
from kvd.v2.commands import Delete, Set
from tests.support.stores import (
    NOW_NS,
    SEGMENT,
    digest,
    dump,
    live,
    open_store,
    reclaim_all,
    sweep,
    write,
)

ROOT = Path(__file__).parent.parent.parent
SMALL_SEGMENT = 8192

# Lives a life in a process of its own, tells what it holds, and dies without another word.
LIVE_AND_DIE = """
import os, sys
from pathlib import Path
from random import Random
from tests.support.stores import NOW_NS, digest, live, open_store
store = open_store(Path(sys.argv[1]), segment_bytes_max=int(sys.argv[3]))
store.start_term(NOW_NS, 40)
live(store, Random(int(sys.argv[2])), 60)
os.write(1, digest(store).encode())
os._exit(9)
"""


def live_and_die(path, seed, segment_bytes_max=SMALL_SEGMENT):
    """Return the digest of what a process held when it died."""
    arguments = [sys.executable, "-c", LIVE_AND_DIE, path, str(seed), str(segment_bytes_max)]
    ended = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 9, ended.stderr
    return ended.stdout


def reopened(path, **options):
    """Open a store, and return what it holds, and where from."""
    store = open_store(path, **options)
    try:
        return digest(store), store.recovery
    finally:
        store.close()


def damage(path, offset=-1000):
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(offset % size)
        byte = file.read(1)[0]
        file.seek(offset % size)
        file.write(bytes((byte ^ 0x10,)))


def segments(path):
    return sorted((path / "wal").glob("*.wal"))


@pytest.fixture
def store(tmp_path):
    store = open_store(tmp_path / "data")
    yield store
    store.close()


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


# Coming back


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
def test_an_index_that_proves_damaged_during_recovery_is_built_anew(
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
    assert "the index is damaged and is built anew" in caplog.text


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


def append_garbage(path, offset):
    with segments(path)[-1].open("r+b") as file:
        file.seek(offset)
        file.write(b"KVDF and what was never acknowledged")


# Terms and settings


def test_each_start_has_a_term_of_its_own(tmp_path):
    path = tmp_path / "data"
    for start in range(1, 4):
        store = open_store(path)
        store.start_term(NOW_NS, 1000)
        assert (store.applied.term, store.applied.index, store.applied.pos) == (start, 1, start)
        store.close()


def test_the_length_of_the_history_is_logged_when_it_changes(tmp_path):
    path = tmp_path / "data"
    for start, limit in enumerate((1000, 3, 3, 5), 1):
        store = open_store(path)
        store.start_term(NOW_NS, limit)
        write(store, *(Set(b"/a", b"") for _ in range(4)))
        assert store.applied.history_limit == limit
        assert len(list(store.view.events(0))) == min(limit, 4 * start)
        held = digest(store)
        store.close()
    assert reopened(path, rebuild_index=True)[0] == held


def test_a_start_on_a_full_disk_keeps_the_old_term(tmp_path, monkeypatch, caplog):
    path = tmp_path / "data"
    store = open_store(path)
    store.start_term(NOW_NS, 1000)
    write(store, Set(b"/a", b"1"))
    held = digest(store)
    store.close()
    store = open_store(path)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_at", refuse_to_write)
        store.start_term(NOW_NS, 7)
        assert store.applied.term == 1
        assert digest(store) == held
        with pytest.raises(LogFull):
            write(store, Set(b"/a", b"2"))
    assert "could not be logged" in caplog.text


def refuse_to_write(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_batch_that_was_not_written_takes_no_index(tmp_path, monkeypatch):
    store = open_store(tmp_path / "data")
    write(store, Set(b"/a", b"1"))
    held = digest(store)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_at", refuse_to_write)
        txn = store.begin()
        store.encode(txn, [encode_record(Term(9))], NOW_NS)
        with pytest.raises(LogFull):
            store.append(txn)
        txn.end()
    assert digest(store) == held
    (event,) = write(store, Set(b"/a", b"2"))
    assert event.change.index == 3
    held = digest(store)
    store.close()
    assert reopened(tmp_path / "data", rebuild_index=True)[0] == held


# Refusing


def foreign_payload(store, **changes):
    fields = {
        "term": 1,
        "seq": store.applied.seq + 1,
        "prev_chain": store.applied.chain,
        "pos": store.applied.pos + 1,
        "first_index": store.applied.index + 1,
        "time_ns": NOW_NS,
        "writer": 1,
        "records": [encode_record(Setting("history_limit", 5))],
    }
    return encode_payload(**fields | changes)


@pytest.mark.parametrize(
    "changes",
    [{"prev_chain": b"x" * 8}, {"seq": 2}, {"seq": 4}, {"records": [b"\x82\x11\x01"]}],
    ids=["another chain", "a batch again", "a batch left out", "an unknown record"],
)
@pytest.mark.parametrize("rebuild", [False, True])
def test_a_frame_of_another_history_is_refused(tmp_path, changes, rebuild):
    path = tmp_path / "data"
    store = open_store(path)
    for i in range(2):
        write(store, Set(b"/a", b"%d" % i))
    payload = foreign_payload(store, **changes)
    store.wal.append(payload, first_index=4, count=1)
    store.close()
    for _ in range(2):
        with pytest.raises(CorruptLog, match="frame 3"):
            open_store(path, rebuild_index=rebuild)


@pytest.mark.parametrize("rebuild", [False, True])
def test_a_frame_of_a_later_version_is_refused_and_stays(tmp_path, rebuild):
    path = tmp_path / "data"
    store = open_store(path)
    write(store, Set(b"/a", b"1"))
    payload = bytearray(foreign_payload(store))
    payload[1] = VERSION_SHA256 + 1
    store.wal.append(bytes(payload), first_index=3, count=1)
    store.close()
    held = [file.read_bytes() for file in segments(path)]
    with pytest.raises(
        LogTooNew, match=r"frame 2 .* version 3, .*a later version of kvd"
    ) as refused:
        open_store(path, rebuild_index=rebuild)
    assert refused.value.exit_status == 78
    assert [file.read_bytes() for file in segments(path)] == held


@pytest.mark.parametrize("rebuild", [False, True])
def test_a_log_may_be_chained_by_either_hash_in_any_order(tmp_path, monkeypatch, rebuild):
    path = tmp_path / "data"
    versions = []
    for has_sha256 in (False, True, False, True):
        monkeypatch.setattr(kvd.storage.store, "has_sha256", lambda has=has_sha256: has)
        store = open_store(path, rebuild_index=rebuild)
        for length in (10, 5000, 20_000, 10):
            commands = [Set(b"/%d" % i, b"v" * length) for i in range(3)]
            write(store, *commands)
        versions += [frame.payload[1] for frame in store.wal.scan()][-4:]
        held = dump(store)
        store.close()
    large = [VERSION, VERSION_SHA256, VERSION_SHA256, VERSION]
    assert versions == ([VERSION] * 4 + large) * 2
    # Whoever reads it needs nothing of the processor.
    monkeypatch.setattr(kvd.storage.store, "has_sha256", lambda: False)
    store = open_store(path, rebuild_index=rebuild)
    assert dump(store) == held
    store.close()


def test_a_frame_of_the_same_history_is_not(tmp_path):
    path = tmp_path / "data"
    store = open_store(path)
    write(store, Set(b"/a", b"1"))
    store.wal.append(foreign_payload(store), first_index=3, count=1)
    store.close()
    store = open_store(path)
    assert store.recovery.records == 1
    assert store.applied.history_limit == 5
    store.close()


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


# Snapshots


@pytest.fixture(scope="module")
def with_snapshots(tmp_path_factory):
    """A store with two snapshots and its whole log, closed, and the digest of what it holds."""
    path = tmp_path_factory.mktemp("snapshots") / "data"
    store = open_store(path, segment_bytes_max=SMALL_SEGMENT)
    store.start_term(NOW_NS, 40)
    for seed in range(2):
        live(store, Random(seed), 30)
        store.flush()
        store.snapshot()
    live(store, Random(2), 10)
    held = digest(store)
    store.close()
    return path, held


@pytest.fixture
def snapshots(with_snapshots, tmp_path):
    """A copy of it: its path, its snapshots, newest first, and the digest."""
    path = shutil.copytree(with_snapshots[0], tmp_path / "data")
    newest, older = directory.available(path / "snap")
    return path, newest, older, with_snapshots[1]


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
    told = [record.message for record in caplog.records]
    assert len(told) == 2
    assert "a snapshot of another store" in told[0]
    assert "is set aside" in told[1]


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
    store.stop_snapshot()
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


def test_a_damaged_snapshot_does_not_keep_a_good_index_from_being_used(snapshots, caplog):
    path, newest, older, held = snapshots
    reopened(path, segment_bytes_max=SMALL_SEGMENT)
    damage(newest, 4096)
    store = open_store(path, segment_bytes_max=SMALL_SEGMENT)
    assert store.recovery.source == "clean stop"
    assert store.last_snapshot().pos == directory.read_header(older).pos
    assert digest(store) == held
    store.close()
    assert "is set aside" in caplog.text
    assert directory.available(path / "snap") == [older]


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

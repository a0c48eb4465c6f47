"""kvdctl: what it says of a store is what it holds, and what it changes can be taken back."""

import base64
import hashlib
import json
import logging
import os
import shutil
import threading
from pathlib import Path
from random import Random

import pytest

from kvd.ctl import main
from kvd.storage import disk, failpoints
from kvd.storage.errors import CorruptLog, StorageError
from kvd.storage.format import frame
from kvd.storage.format.records import VERSION_SHA256, Entry, Kind
from kvd.storage.snapshot import directory as snapshots
from kvd.storage.store import Store
from kvd.storage.tools.digest import digest as digest_of
from kvd.storage.tools.dump import rfc3339
from kvd.v2.commands import Create, Delete, Set
from tests.support.server import run_kvd
from tests.support.stores import (
    NOW_NS,
    SECOND_NS,
    digest,
    enter,
    live,
    open_store,
    random_command,
    random_entry,
    sweep,
    write,
)

SMALL_SEGMENT = 8192


def kvdctl(capsys, *argv):
    """Run a verb; return its exit status, what it prints, and what it complains of."""
    mask = os.umask(0o022)
    try:
        status = main.main([str(arg) for arg in argv])
    except SystemExit as end:
        status = end.code
    finally:
        os.umask(mask)
    out, err = capsys.readouterr()
    return status, out, err


def told_digest(capsys, path, *argv):
    status, out, err = kvdctl(capsys, "digest", *argv, path)
    assert status == 0, err
    told, index = out.split()
    return told, int(index)


def contents(path):
    """Every file and what it holds, but for who holds the lock."""
    return {
        file.relative_to(path): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.name != "LOCK"
    }


def make_store(path, seed=1, batches=40):
    """A store with a life behind it: two snapshots, log before and after them, some segments."""
    store = open_store(path, segment_bytes_max=SMALL_SEGMENT)
    store.start_term(NOW_NS, 40)
    for part in range(3):
        live(store, Random(seed * 10 + part), batches)
        if part < 2:
            store.flush()
            store.snapshot()
    store.close()
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store that nobody may change."""
    return make_store(tmp_path_factory.mktemp("made") / "data")


@pytest.fixture
def data(made, tmp_path):
    """A store of one's own. A copy: its index, in another file, has to be built again."""
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def no_sync(monkeypatch):
    """Skip the syncs in tests that make many stores, none of which meets a power cut."""
    for name in ("sync_file", "sync_data", "sync_directory", "drop_cache"):
        monkeypatch.setattr(disk, name, lambda _: None)


# The digest, and the past.


def history_of_digests(path, *, count, snapshot_every):
    """Let a store live, some indexes a batch; return the digest it had after each batch."""
    store = open_store(path, segment_bytes_max=SMALL_SEGMENT)
    store.start_term(NOW_NS, 30)
    dice = Random(7)
    at = {}
    now_ns = NOW_NS
    last = 1
    while len(at) < count:
        now_ns += dice.choice((1, SECOND_NS))
        write(store, random_command(dice), now_ns=now_ns)
        if dice.random() < 0.1:
            sweep(store, now_ns)
        if dice.random() < 0.2:
            enter(store, random_entry(dice), now_ns=now_ns)
        at[store.applied.index] = digest_of(store.view)
        if store.applied.index - last >= snapshot_every:
            last = store.applied.index
            store.flush()
            store.purge(store.snapshot())
    store.close()
    return at


def check_restores(tmp_path, capsys, rounds):
    path = tmp_path / "data"
    at = history_of_digests(path, count=6 * rounds, snapshot_every=2 * rounds)
    header = snapshots.read_header(snapshots.available(path / "snap")[-1])
    reachable = [index for index in at if index >= header.index]
    assert len(reachable) >= rounds
    for index in Random(3).sample(reachable, rounds):
        target = tmp_path / f"at-{index}"
        status, _, err = kvdctl(capsys, "restore", "--to-index", index, path, target)
        assert status == 0, err
        assert told_digest(capsys, target) == (at[index], index)
        shutil.rmtree(target)


@pytest.mark.usefixtures("no_sync")
def test_a_restore_to_an_index_gives_the_digest_the_store_had_there(tmp_path, capsys):
    check_restores(tmp_path, capsys, 30)


@pytest.mark.durability_full
@pytest.mark.usefixtures("no_sync")
def test_a_hundred_restores_to_an_index_give_the_digest_the_store_had_there(tmp_path, capsys):
    check_restores(tmp_path, capsys, 100)


@pytest.mark.parametrize("value", [b"1", b"1" * 20_000], ids=["small", "large"])
def test_a_restore_may_end_in_the_middle_of_a_batch(tmp_path, capsys, monkeypatch, value):
    monkeypatch.setattr("kvd.storage.store.has_sha256", lambda: True)
    whole, half = tmp_path / "whole", tmp_path / "half"
    commands = [Set(b"/a", value), Set(b"/b/c", b"2", ttl_s=50), Delete(b"/a"), Set(b"/d", b"4")]
    for path, sent in ((whole, commands), (half, commands[:2])):
        store = open_store(path)
        write(store, Set(b"/before", b""))
        write(store, *sent)
        store.close()
    restored = tmp_path / "restored"
    assert kvdctl(capsys, "restore", "--to-index", 4, whole, restored)[0] == 0
    assert told_digest(capsys, restored) == told_digest(capsys, half)
    assert told_digest(capsys, whole, "--to-index", 4) == told_digest(capsys, half)
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
    again = Store.open(target, rebuild_index=True)
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


def test_the_digest_changes_with_whatever_a_client_can_see(tmp_path, capsys):
    path = tmp_path / "data"
    seen = set()
    store = open_store(path)
    for command in (
        Set(b"/a", b"1"),
        Set(b"/a", b"1"),  # its index and the history
        Set(b"/a", b"2"),
        Set(b"/a", b"2", ttl_s=5),
        Create(b"/d", b"", dir=True),
        Delete(b"/d", dir=True),
    ):
        write(store, command)
        seen.add(digest_of(store.view))
    user = Entry(Kind.AUTH, "user", "al", b"{}", b"hash")
    for entry in (user, user._replace(secret=b"other"), user._replace(document=None)):
        enter(store, entry)
        seen.add(digest_of(store.view))
    assert len(seen) == 8  # without the user it is the store that it was
    held = digest_of(store.view)
    store.start_term(NOW_NS, store.applied.history_limit)
    store.close()
    assert told_digest(capsys, path) == (held, 7)


def test_what_is_made_belongs_to_its_owner_alone(made, tmp_path, capsys):
    kvdctl(capsys, "backup", made, tmp_path / "backup")
    kvdctl(capsys, "restore", made, tmp_path / "restored")
    entries = [
        entry
        for name in ("backup", "restored")
        for entry in [tmp_path / name, *(tmp_path / name).rglob("*")]
    ]
    assert {entry.stat().st_mode & 0o777 for entry in entries if entry.is_dir()} == {0o700}
    assert {entry.stat().st_mode & 0o777 for entry in entries if entry.is_file()} == {0o600}


def test_the_digest_tells_two_histories_of_one_state_apart(tmp_path):
    seen = set()
    for other in (b"/b", b"/c"):
        store = open_store(tmp_path / other.decode()[1:])
        write(store, Set(b"/a", b"1"))
        write(store, Set(other, b"2"))
        write(store, Delete(other))
        assert [name for name, _ in store.view.children(1)] == [b"a"]
        seen.add(digest_of(store.view))
        store.close()
    assert len(seen) == 2


# Backups.


def test_an_offline_backup_holds_what_the_store_holds(data, tmp_path, capsys):
    before = contents(data)
    status, out, err = kvdctl(capsys, "backup", data, tmp_path / "backup")
    assert (status, err) == (0, "")
    assert "read back, and good" in out
    assert contents(data) == before
    assert told_digest(capsys, tmp_path / "backup") == told_digest(capsys, data)
    assert kvdctl(capsys, "verify", tmp_path / "backup")[0] == 0


def test_a_backup_of_damaged_data_is_none(data, tmp_path, capsys):
    flip(sorted((data / "wal").glob("*.wal"))[-2], 4200)
    status, _, err = kvdctl(capsys, "backup", data, tmp_path / "backup")
    assert status == 65
    assert "kvdctl verify" in err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data"]


class Load:
    """Writers that count what was acknowledged."""

    def __init__(self, server, writers=3):
        self.index = 0
        self._stop = threading.Event()
        clients = [server.client() for _ in range(writers)]
        self._threads = [
            threading.Thread(target=self._write, args=[client, number])
            for number, client in enumerate(clients)
        ]

    def _write(self, client, number):
        count = 0
        while not self._stop.is_set():
            count += 1
            answer = client.put(f"/{number}/{count % 50}", "v" * 300)
            self.index = max(self.index, answer.index)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("backups", [10, pytest.param(100, marks=pytest.mark.durability_full)])
def test_backups_under_load_hold_all_that_was_acknowledged_before(
    make_server, tmp_path, capsys, backups
):
    server = make_server("--wal-segment-bytes", "65536", "--snapshot-count", "400").start()
    with Load(server) as load:
        for number in range(backups):
            acknowledged = load.index
            copy = tmp_path / f"backup-{number}"
            status, _, err = kvdctl(capsys, "backup", server.data_dir, copy)
            assert status == 0, err
            told, index = told_digest(capsys, copy)
            assert index >= acknowledged
            assert kvdctl(capsys, "verify", copy)[0] == 0
            assert told_digest(capsys, copy, "--to-index", index) == (told, index)


def test_backups_are_states_that_the_store_has_passed_through(make_server, tmp_path, capsys):
    server = make_server().start()
    backups = []
    with Load(server) as load:
        for number in range(5):
            copy = tmp_path / f"backup-{number}"
            assert kvdctl(capsys, "backup", server.data_dir, copy)[0] == 0
            backups.append(told_digest(capsys, copy))
    assert backups[-1][1] <= load.index
    assert server.terminate() == 0
    for told, index in backups:
        assert told_digest(capsys, server.data_dir, "--to-index", index) == (told, index)


# A directory that a server has.


def test_a_running_server_keeps_readers_out_unless_they_insist(fresh_server, capsys):
    fresh_server.client().put("/a", "1")
    for verb in ("verify", "dump", "digest"):
        status, out, err = kvdctl(capsys, verb, fresh_server.data_dir)
        assert (status, out) == (73, "")
        assert "in use by process" in err
        status, out, err = kvdctl(capsys, verb, "--force", fresh_server.data_dir)
        assert (status, err) == (0, "")
        assert out
    for argv in (["compact"], ["repair", "--truncate-at", "1", "--yes"]):
        assert kvdctl(capsys, *argv, fresh_server.data_dir)[0] == 73


def test_reading_a_live_log_is_not_fooled_by_frames_in_the_making(make_server, capsys):
    server = make_server("--wal-segment-bytes", "65536").start()
    with Load(server) as load:
        for _ in range(5):
            acknowledged = load.index
            assert told_digest(capsys, server.data_dir, "--force")[1] >= acknowledged
            status, out, err = kvdctl(capsys, "dump", "--force", server.data_dir)
            assert status == 0, err
            indexes = [json.loads(line).get("index") for line in out.splitlines()]
            indexes = [index for index in indexes if index is not None]
            assert indexes == list(range(2, indexes[-1] + 1))
            assert indexes[-1] >= acknowledged


# Damage: to find it, and to cut it off.


def flip(path, offset, bit=0x10):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes((byte ^ bit,)))


def harm(path, dice):
    """Damage one file of the truth somehow."""
    files = sorted([*path.glob("wal/*.wal"), *path.glob("snap/*.snap")])
    file = dice.choice(files)
    size = file.stat().st_size
    way = dice.choice(["flip", "flip", "flip", "truncate", "remove", "overwrite", "swap", "append"])
    match way:
        case "flip":
            flip(file, dice.randrange(size), 1 << dice.randrange(8))
        case "truncate":
            with file.open("r+b") as opened:
                opened.truncate(dice.randrange(size))
        case "remove":
            file.unlink()
        case "overwrite":
            with file.open("r+b") as opened:
                opened.seek(dice.randrange(size))
                opened.write(dice.randbytes(200))
        case "swap":
            other = dice.choice(files)
            one, two = file.read_bytes(), other.read_bytes()
            file.write_bytes(two)
            other.write_bytes(one)
        case "append":
            with file.open("ab") as opened:
                opened.write(dice.randbytes(100))


def start_outcome(path, caplog):
    """Open a store as a server would: whether it starts, and with how many warnings."""
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        try:
            Store.open(path, segment_bytes_max=SMALL_SEGMENT).close()
        except StorageError:
            return False, len(caplog.records)
    return True, len(caplog.records)


@pytest.mark.usefixtures("no_sync")
@pytest.mark.parametrize("index", ["clean", "gone"])
def test_verify_agrees_with_the_server_on_damaged_directories(tmp_path, capsys, caplog, index):
    data = make_store(tmp_path / "data", batches=12)
    kept = tmp_path / "kept"
    shutil.copytree(data, kept)
    outcomes = {True: 0, False: 0}
    for seed in range(25):
        # In place, so that the index keeps its inode and with it the mark that vouches for it.
        for room in ("wal", "snap", "quarantine"):
            shutil.rmtree(data / room)
            shutil.copytree(kept / room, data / room)
        if index == "gone":
            shutil.rmtree(data / "index")
            (data / "index").mkdir()
        harm(data, Random(seed))
        status, out, err = kvdctl(capsys, "verify", data)
        assert err == ""
        starts, warnings = start_outcome(data, caplog)
        outcomes[starts] += 1
        says = next(line for line in out.splitlines() if " start: " in line)
        assert says.startswith("good") == starts, f"seed {seed}: {out}"
        if not starts:
            assert status == 65, f"seed {seed}: {out}"
        elif status == 0:
            set_aside = [record for record in caplog.records if "set aside" in record.message]
            assert not set_aside, f"seed {seed}: {out}"
            assert warnings <= 1  # of a torn tail
    assert min(outcomes.values()) > 3


@pytest.mark.parametrize("stop", ["clean", "killed"])
def test_verify_knows_a_torn_tail_from_damage_after_a_clean_stop(tmp_path, capsys, caplog, stop):
    data = tmp_path / "data"
    store = open_store(data)
    write(store, Set(b"/a", b"1"))
    end = store.wal.position.offset
    store.close()
    if stop == "killed":
        (data / "index" / "CLEAN").unlink()
    (segment,) = (data / "wal").glob("*.wal")
    with segment.open("r+b") as file:
        file.seek(end + 48)  # behind the heartbeat that may follow
        file.write(b"half a frame")
    status, out, _ = kvdctl(capsys, "verify", data)
    assert (status, "note     wal/" in out) == ((65, False) if stop == "clean" else (0, True))
    if stop == "clean":
        assert kvdctl(capsys, "repair", "--truncate-at", 2, "--yes", data)[0] == 0
    assert start_outcome(data, caplog)[0]
    assert told_digest(capsys, data)[1] == 2


def test_verify_reads_the_index_and_compares_it_with_the_log(tmp_path, capsys):
    data = make_store(tmp_path / "data")
    status, out, _ = kvdctl(capsys, "verify", data)
    assert status == 0
    assert "good     index: agrees with the log" in out
    # An index of the same place, but with another value: a page of an older life, say.
    file = data / "index" / "data.mdb"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"v" * 300, b"w" * 300))
    status, out, _ = kvdctl(capsys, "verify", data)
    assert status == 65
    assert "DAMAGED  index:" in out
    assert "--rebuild-index" in out


def test_verify_and_repair_without_yes_change_no_byte(data, capsys):
    flip(sorted((data / "wal").glob("*.wal"))[-2], 4200)
    before = contents(data)
    status, out, _ = kvdctl(capsys, "verify", data)
    assert status == 65
    index = int(out.split("--truncate-at ")[1].split()[0])
    status, out, _ = kvdctl(capsys, "repair", "--truncate-at", index, data)
    assert status == 0
    assert "nothing was changed" in out
    assert contents(data) == before


def undo(kept, data):
    """Put back what a repair cut off, by its manifest."""
    manifest = json.loads((kept / "MANIFEST").read_text())
    tail = manifest["tail"]
    if tail:
        with (data / tail["file"]).open("r+b") as file:
            file.truncate(tail["file_size"])
            file.seek(tail["offset"])
            file.write((kept / "tail").read_bytes())
    for name in manifest["moved"]:
        if (kept / Path(name).name).exists():
            (kept / Path(name).name).rename(data / name)


def room_hashes(path):
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for room in ("wal", "snap")
        for file in (path / room).iterdir()
    }


@pytest.mark.parametrize("seed", range(12))
def test_the_repair_that_verify_names_makes_a_store_start_and_can_be_undone(
    data, capsys, caplog, seed
):
    dice = Random(seed)
    file = dice.choice(sorted((data / "wal").glob("*.wal")))
    flip(file, dice.randrange(file.stat().st_size), 1 << dice.randrange(8))
    original = room_hashes(data)
    status, out, _ = kvdctl(capsys, "verify", data)
    if "--truncate-at" not in out:
        # A bit of the very last frame (a torn tail), or before a snapshot: nothing is to be cut.
        assert ("Nothing is lost" in out) == (status != 0)
        assert start_outcome(data, caplog)[0]
        return
    index = int(out.split("--truncate-at ")[1].split()[0])
    status, out, err = kvdctl(capsys, "repair", "--truncate-at", index, "--yes", data)
    assert status == 0, err
    starts, _ = start_outcome(shutil.copytree(data, data.with_name("started")), caplog)
    assert starts
    assert told_digest(capsys, data)[1] == index
    status, again, _ = kvdctl(capsys, "repair", "--truncate-at", index, "--yes", data)
    assert (status, "nothing to cut off" in again) == (0, True)
    if "kept in" in out:
        kept = Path(out.split("kept in ")[1].split(";")[0])
        undo(kept, data)
    assert room_hashes(data) == original


class Crash(BaseException):
    """Ends a run as a power cut would."""


@pytest.mark.parametrize("survived", range(0, 24, 2))
def test_a_repair_that_was_cut_short_is_finished_by_a_second_one(
    data, capsys, monkeypatch, survived
):
    flip(sorted((data / "wal").glob("*.wal"))[-3], 4300)
    original = room_hashes(data)
    _, out, _ = kvdctl(capsys, "verify", data)
    argv = ["repair", "--truncate-at", out.split("--truncate-at ")[1].split()[0], "--yes", data]
    left = [survived]

    def dying(call):
        def wrapped(*args):
            left[0] -= 1
            if left[0] < 0:
                raise Crash
            return call(*args)

        return wrapped

    with monkeypatch.context() as patch:
        for name in ("rename", "truncate", "write_at", "sync_directory", "remove_if_there"):
            patch.setattr(disk, name, dying(getattr(disk, name)))
        try:
            kvdctl(capsys, *argv)
        except Crash:
            capsys.readouterr()
    assert kvdctl(capsys, *argv)[0] == 0
    assert kvdctl(capsys, "verify", data)[0] == 0
    assert told_digest(capsys, data)[1] == int(argv[2])
    repairs = sorted((data / "quarantine").iterdir(), reverse=True)
    for kept in repairs:
        if (kept / "MANIFEST").exists():
            undo(kept, data)
    assert room_hashes(data) == original


@pytest.mark.parametrize("snapshots_kept", [0, 1, 2])
def test_a_repair_gives_the_state_the_store_had_at_that_index(data, capsys, snapshots_kept):
    _, out, _ = kvdctl(capsys, "dump", data)
    records = [json.loads(line) for line in out.splitlines()]
    ends = {record["frame"]: record["index"] for record in records if "index" in record}
    taken = sorted(snapshots.read_header(p).index for p in snapshots.available(data / "snap"))
    low, high = [1, *taken, 10**9][snapshots_kept : snapshots_kept + 2]
    index = Random(5).choice([end for end in ends.values() if low < end < high][:-1])
    expected = told_digest(capsys, data, "--to-index", index)
    assert kvdctl(capsys, "repair", "--truncate-at", index, "--yes", data)[0] == 0
    assert told_digest(capsys, data) == expected
    store = open_store(data)
    write(store, Set(b"/on", b""), now_ns=store.applied.time_ns)
    assert store.applied.index == index + 1
    store.close()
    assert kvdctl(capsys, "verify", data)[0] == 0


def test_a_batch_is_not_cut_in_two(tmp_path, capsys):
    store = open_store(tmp_path / "data")
    write(store, Set(b"/a", b"1"))
    write(store, Set(b"/b", b"2"), Set(b"/c", b"3"), Set(b"/d", b"4"))
    store.close()
    before = contents(tmp_path / "data")
    for options in ([], ["--yes"]):
        status, _, err = kvdctl(capsys, "repair", "--truncate-at", 4, *options, tmp_path / "data")
        assert status == 64
        assert "indexes 3 to 5 were written as one batch" in err
        assert "truncate at 2 or at 5" in err
    assert contents(tmp_path / "data") == before


def test_a_refused_start_says_what_is_good_and_what_to_do(data, capsys):
    shutil.rmtree(data / "snap")
    (data / "snap").mkdir()
    flip(sorted((data / "wal").glob("*.wal"))[2], 4200)
    ended = run_kvd("--data-dir", str(data), "--listen-client-urls", "http://127.0.0.1:0")
    assert ended.returncode == 65
    assert "Nothing was changed" in ended.stderr
    assert f"To inspect: kvdctl verify {data}" in ended.stderr
    index = int(ended.stderr.split("Last good: index ")[1].split(".")[0])
    assert f"kvdctl repair --truncate-at {index} {data}" in ended.stderr
    assert kvdctl(capsys, "repair", "--truncate-at", index, "--yes", data)[0] == 0
    assert kvdctl(capsys, "verify", data)[0] == 0


@pytest.mark.parametrize("rebuild", [(), ("--rebuild-index",)], ids=["start", "rebuild"])
def test_what_a_later_version_wrote_is_not_cut_off(tmp_path, capsys, rebuild):
    path = tmp_path / "data"
    store = open_store(path)
    write(store, Set(b"/a", b"1"))
    txn = store.begin()
    store.encode(txn, [], NOW_NS)
    payload = bytearray(txn.payload)
    txn.end()
    payload[1] = VERSION_SHA256 + 1
    store.wal.append(bytes(payload), first_index=3, count=0)
    store.close()
    before = contents(path / "wal")
    url = "http://127.0.0.1:0"
    ended = run_kvd("--data-dir", str(path), "--listen-client-urls", url, *rebuild)
    assert ended.returncode == 78
    assert "a later version of kvd has written it" in ended.stderr
    assert "truncate" not in ended.stderr
    for argv in (["verify"], ["dump"], ["repair", "--yes", "--truncate-at", "2"], ["compact"]):
        status, _, err = kvdctl(capsys, *argv, path)
        assert status == 78, argv
        assert "a later version of kvd has written it" in err
    assert contents(path / "wal") == before


# The other verbs.


def test_dump_tells_every_record_and_where_it_stands(tmp_path, capsys):
    store = open_store(tmp_path / "data")
    store.start_term(NOW_NS, 17)
    write(store, Set(b"/a", b"text"), Set(b"/\xff", b"\x00\xfe", ttl_s=5))
    write(store, Delete(b"/a"))
    store.close()
    status, out, _ = kvdctl(capsys, "dump", tmp_path / "data")
    assert status == 0
    term, setting, first, second, third = map(json.loads, out.splitlines())
    assert (term["kind"], term["new_term"], term["position"]) == ("term", 1, 1)
    assert (setting["name"], setting["number"]) == ("history_limit", 17)
    assert (first["kind"], first["index"], first["key"], first["value"]) == ("set", 2, "/a", "text")
    assert base64.b64decode(second["key_base64"]) == b"/\xff"
    assert base64.b64decode(second["value_base64"]) == b"\x00\xfe"
    assert second["expiration_ns"] == NOW_NS + 5 * SECOND_NS
    assert first["frame"] == second["frame"] != third["frame"]
    assert first["time"] == "2023-11-14T22:13:20.000000000Z"
    assert "value" not in third
    for record in (term, first, third):
        file = tmp_path / "data" / record["file"]
        start = record["offset"]
        assert file.read_bytes()[start : start + 4] == frame.FRAME_MAGIC
    _, out, _ = kvdctl(capsys, "dump", "--from-index", 3, "--to-index", 3, tmp_path / "data")
    assert json.loads(out) == second


def test_dump_tells_no_secrets(tmp_path, capsys):
    store = open_store(tmp_path / "data")
    user = Entry(Kind.AUTH, "user", "al", b'{"roles":[]}', b"$2a$10$hash")
    enter(store, user, user._replace(document=None, secret=None))
    store.close()
    status, out, _ = kvdctl(capsys, "dump", tmp_path / "data")
    assert status == 0
    assert "hash" not in out
    made, gone = map(json.loads, out.splitlines())
    common = {"kind": "auth", "what": "user", "name": "al"}
    assert made.items() >= {**common, "document": '{"roles":[]}', "secret": "REDACTED"}.items()
    assert gone.items() >= {**common, "removed": True}.items()
    assert not made["removed"]
    assert not {"document", "secret"} & gone.keys()


def test_dump_tells_what_is_good_before_the_damage(data, capsys):
    flip(sorted((data / "wal").glob("*.wal"))[2], 4200)
    status, out, err = kvdctl(capsys, "dump", data)
    assert status == 65
    assert len(out.splitlines()) > 5
    assert "Last good: index" in err


def test_compact_keeps_the_present_and_lets_go_of_the_past(data, capsys):
    held = told_digest(capsys, data)
    log_before = sum(file.stat().st_size for file in (data / "wal").iterdir())
    status, out, err = kvdctl(capsys, "compact", data)
    assert (status, err) == (0, "")
    before, after = (int(word) for word in out.split() if word.isdigit())
    assert after < before
    assert sum(file.stat().st_size for file in (data / "wal").iterdir()) < log_before / 2
    assert told_digest(capsys, data) == held
    assert kvdctl(capsys, "verify", data)[0] == 0
    store = open_store(data)
    assert store.recovery.source == "clean stop"
    write(store, Set(b"/on", b""), now_ns=store.applied.time_ns)
    store.close()


def test_compact_of_an_empty_store_and_of_one_with_a_torn_tail(tmp_path, capsys):
    open_store(tmp_path / "empty").close()
    store = open_store(tmp_path / "torn")
    write(store, Set(b"/a", b"1"))
    end = store.wal.position.offset
    store.close()
    (tmp_path / "torn" / "index" / "CLEAN").unlink()
    (segment,) = (tmp_path / "torn" / "wal").glob("*.wal")
    with segment.open("r+b") as file:
        file.seek(end + 48)  # behind the heartbeat that may follow
        file.write(b"half a frame")
    for name, index in (("empty", 1), ("torn", 2)):
        status, _, err = kvdctl(capsys, "compact", tmp_path / name)
        assert (status, err) == (0, "")
        assert told_digest(capsys, tmp_path / name)[1] == index
        assert kvdctl(capsys, "verify", tmp_path / name)[0] == 0
    kept = next((tmp_path / "torn" / "quarantine").iterdir())
    assert b"half a frame" in kept.read_bytes()


def test_du_adds_up(data, capsys):
    status, out, _ = kvdctl(capsys, "du", data)
    assert status == 0
    *parts, total = (line.split() for line in out.splitlines()[1:])
    assert {part[3] for part in parts} >= {"FORMAT", "index/", "snap/", "wal/"}
    assert sum(int(part[1]) for part in parts) == int(total[1])
    assert int(total[1]) == sum(f.stat().st_size for f in data.rglob("*") if f.is_file())


def test_failpoints_names_every_failpoint(capsys):
    _, out, _ = kvdctl(capsys, "failpoints")
    assert [line.split()[0] for line in out.splitlines()] == list(failpoints.NAMES)


@pytest.mark.parametrize(
    "argv",
    [[], ["bogus"], ["repair", "x"], ["restore", "--to-time", "noon", "a", "b"], ["digest"]],
    ids=["no verb", "unknown verb", "no index", "no time", "no directory"],
)
def test_a_wrong_command_line_ends_with_the_status_for_that(capsys, argv):
    status, out, err = kvdctl(capsys, *argv)
    assert (status, out) == (64, "")
    assert err.startswith("kvdctl: ")


@pytest.mark.parametrize("verb", ["verify", "dump", "digest", "compact", "du", "repair"])
def test_what_is_no_data_directory_is_left_alone(tmp_path, capsys, verb):
    options = ["--truncate-at", "5", "--yes"] if verb == "repair" else []
    for path in (tmp_path / "missing", tmp_path):
        status, _, err = kvdctl(capsys, verb, *options, path)
        assert status in {65, 73}
        assert str(path) in err
    assert not list(tmp_path.iterdir())

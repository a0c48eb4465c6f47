"""storage/evidence.py: what names a frame of the log is believed, by the server and by `verify`."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from random import Random
from zlib import crc32

import pytest

from kvd.ctl.main import main as kvdctl
from kvd.storage.errors import CorruptLog, LogMissing
from kvd.storage.evidence import BEHIND_MAX
from kvd.storage.format.applied import Applied
from kvd.storage.format.node import CorruptIndex
from kvd.storage.format.sums import APPLIED_KEY
from kvd.storage.index.lmdb_file import look_up
from kvd.storage.snapshot import directory
from kvd.v2.commands import Set
from tests.support.stores import digest, live, open_store, write

ROOT = Path(__file__).parent.parent.parent
SMALL_SEGMENT = 8192

# Writes some keys, and dies.
WRITE_AND_DIE = """
import os, sys
from pathlib import Path
from kvd.v2.commands import Set
from tests.support.stores import digest, open_store, write
store = open_store(Path(sys.argv[1]))
for number in range(int(sys.argv[2])):
    write(store, Set(b"/%d" % number, b"v" * 100))
os.write(1, digest(store).encode())
os._exit(9)
"""


def write_and_die(path, writes):
    arguments = [sys.executable, "-c", WRITE_AND_DIE, path, str(writes)]
    ended = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 9, ended.stderr
    return ended.stdout


def add(path, first, last):
    """Write keys to a store and stop it cleanly."""
    store = open_store(path, segment_bytes_max=1 << 20)
    for number in range(first, last):
        write(store, Set(b"/%d" % number, b"v" * 100))
    held = digest(store)
    store.close()
    return held


def opened(path, **options):
    """Open a store; return its digest and where its index came from."""
    store = open_store(path, **options)
    try:
        return digest(store), store.recovery.source
    finally:
        store.close()


def verify(path, capsys):
    """Return the exit status of `kvdctl verify` and what it printed."""
    capsys.readouterr()
    status = kvdctl(["verify", str(path)])
    return status, capsys.readouterr().out


def set_in_place(path, data):
    """Give a file another content, in its inode."""
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


def last_segment(path):
    return max((path / "wal").glob("*.wal"))


def marked(path, name="CLEAN"):
    """Skip where a mark is missing: no kernel before 6.8 can name a mount for ever."""
    if not (path / "index" / name).exists():
        pytest.skip("statx of this kernel knows no unique mount id (Linux 6.8)")


def change_mark(path, **changes):
    line, _, _ = path.read_text().strip().rpartition(" ")
    line = json.dumps(json.loads(line) | changes, sort_keys=True)
    path.write_text(f"{line} {crc32(line.encode()):08x}\n")


# How far the log must go

WITNESSES = ["CLEAN", "RUNNING", "data.mdb", "a snapshot", "a broken snapshot"]


def keep_only(path, witness):
    """Have nothing but one witness name the last frame."""
    kept = path / "index" / witness
    if "snapshot" not in witness:
        assert kept.exists()
        for file in (path / "snap").iterdir():
            file.unlink()
    for file in list((path / "index").iterdir()):
        if file != kept:
            file.unlink()
    if witness == "a broken snapshot":
        (file,) = (path / "snap").iterdir()
        file.write_bytes(b"")
        file.rename(file.with_name(file.name + ".broken"))


@pytest.mark.parametrize("witness", WITNESSES)
@pytest.mark.parametrize("loss", ["cut", "gone"])
def test_a_log_that_ends_before_what_anything_names_is_refused(tmp_path, capsys, witness, loss):
    path = tmp_path / "data"
    add(path, 0, 1)
    before = last_segment(path).read_bytes()
    store = open_store(path)
    write(store, Set(b"/1", b"1"))
    store.flush()
    store.snapshot()
    store.close()
    if witness == "RUNNING":
        open_store(path).close()
        marked(path, "RUNNING")
    keep_only(path, witness)
    last_segment(path).write_bytes(before)
    if loss == "gone":
        last_segment(path).unlink()
    words = "frame 2 was acknowledged" if loss == "cut" else "mounted?"
    if witness == "a snapshot" and loss == "cut":
        words = "frame 2"
    for turn in range(3):  # each start knows as much as the one before
        status, out = verify(path, capsys)
        assert status == 65
        assert words in out
        with pytest.raises(CorruptLog, match=words.rstrip("?")) as refused:
            open_store(path, rebuild_index=turn == 1)
        assert "\n" not in str(refused.value)
    if loss == "cut":
        check_repair_works(path, capsys)


def check_repair_works(path, capsys):
    """Do what the refusal says; the store starts then, and nothing names what was given up."""
    out = verify(path, capsys)[1]
    index = out.split("--truncate-at ")[1].split()[0]
    assert kvdctl(["repair", "--truncate-at", index, str(path)]) == 0
    assert "nothing was changed" in capsys.readouterr().out
    assert kvdctl(["repair", "--truncate-at", index, "--yes", str(path)]) == 0
    status, out = verify(path, capsys)
    assert status == 0, out
    store = open_store(path)
    assert store.applied.index == int(index)
    write(store, Set(b"/another", b"life"))
    held = digest(store)
    store.close()
    assert opened(path, rebuild_index=True)[0] == held


@pytest.mark.parametrize("beside", ["a newer CLEAN", "a newer snapshot", "a newer RUNNING"])
@pytest.mark.parametrize("rebuild_index", [False, True])
def test_an_index_and_a_segment_of_an_earlier_moment_are_not_served(
    tmp_path, capsys, beside, rebuild_index
):
    path = tmp_path / "data"
    add(path, 0, 50)
    index, clean = path / "index" / "data.mdb", path / "index" / "CLEAN"
    older = [(file, file.read_bytes()) for file in (index, last_segment(path), clean)]
    store = open_store(path, segment_bytes_max=1 << 20)
    for number in range(50, 350):
        write(store, Set(b"/%d" % number, b"v" * 100))
    if beside == "a newer snapshot":
        store.flush()
        store.snapshot()
    store.close()
    if beside == "a newer RUNNING":
        open_store(path).close()
        marked(path, "RUNNING")
    for file, data in older[: 3 if beside == "a newer snapshot" else 2]:
        set_in_place(file, data)
    if beside == "a newer RUNNING":
        clean.unlink()
    for _ in range(2):
        with pytest.raises(CorruptLog, match="frame 350"):
            open_store(path, rebuild_index=rebuild_index)
        assert verify(path, capsys)[0] == 65


def test_marks_and_snapshots_of_another_store_name_nothing(tmp_path, capsys):
    path, other = tmp_path / "data", tmp_path / "other"
    held = add(path, 0, 5)
    store = open_store(other)
    live(store, Random(1), 60)
    store.flush()
    store.snapshot()
    store.close()
    open_store(other).close()
    for file in (other / "index").iterdir():
        shutil.copy(file, path / "index")
    for file in (other / "snap").iterdir():
        shutil.copy(file, path / "snap")
    assert verify(path, capsys)[1].count("a snapshot of another store") == 1
    found, source = opened(path)
    assert (found, source) == (held, "log")


def test_an_index_of_another_store_is_rebuilt_though_the_mark_fits(tmp_path, capsys, caplog):
    path, other = tmp_path / "data", tmp_path / "other"
    held = add(path, 0, 5)
    add(other, 5, 10)
    set_in_place(path / "index" / "data.mdb", (other / "index" / "data.mdb").read_bytes())
    status, out = verify(path, capsys)
    assert status == 65
    assert "index: it is another store's. Nothing is lost: a start rebuilds it" in out
    assert opened(path) == (held, "log")
    assert "is rebuilt: it is another store's" in caplog.text


# The index


@pytest.mark.parametrize("mark", ["CLEAN", "RUNNING"])
@pytest.mark.parametrize("copied", ["at once", "slowly, forwards", "slowly, backwards"])
def test_an_index_put_back_in_place_is_not_served(tmp_path, mark, copied):
    """On the same boot, in the same inode, so that the mark vouches for it.

    What is copied backwards has the newest head, and may have anything behind it: only what the
    index says of its own completeness can tell, here or when it is read.
    """
    path = tmp_path / "data"
    add(path, 0, 200)
    marked(path, mark)
    file = path / "index" / "data.mdb"
    pages = file.stat().st_size // 4096
    copy = bytearray(pages * 4096)
    store = open_store(path)
    order = list(range(pages))
    for turn, page in enumerate(order if "backwards" not in copied else reversed(order)):
        if copied != "at once":
            write(store, *(Set(b"/%d" % (turn * 7 % 200), b"w" * 90) for _ in range(2)))
        with file.open("rb") as opened_file:
            opened_file.seek(page * 4096)
            copy[page * 4096 : (page + 1) * 4096] = opened_file.read(4096)
    for number in range(200, 200 + BEHIND_MAX + 1):
        write(store, Set(b"/%d" % (number % 210), b"x"))
    held = digest(store)
    store.close()
    if mark == "RUNNING":
        (path / "index" / "CLEAN").unlink()
    data = bytes(copy).ljust(file.stat().st_size, b"\0")
    set_in_place(file, data)
    look = "from tests.storage.test_evidence import *; print(*opened(Path(sys.argv[1])))"
    for _ in range(3):  # one or two starts may end with "the next one rebuilds"
        arguments = [sys.executable, "-c", look, path]
        ended = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
        if ended.returncode == 0:
            break
        assert copied == "slowly, backwards"
    assert ended.stdout.split() == [held, "log"], ended.stderr
    assert copied == "slowly, backwards" or "rebuilt: " in ended.stderr


def test_an_index_older_than_the_kept_log_is_rebuilt(tmp_path, capsys, caplog):
    path = tmp_path / "data"
    index, clean = path / "index" / "data.mdb", path / "index" / "CLEAN"
    store = open_store(path, segment_bytes_max=SMALL_SEGMENT)
    live(store, Random(1), 20)
    store.close()
    older = index.read_bytes(), clean.read_bytes()
    store = open_store(path, segment_bytes_max=SMALL_SEGMENT)
    for seed in range(3):
        live(store, Random(seed), 30)
        store.flush()
        store.purge(store.snapshot())
    held = digest(store)
    store.close()
    # As an operator might: index and mark together, the mark naming the file that stands there.
    set_in_place(index, older[0])
    clean.write_bytes(older[1])
    size, inode = index.stat().st_size, index.stat().st_ino
    change_mark(clean, bytes=str(size), inode=str(inode))
    status, out = verify(path, capsys)
    assert status == 65
    assert "before the log that is kept. Nothing is lost: a start rebuilds it" in out
    assert "good     start: a server starts from snap/" in out
    found, source = opened(path, segment_bytes_max=SMALL_SEGMENT)
    assert found == held
    assert source.startswith("snapshot")
    assert "before the log that is kept" in caplog.text


# A log that is not there


def test_a_first_life_leaves_evidence_that_outlives_its_index(tmp_path, capsys):
    path = tmp_path / "data"
    write_and_die(path, 5)
    shutil.rmtree(path / "index")  # and the machine went, too
    last_segment(path).unlink()
    status, out = verify(path, capsys)
    assert status == 65
    assert f"is {path / 'wal'} mounted?" in out
    for verb in (
        ["backup"],
        ["restore"],
        ["digest"],
        ["compact"],
        ["repair", "--truncate-at", "1"],
    ):
        target = [str(tmp_path / "copy")] if verb[0] in {"backup", "restore"} else []
        assert kvdctl([*verb, str(path), *target]) == 65, verb
        assert not (tmp_path / "copy").exists()
    capsys.readouterr()
    for _ in range(2):
        with pytest.raises(LogMissing, match="FORMAT says that it was begun"):
            open_store(path)


def test_a_store_that_has_had_no_frame_starts_again(tmp_path, capsys):
    path = tmp_path / "data"
    open_store(path).close()
    for _ in range(2):
        assert not list((path / "wal").glob("*.wal"))
        assert verify(path, capsys)[0] == 0
        open_store(path).close()
    shutil.rmtree(path / "index")
    store = open_store(path)
    write(store, Set(b"/a", b"1"))
    store.close()


def test_a_store_of_an_older_version_says_that_its_log_was_begun_from_then_on(tmp_path):
    path = tmp_path / "data"
    held = add(path, 0, 5)
    line = json.loads((path / "FORMAT").read_text().splitlines()[0])
    assert line.pop("log") == "begun"
    text = json.dumps(line)
    (path / "FORMAT").write_text(f"{text}\n{crc32(text.encode()):08x}\n")
    assert opened(path)[0] == held
    shutil.rmtree(path / "index")
    last_segment(path).unlink()
    with pytest.raises(LogMissing):
        open_store(path)


def test_a_first_segment_on_a_full_disk_is_known_before_its_first_frame(tmp_path, monkeypatch):
    path = tmp_path / "data"
    store = open_store(path)
    with monkeypatch.context() as patch:
        refusal = OSError(28, os.strerror(28))

        def refuse(*_):
            raise refusal

        patch.setattr("kvd.storage.directory.data_directory.disk.write_file_durably", refuse)
        txn = store.begin()
        store.encode(txn, [b"\x82\x11\x01"], 1)
        with pytest.raises(Exception, match="No space"):
            store.append(txn)
        txn.end()
    assert not store.directory.log_begun
    write(store, Set(b"/a", b"1"))
    assert store.directory.log_begun
    assert '"log": "begun"' in (path / "FORMAT").read_text()
    held = digest(store)
    store.close()
    assert opened(path, rebuild_index=True)[0] == held


def test_a_first_life_killed_at_any_call_starts_again(tmp_path, monkeypatch):
    """Neither evidence without a segment nor an acknowledged frame without evidence."""
    from kvd.storage import disk  # noqa: PLC0415 -- to be patched

    class Killed(BaseException):
        pass

    names = ("create", "write_at", "sync_file", "sync_data", "rename", "sync_directory")
    real = {name: getattr(disk, name) for name in names}
    for dies_at in range(200):
        path = tmp_path / str(dies_at)
        store = open_store(path)
        left = dies_at

        def call(name, *args):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return real[name](*args)

        survived = False
        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(disk, name, lambda *args, name=name: call(name, *args))
            try:
                write(store, Set(b"/a", b"1"))
                survived = True
            except Killed:
                pass
        store._index.env.close()
        store.directory.close()
        shutil.rmtree(path / "index")
        begun = '"log": "begun"' in (path / "FORMAT").read_text()
        assert begun or not survived
        assert list((path / "wal").glob("*.wal")) or not begun
        again = open_store(path)
        assert again.applied.index == (2 if survived else again.applied.index)
        again.close()
        if survived:
            assert dies_at > 8
            return
    raise AssertionError("it never survived")


# The spare


@pytest.mark.parametrize("at", [0, 4096, 40_000, 65_535])
def test_a_byte_set_in_the_spare_is_no_part_of_the_log(tmp_path, capsys, at):
    path = tmp_path / "data"
    store = open_store(path)
    live(store, Random(1), 5)
    store.wal._spare.reserve()
    store.close()
    spare = path / "wal" / "next.tmp"
    with spare.open("r+b") as file:
        file.seek(at)
        file.write(b"\x10")
    status, out = verify(path, capsys)
    assert status == 0
    assert f"wal/next.tmp: holds something at offset {at}," in out
    store = open_store(path)
    assert not any(spare.read_bytes())
    while len(store.wal.segments) < 2:
        write(store, Set(b"/a", b"v" * 5000))
    held = digest(store)
    store.close()
    assert opened(path) == (held, "clean stop")


# Reading LMDB's file without LMDB


def test_a_row_is_found_wherever_in_the_tree_it_is(tmp_path):
    store = open_store(tmp_path / "data")
    for number in range(30):
        write(store, *(Set(b"/%d/%d" % (number, i), b"v") for i in range(30)))
    store.flush()
    file = tmp_path / "data" / "index" / "data.mdb"
    assert Applied.decode(look_up(file, b"meta", APPLIED_KEY)) == store.applied
    with store._index.env.begin() as txn:
        rows = list(txn.cursor(db=store._index.tables[b"nodes"]).iternext())
        for key, value in rows[::37]:
            assert look_up(file, b"nodes", key) == value
    assert len(rows) > 900
    assert look_up(file, b"nodes", b"\xff" * 20) is None
    assert look_up(file, b"no table", b"a") is None
    assert look_up(tmp_path / "nowhere", b"meta", APPLIED_KEY) is None
    store.close()


def test_of_a_damaged_file_no_row_that_is_wrong_is_found(tmp_path):
    store = open_store(tmp_path / "data")
    live(store, Random(1), 20)
    applied = store.applied
    store.close()
    file = tmp_path / "data" / "index" / "data.mdb"
    good = file.read_bytes()
    dice = Random(7)
    damaged = tmp_path / "data.mdb"
    for _ in range(300):
        data = bytearray(good)
        for _ in range(dice.choice((1, 4))):
            at = dice.randrange(len(data))
            data[at : at + 64] = dice.choice((bytes(64), dice.randbytes(64), b"\xff" * 64))
        damaged.write_bytes(data[: dice.choice((len(data), dice.randrange(len(data))))])
        found = look_up(damaged, b"meta", APPLIED_KEY)
        with suppress(CorruptIndex):
            assert Applied.decode(found).seq <= applied.seq  # an older state may be found


def test_a_snapshot_under_another_name_is_set_aside(tmp_path, caplog):
    path = tmp_path / "data"
    store = open_store(path)
    write(store, Set(b"/a", b"1"))
    store.flush()
    store.snapshot()
    write(store, Set(b"/a", b"2"))
    store.flush()
    store.snapshot()
    held = digest(store)
    store.close()
    newest, older = directory.available(path / "snap")
    newest.write_bytes(older.read_bytes())
    found, source = opened(path, rebuild_index=True)
    assert (found, source) == (held, f"snapshot {older.name}")
    assert f"the header is that of {older.name}" in caplog.text


def test_a_server_without_its_log_ends_with_65_and_one_line(tmp_path):
    path, log_dir = tmp_path / "data", tmp_path / "disk"
    store = open_store(path, wal_dir=log_dir)
    write(store, Set(b"/a", b"1"))
    store.close()
    shutil.rmtree(path / "index")
    for file in log_dir.iterdir():
        file.unlink()
    for command in (["kvd", "--data-dir"], ["kvd.ctl.main", "digest"]):
        arguments = [sys.executable, "-m", *command, path]
        if command[0] == "kvd":
            arguments += ["--wal-dir", log_dir, "--listen-client-urls", "http://127.0.0.1:0"]
        ended = subprocess.run(
            list(map(str, arguments)), cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 65
        assert ended.stdout == ""
        (line,) = ended.stderr.splitlines()
        assert f"is {log_dir} mounted?" in line
        assert "kvdctl repair" not in line


@pytest.mark.parametrize("behind", ["nothing", "a heartbeat", "an index", "a snapshot"])
def test_damage_to_the_end_of_the_log_is_refused_if_anything_stands_behind(tmp_path, behind):
    """Without, it looks like a write that never finished, however many frames were hit."""
    path = tmp_path / "data"
    add(path, 0, 10)
    store = open_store(path)
    begin = store.wal.position.offset
    for number in range(10, 24):
        write(store, Set(b"/%d" % number, b"v" * 100))
    end = store.wal.position.offset
    if behind == "a heartbeat":
        store.heartbeat()
    if behind == "a snapshot":
        store.flush()
        store.snapshot()
    store.close()
    (path / "index" / "CLEAN").unlink()
    if behind != "an index":
        (path / "index" / "data.mdb").unlink()
    with last_segment(path).open("r+b") as file:
        file.seek(begin)
        file.write(b"\xff" * (end - begin))
    if behind == "nothing":
        store = open_store(path)
        assert store.applied.index == 11
        store.close()
        (kept,) = (path / "quarantine").iterdir()
        assert kept.stat().st_size == end - begin
    else:
        with pytest.raises(CorruptLog):
            open_store(path)

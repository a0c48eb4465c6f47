"""storage/evidence.py: what names a frame of the log is believed, by the server and by `verify`."""

import shutil
import subprocess
import sys
from random import Random

import pytest

from kvd.ctl.main import main as kvdctl
from kvd.storage.errors import CorruptLog
from kvd.storage.evidence import BEHIND_MAX
from kvd.storage.snapshot import directory
from kvd.v2.commands import Set
from tests.support.stores import digest, live, open_store, write
from tests.support.witnesses import (
    ROOT,
    SMALL_SEGMENT,
    WITNESSES,
    add,
    change_mark,
    keep_only,
    last_segment,
    marked,
    opened,
    set_in_place,
    verify,
)


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
    look = "import sys; from pathlib import Path; from tests.support.witnesses import opened; "
    look += "print(*opened(Path(sys.argv[1])))"
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

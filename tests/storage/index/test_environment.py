"""environment.py: the index is used again only where nothing of it can have been lost."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvd.storage import disk
from kvd.storage.format.node import ROOT_ID, CorruptIndex, encode_key
from kvd.storage.index import environment, reuse
from kvd.storage.index.environment import RESERVE_BYTES, Index
from kvd.storage.index.integrity import completeness
from kvd.storage.replay import load
from kvd.v2.commands import Set
from tests.support.log_texts import log_text
from tests.support.stores import FOREVER_NS, NOW_NS, digest, open_store, write

ROOT = Path(__file__).parent.parent.parent.parent
NEEDLE = b"a value that is found again in the file"
PAGE = 4096

# What a damaged mapping costs at worst is the process: each look is taken in one of its own.
LOOK = """
import sys
from pathlib import Path
from tests.support.stores import digest, open_store
store = open_store(Path(sys.argv[1]))
print(store.recovery.source, digest(store))
store.close()
"""


def look(path):
    """Open a store in a process of its own; return where its state came from, and its digest."""
    arguments = [sys.executable, "-c", LOOK, str(path)]
    ended = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, (ended.returncode, ended.stderr)
    source, _, held = ended.stdout.strip().rpartition(" ")
    return source, held


def source_of(path):
    store = open_store(path)
    store.close()
    return store.recovery.source


def flip(path, offset):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes((byte ^ 1,)))


@pytest.fixture
def path(tmp_path):
    """A store that was stopped cleanly."""
    path = tmp_path / "data"
    store = open_store(path)
    write(store, Set(b"/k", NEEDLE, ttl_s=5))
    for i in range(20):
        write(store, *(Set(b"/%d/%d" % (i, j), b"v" * 100) for j in range(20)))
    store.close()
    return path


@pytest.fixture
def marked(path):
    """The same; skipped where the kernel has no name for a mount that it never gives twice."""
    if not (path / "index" / "RUNNING").exists():
        pytest.skip("statx of this kernel knows no unique mount id (Linux 6.8)")
    return path


# Marks


@pytest.mark.parametrize("end", ["clean stop", "rebuild"])
def test_a_last_page_that_was_freed_before_it_was_written_is_no_damage(tmp_path, caplog, end):
    """LMDB counts it, but the file does not reach it."""
    made = Index.create(tmp_path / "made")
    load(made, None)
    with made.env.begin(write=True) as txn:
        table = made.tables[b"events"]
        txn.put(b"12345678", b"v" * (1 << 20), db=table)
        txn.delete(b"12345678", db=table)
    assert made.file_bytes < made.used_bytes
    if end == "rebuild":
        made = made.replace(tmp_path / "index")
    made.mark_running()
    made.close(clean=True)
    reused = Index.reuse(made.directory)
    assert reused is not None, caplog.text
    reused[0].close(clean=False)


def test_after_a_clean_stop_it_is_used(path):
    assert (path / "index" / "CLEAN").exists()
    assert source_of(path) == "clean stop"


def test_while_it_is_in_use_it_is_not_called_clean(path):
    store = open_store(path)
    assert not (path / "index" / "CLEAN").exists()
    store.close()
    assert (path / "index" / "CLEAN").exists()


def test_one_of_an_older_version_that_lacks_a_table_is_rebuilt(tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as older:
        older.setattr(
            environment, "TABLES", [name for name in environment.TABLES if name != b"entries"]
        )
        store = open_store(tmp_path / "data")
        write(store, Set(b"/a", b"1"))
        store.close()
    assert source_of(tmp_path / "data") == "log"
    assert log_text("cannot be opened and will be rebuilt") in caplog.text


def test_it_is_private(path):
    assert (path / "index").stat().st_mode & 0o777 == 0o700
    assert (path / "index" / "data.mdb").stat().st_mode & 0o777 == 0o600


def test_without_any_mark_it_is_rebuilt(path):
    for mark in ("CLEAN", "RUNNING"):
        (path / "index" / mark).unlink(missing_ok=True)
    assert source_of(path) == "log"


def test_without_the_clean_mark_it_is_used_on_the_same_boot_and_mount(marked):
    (marked / "index" / "CLEAN").unlink()
    assert source_of(marked) == "same boot"


@pytest.mark.parametrize("field", ["boot", "mount", "device", "inode"])
def test_on_another_boot_or_mount_or_in_another_file_it_is_rebuilt(marked, monkeypatch, field):
    (marked / "index" / "CLEAN").unlink()
    real = reuse.fingerprint

    def another(directory, **options):
        return real(directory, **options) | {field: "another"}

    with monkeypatch.context() as patch:
        patch.setattr(reuse, "fingerprint", another)
        assert source_of(marked) == "log"


def test_where_the_kernel_cannot_name_the_mount_it_is_rebuilt(path, monkeypatch):
    monkeypatch.setattr(reuse, "_unique_mount_id", lambda _: None)
    assert source_of(path) == "clean stop"
    assert not (path / "index" / "RUNNING").exists()
    (path / "index" / "CLEAN").unlink()
    assert source_of(path) == "log"


def test_room_for_removals_is_reserved_and_costs_nothing_but_room(path):
    store = open_store(path)
    data = path / "index" / "data.mdb"
    small = data.stat().st_size
    assert store.index.reserve_is_low()
    store.index.reserve()
    assert not store.index.reserve_is_low()
    assert data.stat().st_blocks * 512 >= small + RESERVE_BYTES
    held = digest(store)
    store.close()
    store = open_store(path)
    assert store.recovery.source == "clean stop"
    assert digest(store) == held
    assert not store.index.reserve_is_low()
    store.close()


def test_on_a_full_disk_a_mark_is_left_out_and_the_index_rebuilt(path, monkeypatch, caplog):
    (path / "index" / "RUNNING").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_at", refuse_to_write)
        store = open_store(path)
        held = digest(store)
        store.close()
    assert "RUNNING could not be written" in caplog.text
    assert not (path / "index" / "CLEAN").exists()
    store = open_store(path)
    assert store.recovery.source == "log"
    assert digest(store) == held
    store.close()


def refuse_to_write(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"{}", b'{"boot": "1"} 00000000\n', b"[" * 100_000 + b" 0"]
)
def test_a_damaged_mark_is_none(path, content):
    for mark in ("CLEAN", "RUNNING"):
        (path / "index" / mark).write_bytes(content)
    assert source_of(path) == "log"


def test_a_copy_of_it_is_rebuilt(path, tmp_path):
    assert source_of(shutil.copytree(path, tmp_path / "copy")) == "log"


def test_after_an_io_error_it_is_rebuilt(path):
    (path / "index" / "CLEAN").unlink()
    directory = path / "index"
    opened = Index.create(directory)
    load(opened, None)
    opened.mark_running()
    opened.distrust()
    opened.close(clean=False)
    assert Index.reuse(directory) is None


def test_it_is_rebuilt_when_it_is_gone(path):
    held = look(path)[1]
    shutil.rmtree(path / "index")
    assert look(path) == ("log", held)


# Damage


@pytest.mark.parametrize(
    "keep", [0, 1, PAGE, 2 * PAGE, 3 * PAGE, -PAGE, -1], ids=lambda keep: f"{keep} bytes"
)
@pytest.mark.parametrize("mark", ["CLEAN", "RUNNING"])
def test_a_file_cut_short_is_rebuilt_and_never_touched(path, keep, mark):
    held = look(path)[1]
    data = path / "index" / "data.mdb"
    with data.open("r+b") as file:
        file.truncate(keep if keep >= 0 else data.stat().st_size + keep)
    if mark == "RUNNING":
        (path / "index" / "CLEAN").unlink()
    assert look(path) == ("log", held)


def test_bytes_that_are_no_index_are_rebuilt(path):
    held = look(path)[1]
    data = path / "index" / "data.mdb"
    with data.open("r+b") as file:
        file.write(b"\xa5" * 2 * PAGE)
    assert look(path) == ("log", held)


@pytest.fixture
def large(monkeypatch):
    """Every store is so large that its nodes are proved once it is open."""
    monkeypatch.setattr(completeness, "_ROWS_AT_START", 0)


@pytest.mark.usefixtures("large")
def test_a_damaged_record_is_refused_and_cured_by_a_rebuild(path):
    store = open_store(path)
    store.start_term(NOW_NS, 40)  # the history does not hold the value any more
    write(store, Set(b"/1/1", b"w"))
    store.close()
    held = look(path)[1]
    damage_needle(path)
    store = open_store(path)
    assert store.recovery.source == "clean stop"
    with pytest.raises(CorruptIndex, match="checksum"):
        store.view.find(b"/k")
    assert store.view.find(b"/1/1").value == b"w"
    store.close()
    store = open_store(path, rebuild_index=True)
    assert digest(store) == held
    store.close()


def test_a_damaged_record_of_the_history_is_found_at_the_start(path):
    held = look(path)[1]
    damage_needle(path)
    assert look(path) == ("log", held)


def damage_needle(path):
    data = path / "index" / "data.mdb"
    content = data.read_bytes()
    at = content.find(NEEDLE)
    while at >= 0:
        flip(data, at)
        at = content.find(NEEDLE, at + 1)


@pytest.mark.usefixtures("large")
def test_a_damaged_expiration_is_refused(path):
    store = open_store(path)
    expiration_ns = store.state.flushed().first_due_ns()
    store.close()
    data = path / "index" / "data.mdb"
    content = data.read_bytes()
    row_key = expiration_ns.to_bytes(8, "big") + encode_key(ROOT_ID, b"k")
    found = 0
    at = content.find(row_key)
    while at >= 0:
        flip(data, at + len(row_key) + 4)  # the first byte of the path, behind its checksum
        found += 1
        at = content.find(row_key, at + 1)
    assert found
    store = open_store(path)
    txn = store.begin()
    with pytest.raises(CorruptIndex, match="expiration record"):
        txn.due(FOREVER_NS, 10)
    txn.end()
    store.close()

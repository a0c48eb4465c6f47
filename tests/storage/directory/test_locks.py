"""Locks of a data directory, and a server whose files are removed or replaced."""

import contextlib
import fcntl
import os
import shutil
import stat

import pytest

from kvd.storage.directory.data_directory import DataDirectory
from kvd.storage.errors import DirectoryLocked
from kvd.storage.store import Options, Store
from kvd.storage.tools.source import reading
from kvd.v2.commands import Set
from tests.support.log_texts import log_text
from tests.support.server import run_kvd
from tests.support.stores import digest, open_store, write
from tests.support.strangers import everything


def copies(data, copy):
    shutil.copytree(data, copy, symlinks=True)


def another_link(data, copy):
    shutil.copytree(data, copy, symlinks=True)
    (copy / "wal").unlink()
    (copy / "wal").symlink_to((data / "wal").resolve())


def linked(data, copy):
    shutil.copytree(data, copy, symlinks=True, copy_function=os.link)


@pytest.mark.parametrize("make", [copies, another_link, linked])
def test_the_log_is_locked_for_every_copy_of_the_directory(tmp_path, make):
    data, copy = tmp_path / "data", tmp_path / "copy"
    store = Store.open(data, Options(wal_dir=tmp_path / "log"))
    make(data, copy)
    with pytest.raises(DirectoryLocked) as refused:
        Store.open(copy)
    assert refused.value.exit_status == 73
    with pytest.raises(DirectoryLocked), reading(copy):
        pass
    with reading(copy, force=True) as source:
        assert source.live
    store.close()
    Store.open(copy).close()


def test_a_lock_with_another_name_locks_and_is_left_as_it_is(tmp_path):
    store, outside = tmp_path / "store", tmp_path / "outside"
    Store.open(store).close()
    outside.write_text("precious")
    (store / "LOCK").unlink()
    (store / "LOCK").hardlink_to(outside)
    opened = Store.open(store)
    with pytest.raises(DirectoryLocked):
        Store.open(store)
    opened.close()
    assert outside.read_text() == "precious"


def test_a_lock_that_was_removed_locks_still(tmp_path):
    directory = DataDirectory.open(tmp_path)
    (tmp_path / "LOCK").unlink()
    with pytest.raises(DirectoryLocked, match="in use by another process"):
        DataDirectory.open(tmp_path)
    with pytest.raises(DirectoryLocked), reading(tmp_path):
        pass
    directory.close()
    DataDirectory.open(tmp_path).close()


def test_an_older_version_is_kept_out_and_keeps_out(tmp_path):
    """One that locks the file alone."""
    directory = DataDirectory.open(tmp_path)
    with (tmp_path / "LOCK").open("rb") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        directory.close()
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(DirectoryLocked):
            DataDirectory.open(tmp_path)


def test_where_directories_cannot_be_locked_the_file_is(tmp_path, monkeypatch):
    real = fcntl.flock

    def as_on_nfs(fd, operation):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(9, "Bad file descriptor")
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", as_on_nfs)
    directory = DataDirectory.open(tmp_path)
    with pytest.raises(DirectoryLocked, match="in use by process"):
        DataDirectory.open(tmp_path)
    directory.close()


def renamed(data):
    data.rename(data.with_name("moved"))


def removed(data):
    shutil.rmtree(data)


def replaced(data):
    copy = data.with_name("new")
    shutil.copytree(data, copy)
    data.rename(data.with_name("moved"))
    copy.rename(data)


def log_replaced(data):
    copy = data.with_name("new")
    shutil.copytree(data / "wal", copy)
    (data / "wal").rename(data.with_name("moved"))
    copy.rename(data / "wal")


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
@pytest.mark.parametrize("happens", [renamed, removed, replaced, log_replaced])
def test_a_server_whose_directory_is_gone_ends(make_server, happens, busy):
    server = make_server().start()
    data = server.data_dir
    assert server.client().put("/a", "1").status == 201
    if happens is replaced:
        shutil.copytree(data, data.with_name("as it was"))
    happens(data)
    left = everything(data) if data.exists() and happens is replaced else None
    if busy:
        with contextlib.suppress(OSError):  # the connection may end without an answer
            assert server.client().put("/b", "2").status == 500
    assert server.wait() == 73
    last = server.stderr.splitlines()[-1]
    assert " CRITICAL " in last
    assert "while it was in use; stopping at once" in last
    if left is not None:
        assert everything(data) == left


def index_removed(data):
    shutil.rmtree(data / "index")


def index_file_removed(data):
    (data / "index" / "data.mdb").unlink()


def index_replaced(data):
    copy = shutil.copy(data / "index" / "data.mdb", data.with_name("new"))
    copy.rename(data / "index" / "data.mdb")


@pytest.mark.parametrize("happens", [index_removed, index_file_removed, index_replaced])
def test_a_server_whose_index_is_gone_ends_and_the_next_start_rebuilds_it(make_server, happens):
    server = make_server().start()
    assert server.client().put("/a", "1").status == 201
    happens(server.data_dir)
    assert server.wait() == 73
    assert "data.mdb: was " in server.stderr.splitlines()[-1]
    assert server.start().client().get("/a").json["node"]["value"] == "1"


def test_a_stop_vouches_for_no_index_but_its_own(tmp_path):
    store = open_store(tmp_path / "data")
    write(store, Set(b"/a", b"1"))
    held = digest(store)
    index_replaced(tmp_path / "data")
    with pytest.raises(OSError, match="mdb: was replaced by another one"):
        store.close()
    again = open_store(tmp_path / "data")
    assert (digest(again), again.recovery.source) == (held, "log")
    again.close()


def test_a_server_makes_its_lock_again(make_server):
    server = make_server().start()
    (server.data_dir / "LOCK").unlink()
    url = "http://127.0.0.1:0"
    second = run_kvd("--data-dir", str(server.data_dir), "--listen-client-urls", url)
    assert second.returncode == 73
    server.wait_for_log(log_text("LOCK was removed or replaced, and was made again"))
    assert f"process {server.pid} " in (server.data_dir / "LOCK").read_text()
    assert server.client().put("/a", "1").status == 201
    assert server.terminate() == 0


def test_a_server_whose_lock_another_one_has_ends(make_server):
    server = make_server().start()
    path = server.data_dir / "LOCK"
    with path.with_name("new").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path.with_name("new").rename(path)
        assert server.wait() == 73
    assert "which has replaced LOCK" in server.stderr


def test_a_stop_leaves_alone_what_is_not_its_own(tmp_path):
    store = open_store(tmp_path / "data")
    write(store, Set(b"/a", b"1"))
    held = digest(store)
    replaced(tmp_path / "data")
    before = everything(tmp_path / "data")
    with pytest.raises(OSError, match="was replaced by another one while it was in use"):
        store.close()
    assert everything(tmp_path / "data") == before
    again = open_store(tmp_path / "moved")
    assert digest(again) == held
    again.close()


def test_a_log_that_is_elsewhere_gets_no_new_segment(tmp_path):
    store = open_store(tmp_path / "data", segment_bytes_max=8192)
    write(store, Set(b"/a", b"1"))
    replaced(tmp_path / "data")
    before = everything(tmp_path / "data")
    store.wal.prepare_next()
    with pytest.raises(OSError, match="was replaced"):
        store.wal.append(b"x" * 8000, first_index=1, count=1, oversize=True)
    with pytest.raises(OSError, match="closed to writing"):
        store.wal.append(b"x", first_index=1, count=1)
    store.flush()
    with pytest.raises(OSError, match="was replaced"):
        store.snapshot()
    assert everything(tmp_path / "data") == before

"""claim.py: the owner and the content of a directory, checked before anything is changed.

Each refusal is one line, and leaves everything as it was: here and where links lead.
"""

import os

import pytest

from kvd.storage.errors import DirectoryUnusable, StorageError
from kvd.storage.store import Options, Store
from kvd.storage.tools.backup import backup
from kvd.storage.tools.bulk_load import bulk_load
from kvd.storage.tools.restore import restore
from kvd.storage.tools.source import reading
from tests.support.stores import open_store
from tests.support.strangers import STRAYS, everything, put_stray


@pytest.mark.parametrize("name", STRAYS)
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o775])
def test_a_store_begins_on_a_disk_of_its_own(tmp_path, name, mode):
    data, log = tmp_path / "data", tmp_path / "log"
    strays = [put_stray(directory, name) for directory in (data, data / "snap", log)]
    for directory in (data, log):
        directory.chmod(mode)
    Store.open(data, Options(wal_dir=log)).close()
    Store.open(data, Options(wal_dir=log)).close()
    assert all(path.exists() for path in strays)
    assert (data / "wal").resolve() == log
    assert [path.stat().st_mode & 0o777 for path in (data, log)] == [0o700, 0o700]


@pytest.mark.parametrize("name", STRAYS)
def test_the_log_of_a_store_may_be_mounted_where_it_is_looked_for(tmp_path, name):
    put_stray(tmp_path / "data" / "wal", name)
    Store.open(tmp_path / "data").close()


def test_what_others_left_unfinished_beside_the_log_stays(tmp_path):
    put_stray(tmp_path / "log", "download.tmp")
    Store.open(tmp_path / "data", Options(wal_dir=tmp_path / "log")).close()
    Store.open(tmp_path / "data").close()
    assert (tmp_path / "log" / "download.tmp").exists()


@pytest.mark.parametrize("name", STRAYS)
@pytest.mark.parametrize("make", ["backup", "restore", "bulk_load"])
def test_tools_fill_the_root_of_a_disk(stopped, tmp_path, name, make):
    target = tmp_path / "disk"
    stray = put_stray(target, name)
    target.chmod(0o755)
    with reading(stopped) as source:
        if make == "backup":
            backup(source, target)
        elif make == "restore":
            restore(source, target)
        else:
            bulk_load(target, [(b"/%d" % i, b"v" * 100) for i in range(20)], time_ns=1)
    assert stray.exists()
    assert list(target.glob("*.partial")) + list(target.glob(".partial")) == []
    assert target.stat().st_mode & 0o777 == 0o700
    store = open_store(target)
    assert store.view.find(b"/7").value == b"v" * 100
    store.close()


def test_a_tool_that_fails_leaves_the_root_of_a_disk_as_it_was(stopped, tmp_path):
    target = tmp_path / "disk"
    put_stray(target, "lost+found/")
    with reading(stopped) as source, pytest.raises(StorageError):
        restore(source, target, index=1_000)
    assert [path.name for path in target.iterdir()] == ["lost+found"]


def test_a_tool_writes_nothing_where_a_link_leads_that_it_finds(stopped, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "copy.partial").symlink_to(outside)
    with reading(stopped) as source, pytest.raises(OSError, match="File exists"):
        backup(source, tmp_path / "copy")
    assert list(outside.iterdir()) == []


def foreign_log(tmp_path):
    put_stray(tmp_path / "log", "photos/")
    return {"wal_dir": tmp_path / "log"}


def log_of_another(tmp_path):
    Store.open(tmp_path / "other", Options(wal_dir=tmp_path / "log")).close()
    put_stray(tmp_path / "log", "0-1.wal")
    return {"wal_dir": tmp_path / "log"}


def log_in_use(tmp_path):
    Store.open(tmp_path / "other", Options(wal_dir=tmp_path / "log"))
    return {"wal_dir": tmp_path / "log"}


def log_that_is_a_file(tmp_path):
    (tmp_path / "log").touch()
    return {"wal_dir": tmp_path / "log"}


def log_below_a_file(tmp_path):
    (tmp_path / "log").touch()
    return {"wal_dir": tmp_path / "log" / "below"}


def rooms_of_another(tmp_path):
    put_stray(tmp_path / "data" / "snap", "0-1.snap")
    return {}


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(
    "obstacle",
    [
        foreign_log,
        log_of_another,
        log_in_use,
        log_that_is_a_file,
        log_below_a_file,
        rooms_of_another,
    ],
)
def test_a_refused_start_leaves_nothing_behind(tmp_path, obstacle, deep):
    options = obstacle(tmp_path)
    data = tmp_path / "data" / "below" if deep and options else tmp_path / "data"
    before = everything(tmp_path)
    with pytest.raises(StorageError):
        Store.open(data, Options(**options))
    assert everything(tmp_path) == before


def test_a_disk_that_refuses_at_the_end_leaves_nothing_behind(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    (tmp_path / "log").mkdir(mode=0o700)
    before = everything(tmp_path)
    monkeypatch.setattr("kvd.storage.disk.write_file_durably", refuse)
    with pytest.raises(DirectoryUnusable, match="No space left"):
        Store.open(tmp_path / "a" / "data", Options(wal_dir=tmp_path / "log"))
    assert everything(tmp_path) == before


def of_another_user(path):
    path.touch()
    os.chown(path, 12345, -1)


def ours(path):
    path.mkdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize(
    ("mode", "name", "make"),
    [
        (0o1777, "x", ours),
        (0o1777, ".X11-unix", ours),
        (0o1777, "x", of_another_user),
        (0o777, "x", ours),
        (0o775, "x", of_another_user),
        (0o775, ".x", of_another_user),
        (0o755, "x", of_another_user),
        (0o755, "bin", ours),
        (0o1777, "FORMAT", of_another_user),
    ],
)
@pytest.mark.parametrize("place", ["data", "log"])
def test_a_directory_that_others_use_is_refused_before_anything(tmp_path, mode, name, make, place):
    used = tmp_path / "used"
    used.mkdir()
    make(used / name)
    used.chmod(mode)
    before = everything(tmp_path)
    data = used if place == "data" else tmp_path / "data"
    with pytest.raises(DirectoryUnusable, match=r"is open to others \(mode \d+\)") as refused:
        Store.open(data, Options(wal_dir=used if place == "log" else None))
    assert refused.value.exit_status == 73
    assert everything(tmp_path) == before


def test_an_empty_directory_open_to_all_users_is_taken(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o1777)
    Store.open(tmp_path / "data").close()
    assert (tmp_path / "data").stat().st_mode & 0o7777 == 0o700

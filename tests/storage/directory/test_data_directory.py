"""storage/directory/data_directory.py: one directory, one process, one identity."""

import errno
import json
import logging
import os
import subprocess
import sys
from zlib import crc32

import pytest

from kvd.storage import disk
from kvd.storage.directory.data_directory import DataDirectory
from kvd.storage.errors import EX_CONFIG, DirectoryLocked, DirectoryUnusable
from kvd.storage.store import Options, Store

SUBDIRECTORIES = ("wal", "snap", "index", "quarantine")


def test_a_new_directory_gets_everything(tmp_path):
    path = tmp_path / "a" / "b"
    directory = DataDirectory.open(path)
    assert directory.created
    assert directory.path == path
    assert [directory.wal, directory.snap, directory.index, directory.quarantine] == [
        path / name for name in SUBDIRECTORIES
    ]
    for private in (path, *(path / name for name in SUBDIRECTORIES)):
        assert private.stat().st_mode & 0o777 == 0o700
    for file in ("FORMAT", "LOCK"):
        assert (path / file).stat().st_mode & 0o777 == 0o600
    assert len(directory.identity.store_uuid) == 16
    assert 0 < directory.identity.cluster_id < 2**64
    assert 0 < directory.identity.member_id < 2**64
    directory.close()


def test_the_identity_stays(tmp_path):
    first = DataDirectory.open(tmp_path)
    first.close()
    second = DataDirectory.open(tmp_path)
    assert second.identity == first.identity
    assert (first.created, second.created) == (True, False)
    second.close()


def test_two_stores_have_nothing_in_common(tmp_path):
    identities = []
    for name in ("a", "b"):
        directory = DataDirectory.open(tmp_path / name)
        identities.append(directory.identity)
        directory.close()
    a, b = identities
    assert not set(a) & set(b)


def test_a_second_open_is_refused_and_names_the_holder(tmp_path):
    directory = DataDirectory.open(tmp_path)
    for path in (tmp_path, link_to(tmp_path)):
        with pytest.raises(DirectoryLocked, match=f"in use by process {os.getpid()} on ") as caught:
            DataDirectory.open(path)
        assert caught.value.exit_status == 73
    directory.close()
    DataDirectory.open(tmp_path).close()


def link_to(path):
    link = path.with_name(path.name + "-link")
    link.symlink_to(path)
    return link


def test_the_lock_of_a_dead_process_is_no_obstacle(tmp_path):
    code = (
        "import os, pathlib, sys\n"
        "from kvd.storage.directory.data_directory import DataDirectory\n"
        "DataDirectory.open(pathlib.Path(sys.argv[1]))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert "process" in (tmp_path / "LOCK").read_text()
    directory = DataDirectory.open(tmp_path)
    assert not directory.created
    directory.close()


@pytest.mark.parametrize("mode", [0o755, 0o775, 0o777, 0o701])
def test_a_directory_of_ones_own_is_made_private_with_one_line(tmp_path, caplog, mode):
    path = tmp_path / "data"
    path.mkdir()
    path.chmod(mode)
    (path / ".gitkeep").touch()
    with caplog.at_level(logging.INFO):
        DataDirectory.open(path).close()
        DataDirectory.open(path).close()
    assert path.stat().st_mode & 0o7777 == 0o700
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.getMessage().startswith(f"{path}: changed mode from {mode:04o} to 0700 ")
    assert (path / ".gitkeep").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "data"
    path.mkdir(mode=0o755)
    os.chown(path, 12345, -1)
    with pytest.raises(DirectoryUnusable, match="belongs to user 12345") as caught:
        DataDirectory.open(path)
    assert caught.value.exit_status == 73
    assert list(path.iterdir()) == []
    assert path.stat().st_mode & 0o777 == 0o755


def test_a_file_is_no_directory(tmp_path):
    path = tmp_path / "data"
    path.touch()
    with pytest.raises(DirectoryUnusable, match="is not a directory"):
        DataDirectory.open(path)
    with pytest.raises(DirectoryUnusable):
        DataDirectory.open(path / "below")


def test_what_the_system_refuses_is_reported_in_one_line(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "the file")

    monkeypatch.setattr(disk, "create", refuse)
    with pytest.raises(DirectoryUnusable, match=r"^the file: Read-only file system$"):
        DataDirectory.open(tmp_path)


@pytest.mark.parametrize("place", ["the data", "the log"])
def test_a_network_file_system_is_refused_unless_it_is_asked_for(tmp_path, monkeypatch, place):
    log = tmp_path / "log"
    remote = log if place == "the log" else tmp_path / "data"
    remote.mkdir()
    monkeypatch.setattr(
        disk, "network_file_system", lambda path: "NFS" if path.resolve() == remote else None
    )
    with pytest.raises(DirectoryUnusable, match=r"\(NFS\), .* --allow-network-fs$") as refused:
        Store.open(tmp_path / "data", Options(wal_dir=log))
    assert refused.value.exit_status == EX_CONFIG
    assert list(remote.iterdir()) == []
    Store.open(tmp_path / "data", Options(wal_dir=log, allow_network_fs=True)).close()
    # The log is found there though nobody names it.
    with pytest.raises(DirectoryUnusable, match="NFS"):
        Store.open(tmp_path / "data")


def test_a_local_file_system_is_known_as_one(tmp_path):
    assert disk.network_file_system(tmp_path) is None
    assert disk.network_file_system(tmp_path / "not there") is None


def set_format(path, **changes):
    file = path / "FORMAT"
    line = json.dumps(json.loads(file.read_text().splitlines()[0]) | changes)
    file.write_text(f"{line}\n{crc32(line.encode()):08x}\n")


def test_a_newer_format_is_refused_with_both_versions(tmp_path):
    DataDirectory.open(tmp_path).close()
    set_format(tmp_path, format=3, min_reader=2)
    with pytest.raises(DirectoryUnusable, match=r"format 3.* 2 or later.* format 1") as caught:
        DataDirectory.open(tmp_path)
    assert caught.value.exit_status == 78


def test_a_newer_format_that_this_one_may_read_is_read(tmp_path):
    first = DataDirectory.open(tmp_path)
    first.close()
    set_format(tmp_path, format=2)
    second = DataDirectory.open(tmp_path)
    assert second.identity == first.identity
    second.close()


def test_every_flipped_bit_of_the_format_is_refused(tmp_path):
    DataDirectory.open(tmp_path).close()
    file = tmp_path / "FORMAT"
    data = file.read_bytes()
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        with pytest.raises(DirectoryUnusable) as caught:
            DataDirectory.open(tmp_path)
        assert caught.value.exit_status == 65


def test_an_empty_format_is_refused(tmp_path):
    DataDirectory.open(tmp_path).close()
    (tmp_path / "FORMAT").write_bytes(b"")
    with pytest.raises(DirectoryUnusable, match="checksum"):
        DataDirectory.open(tmp_path)


@pytest.mark.parametrize(
    "file", ["wal/0-1.wal", "snap/1-1.snap", "snap/1-1.snap.broken", "index/CLEAN"]
)
def test_data_without_a_format_is_refused(tmp_path, file):
    DataDirectory.open(tmp_path).close()
    (tmp_path / "FORMAT").unlink()
    (tmp_path / file).touch()
    with pytest.raises(DirectoryUnusable, match=f"holds {file}, but no FORMAT") as caught:
        DataDirectory.open(tmp_path)
    assert caught.value.exit_status == 65
    assert not (tmp_path / "FORMAT").exists()


@pytest.mark.parametrize("name", ["wal", "snap"])
def test_a_store_that_lost_a_subdirectory_is_refused(tmp_path, name):
    DataDirectory.open(tmp_path).close()
    (tmp_path / name).rmdir()
    with pytest.raises(DirectoryUnusable, match=f"{name}/ is missing"):
        DataDirectory.open(tmp_path)


def test_subdirectories_that_hold_nothing_needed_are_made_again(tmp_path):
    DataDirectory.open(tmp_path).close()
    (tmp_path / "index").rmdir()
    (tmp_path / "quarantine").rmdir()
    directory = DataDirectory.open(tmp_path)
    assert directory.index.is_dir()
    assert directory.quarantine.is_dir()
    directory.close()


class Killed(BaseException):
    """The process ends here."""


def test_a_first_start_killed_anywhere_is_started_again(tmp_path, monkeypatch):
    calls = ("create", "write_at", "sync_file", "rename", "sync_directory", "lock_exclusive")
    real = {name: getattr(disk, name) for name in calls}
    deaths = 0
    for dies_at in range(100):
        path = tmp_path / str(dies_at)
        left = dies_at

        def call(name, *args):
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return real[name](*args)

        with monkeypatch.context() as patch:
            for name in calls:
                patch.setattr(disk, name, lambda *args, name=name: call(name, *args))
            try:
                DataDirectory.open(path).close()
            except Killed:
                deaths += 1
            else:
                break
        DataDirectory.open(path).close()
        directory = DataDirectory.open(path)
        assert not directory.created
        assert not list(path.rglob("*.tmp"))
        directory.close()
    assert deaths > 8


def test_what_a_crash_left_unfinished_is_removed_but_for_the_next_segment(tmp_path):
    DataDirectory.open(tmp_path).close()
    for name in ("FORMAT.tmp", "snap/snapshot.tmp", "index/CLEAN.tmp", "wal/x.wal.tmp"):
        (tmp_path / name).touch()
    kept = [tmp_path / "wal" / "next.tmp", tmp_path / "snap" / "1-1.snap.broken"]
    for path in kept:
        path.touch()
    DataDirectory.open(tmp_path).close()
    assert [path for path in kept if not path.exists()] == []
    assert list(tmp_path.rglob("*.tmp")) == kept[:1]


def test_a_first_start_that_is_refused_after_its_format_is_started_again(tmp_path, monkeypatch):
    path = tmp_path / "data"

    def refuse(*_):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr("kvd.storage.directory.data_directory._remove_unfinished", refuse)
        with pytest.raises(DirectoryUnusable):
            DataDirectory.open(path)
    assert not (path / "FORMAT").exists()
    DataDirectory.open(path).close()

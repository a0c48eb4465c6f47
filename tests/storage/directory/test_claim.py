"""claim.py and locks.py: whose a directory is, and what may stand in it.

Each refusal is one line, and leaves everything as it was: here and where links lead.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat

import pytest

from kvd.ctl.main import main as kvdctl
from kvd.storage.directory.data_directory import DataDirectory
from kvd.storage.errors import DirectoryLocked, DirectoryUnusable, StorageError
from kvd.storage.store import Store
from kvd.storage.tools.backup import backup
from kvd.storage.tools.bulk_load import bulk_load
from kvd.storage.tools.restore import restore
from kvd.storage.tools.source import reading
from kvd.v2.commands import Set
from tests.support.server import run_kvd
from tests.support.stores import digest, open_store, write

STRAYS = ("lost+found/", ".keep", ".snapshots/", ".Trash-0/", "aquota.user", "$RECYCLE.BIN/")


def put_stray(directory, name):
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name.rstrip("/")
    path.mkdir() if name.endswith("/") else path.touch()
    return path


def everything(*roots):
    """All that stands below some directories, with kinds, modes, owners and contents."""
    found = {}
    for root in roots:
        for path in (root, *sorted(root.rglob("*"))):
            status = path.lstat()
            content = ""
            if stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            elif stat.S_ISLNK(status.st_mode):
                content = str(path.readlink())
            found[path] = (status.st_mode, status.st_uid, status.st_ino, content)
    return found


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A store that was stopped cleanly, with a snapshot and with certificates."""
    path = tmp_path_factory.mktemp("stopped") / "data"
    store = open_store(path)
    for i in range(20):
        write(store, Set(b"/%d" % i, b"v" * 100))
    store.flush()
    store.snapshot()
    store.wal.prepare_next()
    store.close()
    (path / "tls").mkdir()
    for name in ("cert.pem", "key.pem"):
        (path / "tls" / name).touch()
    (path / "wal" / "next.tmp").touch()
    return path


FILES = (
    "FORMAT",
    "LOCK",
    "wal/*.wal",
    "wal/next.tmp",
    "snap/*.snap",
    "index/data.mdb",
    "index/CLEAN",
    "index/RUNNING",
    "tls/cert.pem",
    "tls/key.pem",
)
DIRECTORIES = ("snap", "index", "quarantine", "tls")


def to_file(path, outside):
    (outside / "file").write_bytes(b"of others")
    path.symlink_to(outside / "file")


def to_nothing(path, outside):
    path.symlink_to(outside / "new")


def to_directory(path, outside):
    (outside / "a.tmp").touch()
    path.symlink_to(outside)


def a_socket(path, outside):
    os.mknod(path, stat.S_IFSOCK | 0o600)


KINDS = {
    "link": to_file,
    "dangling link": to_nothing,
    "link to a directory": to_directory,
    "directory": lambda path, outside: path.mkdir(),
    "pipe": lambda path, outside: os.mkfifo(path),
    "socket": a_socket,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_none_is_refused_and_nothing_is_touched(
    stopped, tmp_path, capsys, name, kind
):
    data, outside = tmp_path / "data", tmp_path / "outside"
    outside.mkdir()
    shutil.copytree(stopped, data)
    for path in list(data.glob(name)) or [data / name]:
        path.unlink(missing_ok=True)
        KINDS[kind](path, outside)
    before = everything(data, outside)
    with pytest.raises(DirectoryUnusable) as refused:
        Store.open(data)
    assert "\n" not in str(refused.value)
    assert ", expected a file" in str(refused.value)
    assert refused.value.exit_status in (65, 73)
    assert everything(data, outside) == before
    for argv in (["verify"], ["compact"], ["repair", "--truncate-at", "3", "--yes"]):
        assert kvdctl([*argv, str(data)]) == refused.value.exit_status
        assert capsys.readouterr().err.count("\n") == 1
    assert everything(data, outside) == before


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "link" in kind])
@pytest.mark.parametrize("name", DIRECTORIES)
def test_a_directory_that_is_none_is_refused_and_nothing_is_touched(stopped, tmp_path, name, kind):
    data, outside = tmp_path / "data", tmp_path / "outside"
    outside.mkdir()
    shutil.copytree(stopped, data)
    shutil.rmtree(data / name)
    KINDS[kind](data / name, outside)
    before = everything(data, outside)
    with pytest.raises(DirectoryUnusable, match="expected a directory"):
        Store.open(data)
    assert everything(data, outside) == before


def test_the_command_says_it_in_one_line(stopped, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(stopped, data)
    (tmp_path / "precious").write_text("precious")
    (data / "LOCK").unlink()
    (data / "LOCK").symlink_to(tmp_path / "precious")
    ended = run_kvd("--data-dir", str(data), "--listen-client-urls", "http://127.0.0.1:0")
    assert ended.returncode == 73
    assert ended.stderr.count("\n") == 1
    assert "LOCK: is a symbolic link, expected a file" in ended.stderr
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("name", STRAYS)
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o775])
def test_a_store_begins_on_a_disk_of_its_own(tmp_path, name, mode):
    data, log = tmp_path / "data", tmp_path / "log"
    strays = [put_stray(directory, name) for directory in (data, data / "snap", log)]
    for directory in (data, log):
        directory.chmod(mode)
    Store.open(data, wal_dir=log).close()
    Store.open(data, wal_dir=log).close()
    assert all(path.exists() for path in strays)
    assert (data / "wal").resolve() == log
    assert [path.stat().st_mode & 0o777 for path in (data, log)] == [0o700, 0o700]


@pytest.mark.parametrize("name", STRAYS)
def test_the_log_of_a_store_may_be_mounted_where_it_is_looked_for(tmp_path, name):
    put_stray(tmp_path / "data" / "wal", name)
    Store.open(tmp_path / "data").close()


def test_what_others_left_unfinished_beside_the_log_stays(tmp_path):
    put_stray(tmp_path / "log", "download.tmp")
    Store.open(tmp_path / "data", wal_dir=tmp_path / "log").close()
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
    Store.open(tmp_path / "other", wal_dir=tmp_path / "log").close()
    put_stray(tmp_path / "log", "0-1.wal")
    return {"wal_dir": tmp_path / "log"}


def log_in_use(tmp_path):
    Store.open(tmp_path / "other", wal_dir=tmp_path / "log")
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
        Store.open(data, **options)
    assert everything(tmp_path) == before


def test_a_disk_that_refuses_at_the_end_leaves_nothing_behind(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    (tmp_path / "log").mkdir(mode=0o700)
    before = everything(tmp_path)
    monkeypatch.setattr("kvd.storage.disk.write_file_durably", refuse)
    with pytest.raises(DirectoryUnusable, match="No space left"):
        Store.open(tmp_path / "a" / "data", wal_dir=tmp_path / "log")
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
        Store.open(data, wal_dir=used if place == "log" else None)
    assert refused.value.exit_status == 73
    assert everything(tmp_path) == before


def test_an_empty_directory_for_everybody_is_taken(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o1777)
    Store.open(tmp_path / "data").close()
    assert (tmp_path / "data").stat().st_mode & 0o7777 == 0o700


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
    store = Store.open(data, wal_dir=tmp_path / "log")
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


# A running server


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
    server.wait_for_log("LOCK was removed or replaced, and was made again")
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

"""Files of a data directory that are links, pipes or directories are refused."""

import os
import shutil
import stat

import pytest

from kvd.ctl.main import main as kvdctl
from kvd.storage.errors import DirectoryUnusable
from kvd.storage.store import Store
from tests.support.server import run_kvd
from tests.support.strangers import everything

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

"""Starts that are refused: ports, directories, settings."""

import os
import zlib

import pytest

from kvd.storage.directory import replica_file
from kvd.storage.directory.replica_file import Replica
from kvd.storage.store import Store
from tests.support.refusals import (
    ANY_PORT,
    CANNOT_CREATE,
    CONFIGURATION,
    DATA,
    USAGE,
    assert_refused,
)
from tests.support.server import run_kvd


def test_a_busy_port_is_refused_in_one_line(fresh_server, tmp_path):
    ended = run_kvd("--data-dir", str(tmp_path / "other"), "--listen-client-urls", fresh_server.url)
    assert_refused(ended, f"127.0.0.1:{fresh_server.port}")


def test_a_directory_in_use_is_refused_and_its_server_goes_on(fresh_server):
    ended = run_kvd("--data-dir", str(fresh_server.data_dir), *ANY_PORT)
    assert_refused(ended, str(fresh_server.data_dir))
    assert ended.returncode == CANNOT_CREATE
    client = fresh_server.client()
    assert client.put("/still", "here").status == 201


def test_a_directory_in_use_is_recognised_through_a_link(fresh_server, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(fresh_server.data_dir)
    ended = run_kvd("--data-dir", str(link), *ANY_PORT)
    assert ended.returncode == CANNOT_CREATE


def test_a_file_in_place_of_the_directory_is_refused(tmp_path):
    path = tmp_path / "data"
    path.write_text("not a directory")
    ended = run_kvd("--data-dir", str(path), *ANY_PORT)
    assert_refused(ended, str(path))


def test_a_directory_of_a_later_format_is_refused(make_server):
    server = make_server().start()
    server.terminate()
    format_file = server.data_dir / "FORMAT"
    line = format_file.read_text().splitlines()[0]
    later = line.replace('"format": 1', '"format": 9').replace('"min_reader": 1', '"min_reader": 9')
    assert later != line
    format_file.write_text(f"{later}\n{zlib.crc32(later.encode()):08x}\n")
    ended = run_kvd("--data-dir", str(server.data_dir), *ANY_PORT)
    assert_refused(ended, "FORMAT", "format 9")
    assert ended.returncode == CONFIGURATION


@pytest.mark.parametrize("damage", ["FORMAT changed", "FORMAT missing", "wal missing"])
def test_a_damaged_directory_is_refused(make_server, damage):
    server = make_server().start()
    server.terminate()
    match damage:
        case "FORMAT changed":
            text = (server.data_dir / "FORMAT").read_text()
            (server.data_dir / "FORMAT").write_text(text.replace("cluster_id", "cluster_ip"))
        case "FORMAT missing":
            (server.data_dir / "FORMAT").unlink()
        case "wal missing":
            (server.data_dir / "wal").rename(server.data_dir.with_name("moved"))
    ended = run_kvd("--data-dir", str(server.data_dir), *ANY_PORT)
    assert_refused(ended, str(server.data_dir))
    assert ended.returncode == DATA


def test_an_unreadable_directory_is_refused(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root can read everything")
    path = tmp_path / "data"
    path.mkdir(mode=0)
    ended = run_kvd("--data-dir", str(path), *ANY_PORT)
    path.chmod(0o700)
    assert_refused(ended, str(path))


def test_a_missing_configuration_file_is_refused_in_one_line(tmp_path):
    ended = run_kvd("--config-file", str(tmp_path / "missing.yml"))
    assert_refused(ended, "--config-file", "missing.yml: No such file")
    assert ended.returncode == USAGE


def test_no_store_is_made_to_join_a_cluster_that_exists(make_server, tmp_path):
    argv = ("--initial-cluster-state", "existing")
    ended = run_kvd("--data-dir", str(tmp_path / "data"), *ANY_PORT, *argv)
    assert_refused(ended, str(tmp_path / "data"))
    assert ended.returncode == CONFIGURATION
    assert not (tmp_path / "data").exists()
    make_server().start().terminate()
    make_server().start(*argv)


def test_a_directory_of_etcd_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "default.etcd"
    (path / "member" / "wal").mkdir(parents=True)
    ended = run_kvd("--data-dir", str(path), *ANY_PORT)
    assert_refused(ended, str(path), "data directory of etcd")
    assert ended.returncode == CONFIGURATION
    assert [entry.name for entry in path.iterdir()] == ["member"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--replicate", "etcd://127.0.0.1:1"], ["--replicate: ", "has no prefix"]),
        (
            [
                *("--replicate", "etcd://127.0.0.1:1/kvd", "--replicate-user", "u"),
                *("--replicate-password-file", "/missing/password"),
            ],
            ["--replicate-password-file: /missing/password: No such file"],
        ),
        (
            [
                *("--replicate", "etcd://127.0.0.1:1/kvd", "--peer-key-file", "/missing/key.pem"),
                *("--peer-cert-file", "/missing/cert.pem"),
                *("--listen-peer-urls", "https://127.0.0.1:0"),
            ],
            ["--peer-cert-file"],
        ),
    ],
    ids=["url", "password", "certificate"],
)
def test_a_setting_of_a_replica_is_refused_in_one_line(tmp_path, argv, words):
    peers = ("--listen-peer-urls", "http://127.0.0.1:0")
    ended = run_kvd("--data-dir", str(tmp_path / "data"), *ANY_PORT, *peers, *argv)
    assert_refused(ended, *words)
    assert ended.returncode == USAGE
    assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "data").exists()


def test_the_store_of_a_replica_is_not_started_alone(tmp_path):
    Store.open(tmp_path / "data").close()
    replica_file.write(tmp_path / "data", Replica("etcd://h1:2379/kvd/prod", 0xC1, joined=True))
    before = sorted((tmp_path / "data").rglob("*"))
    ended = run_kvd("--data-dir", str(tmp_path / "data"), *ANY_PORT)
    assert_refused(ended, "--replicate etcd://h1:2379/kvd/prod", "kvdctl detach")
    assert ended.returncode == CONFIGURATION
    assert sorted((tmp_path / "data").rglob("*")) == before

"""The driver that --replicate names."""

import sys

import pytest

from kvd.config.config import Config
from kvd.config.load import ConfigError, parse
from kvd.replicas.engines import checked_url, engine_of
from kvd.replicas.etcd.log import EtcdLog
from kvd.replicas.postgres.log import PostgresLog


def settings(*argv: str):
    parsed = parse((*argv, "--listen-peer-urls", "http://h1:2380"))
    assert isinstance(parsed, Config)
    assert parsed.replicate is not None
    return parsed.replicate


def test_an_etcd_is_named_by_its_url():
    assert isinstance(engine_of(settings("--replicate", "etcd://h1:2379/kvd/prod")), EtcdLog)


def test_a_postgresql_is_named_by_its_url():
    assert isinstance(engine_of(settings("--replicate", "postgres://h1,h2/kvd")), PostgresLog)
    assert checked_url("postgresql://h1/a") == "postgres://h1:5432/a?schema=kvd"


def test_the_password_is_the_file_s_line(tmp_path):
    file = tmp_path / "password"
    file.write_text("secret\n")
    user = ("--replicate-user", "u", "--replicate-password-file", str(file))
    assert isinstance(engine_of(settings("--replicate=etcd://h1/kvd", *user)), EtcdLog)
    for content in (b"", b"\n", b"two\nlines\n", b"\xff\n"):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"--replicate-password-file: \S+: "):
            engine_of(settings("--replicate=etcd://h1/kvd", *user))
    file.unlink()
    with pytest.raises(ConfigError, match="No such file or directory"):
        engine_of(settings("--replicate=etcd://h1/kvd", *user))


@pytest.mark.parametrize(
    "argv",
    [
        ("--replicate", "etcd://h1:2379"),
        ("--replicate", "etcd://h1:0/kvd"),
        ("--replicate", "etcds://h1/kvd", "--replicate-ca-file", "/missing/ca.pem"),
        ("--replicate", "postgres://h1"),
        ("--replicate", "postgres://h1/kvd", "--replicate-ca-file", "/missing/ca.pem"),
    ],
    ids=" ".join,
)
def test_what_the_driver_refuses_is_a_mistake_in_the_settings(argv):
    with pytest.raises(ConfigError) as refusal:
        engine_of(settings(*argv))
    assert str(refusal.value).startswith("--replicate: ")
    assert "\n" not in str(refusal.value)


def test_a_driver_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "h2", None)
    for name in [name for name in sys.modules if name.startswith("kvd.replicas.etcd")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.startswith("h2.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError, match=r"needs the package h2\S*: pip install 'kvd\[replicas\]"):
        engine_of(settings("--replicate", "etcd://h1:2379/kvd"))


def test_a_url_is_checked_without_connecting():
    assert checked_url("etcds://[::1]/a//b") == "etcds://[::1]:2379/a/b"
    with pytest.raises(ValueError, match="has no prefix"):
        checked_url("etcd://h1")

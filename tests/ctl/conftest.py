"""Fixtures of the tests of kvdctl."""

import functools
import os
import shutil

import pytest

from kvd.storage import disk
from tests.support.ctl import kvdctl as run_kvdctl
from tests.support.ctl import make_store


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store that nobody may change."""
    return make_store(tmp_path_factory.mktemp("made") / "data")


@pytest.fixture
def data(made, tmp_path):
    """A store of one's own. A copy: its index, in another file, has to be built again."""
    shutil.copytree(made, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def no_sync(monkeypatch):
    """Skip the syncs in tests that make many stores, none of which meets a power cut."""
    for name in ("sync_file", "sync_data", "sync_directory", "drop_cache"):
        monkeypatch.setattr(disk, name, lambda _: None)


@pytest.fixture
def own_environment(monkeypatch, tmp_path):
    """Variables and profiles of this test alone."""
    for name in list(os.environ):
        if name.startswith(("KVDCTL_", "ETCDCTL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return monkeypatch


@pytest.fixture
def kvdctl(own_environment, capsys):
    """Runs kvdctl in this process; returns how it ended."""
    return functools.partial(run_kvdctl, capsys)


@pytest.fixture
def ctl(kvdctl, server):
    """Runs kvdctl on the server of the module; returns how it ended."""
    return functools.partial(kvdctl, "--endpoints", server.url)

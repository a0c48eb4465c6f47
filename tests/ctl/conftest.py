"""Fixtures of the tests of kvdctl."""

import shutil

import pytest

from kvd.storage import disk
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

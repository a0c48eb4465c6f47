"""Stores, new and with two snapshots."""

import shutil
from random import Random

import pytest

from kvd.storage.snapshot import directory
from tests.support.lives import SMALL_SEGMENT
from tests.support.stores import NOW_NS, digest, live, open_store


@pytest.fixture
def store(tmp_path):
    store = open_store(tmp_path / "data")
    yield store
    store.close()


@pytest.fixture(scope="module")
def with_snapshots(tmp_path_factory):
    """A store with two snapshots and its whole log, closed, and the digest of what it holds."""
    path = tmp_path_factory.mktemp("snapshots") / "data"
    store = open_store(path, segment_bytes_max=SMALL_SEGMENT)
    store.start_term(NOW_NS, 40)
    for seed in range(2):
        live(store, Random(seed), 30)
        store.flush()
        store.snapshot()
    live(store, Random(2), 10)
    held = digest(store)
    store.close()
    return path, held


@pytest.fixture
def snapshots(with_snapshots, tmp_path):
    """A copy of it: its path, its snapshots, newest first, and the digest."""
    path = shutil.copytree(with_snapshots[0], tmp_path / "data")
    newest, older = directory.available(path / "snap")
    return path, newest, older, with_snapshots[1]

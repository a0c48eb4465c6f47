"""Fixtures of the tests of data directories."""

import pytest

from kvd.v2.commands import Set
from tests.support.stores import open_store, write


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

"""Fixtures of the tests of snapshots."""

import pytest

from kvd.storage import disk


@pytest.fixture
def no_sync(monkeypatch):
    """Skip the syncs in tests that read thousands of damaged files."""
    for name in ("sync_file", "drop_cache"):
        monkeypatch.setattr(disk, name, lambda _: None)

"""Fixtures of the tests of the log."""

import pytest

from kvd.storage import disk


@pytest.fixture
def no_sync(monkeypatch):
    """Skip the syncs in tests that read thousands of damaged logs."""
    for name in ("sync_file", "sync_data", "sync_directory", "drop_cache"):
        monkeypatch.setattr(disk, name, lambda _: None)

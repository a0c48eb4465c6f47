"""Fixtures of the tests of the log's writer."""

import pytest

from kvd.core import log_writer
from tests.support.held_sync import HeldSync


@pytest.fixture
def held(monkeypatch):
    """The disk of the `LogWriter` that the test makes."""
    disk_sync = HeldSync()
    monkeypatch.setattr(log_writer, "data_sync", lambda: disk_sync)
    return disk_sync

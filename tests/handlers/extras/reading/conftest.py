"""Fixtures of the tests of reading extras."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvd.storage.store import Store
from tests.support.stores import open_store


@pytest.fixture
def key() -> str:
    """A directory of one's own."""
    return f"/{secrets.token_hex(4)}"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "data", segment_bytes_max=1 << 22)
    yield opened
    opened.close()

"""Fixtures of the tests of reading extras."""

import secrets

import pytest


@pytest.fixture
def key() -> str:
    """A directory of one's own."""
    return f"/{secrets.token_hex(4)}"

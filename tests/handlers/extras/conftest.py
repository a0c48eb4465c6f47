"""Fixtures of the tests of extras."""

import secrets

import pytest


@pytest.fixture
def key() -> str:
    return f"/{secrets.token_hex(4)}"

"""Fixtures of the tests of passwords."""

import pytest

from kvd.handlers import passwords
from tests.support.checks import Checks


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(passwords, "_COST", 4)


@pytest.fixture
def checks(monkeypatch):
    return Checks(monkeypatch)

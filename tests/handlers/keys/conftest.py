"""Fixtures of the tests of memory for answers."""

import pytest

from tests.support.lazy_readers import Loop


@pytest.fixture
def loop() -> Loop:
    return Loop()

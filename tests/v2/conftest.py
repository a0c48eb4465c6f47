"""Fixtures of the tests of the rules."""

import pytest

from kvd.v2.commands import Create, Set, Update
from tests.support.space import Space


@pytest.fixture
def space():
    """A file, a directory with a file and a hidden one, and an empty directory; index 6."""
    return Space(
        Set(b"/f", b"one"),
        Set(b"/d/f", b"two", ttl_s=100),
        Set(b"/hid/_f", b"x"),
        Create(b"/e", b"", dir=True),
        Update(b"/f", b"1"),
    )

"""Servers of tests that start many: forked, since most of a start is the interpreter's."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.server import Server


@pytest.fixture
def make_server(
    request: pytest.FixtureRequest, make_server: Callable[..., Server]
) -> Callable[..., Server]:
    """As that of all tests, but forked in modules that say so by `FORKED = True`."""
    if not getattr(request.module, "FORKED", False):
        return make_server

    def make(*flags: str, **options: Any) -> Server:
        return make_server(*flags, forked=True, **options)

    return make

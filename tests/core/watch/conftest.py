"""Servers and directories for tests of watches."""

from collections.abc import Iterator

import pytest

from tests.support.server import Server, running


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that remembers ten events."""
    yield from running(Server(tmp_path_factory.mktemp("data"), "--event-history-limit", "10"))


@pytest.fixture
def at(request: pytest.FixtureRequest) -> str:
    """A directory of the test's own, not there yet."""
    return f"/{abs(hash(request.node.nodeid)):x}"

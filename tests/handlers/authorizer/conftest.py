"""Servers with users."""

from collections.abc import Iterator

import pytest

from tests.support.guarded import ask_for_users
from tests.support.server import Server, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that asks for users; those that are there stay as they are."""
    server = Server(tmp_path_factory.mktemp("data"))
    for started in running(server):
        ask_for_users(started.client())
        yield started


@pytest.fixture
def guarded(fresh_server: Server) -> Server:
    """The same, of one's own."""
    ask_for_users(fresh_server.client())
    return fresh_server

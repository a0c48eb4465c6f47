"""Servers and connections for these tests."""

from collections.abc import Iterator

import pytest

from tests.support.raw import Raw
from tests.support.server import Server, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that is patient: `others_are_untouched` leaves half a head with it for a while."""
    yield from running(Server(tmp_path_factory.mktemp("data"), "--header-timeout-s", "600"))


@pytest.fixture
def raw(server: Server) -> Iterator[Raw]:
    with Raw(server.port) as connection:
        yield connection


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that gives its clients little time."""
    yield from running(
        Server(
            tmp_path_factory.mktemp("data"),
            *("--header-timeout-s", "1", "--body-timeout-s", "1", "--idle-timeout-s", "2"),
        )
    )


@pytest.fixture(autouse=True)
def others_are_untouched(server: Server) -> Iterator[None]:
    """Whatever a test does to its connections, another one goes on as if nothing had happened."""
    with Raw(server.port) as other:
        other.send(b"GET /v2/keys/none HT")
        yield
        answer = other.send(b"TP/1.1\r\nHost: h\r\n\r\n").answer()
        assert answer.status == 404
        assert answer.json["errorCode"] == 100

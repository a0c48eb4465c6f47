"""An authority, a certificate of it, and servers that show it."""

import ssl
from collections.abc import Callable, Iterator

import pytest

from tests.support.certs import Authority, Pair, client_context
from tests.support.server import Server, running
from tests.support.tls import HTTPS, LOOPS, flags


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.sign("server", "127.0.0.1", "localhost")


@pytest.fixture(scope="module", params=LOOPS)
def secured(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pair: Pair
) -> Iterator[Server]:
    """A server with one https URL, on either event loop."""
    launch = LOOPS[request.param]
    directory = tmp_path_factory.mktemp("data")
    yield from running(Server(directory, *flags(pair), listen=HTTPS, launch=launch))


@pytest.fixture
def start(make_server: Callable[..., Server], pair: Pair) -> Callable[..., Server]:
    """Starts a server of one's own with a certificate."""

    def start(*more: str, listen: str = HTTPS, of: Pair = pair) -> Server:
        return make_server(*flags(of, *more), listen=listen).start()

    return start


@pytest.fixture
def trusting(authority: Authority) -> ssl.SSLContext:
    return client_context(authority.cert)

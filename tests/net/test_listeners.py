"""Listeners: addresses of both families, and sockets in the file system."""

import contextlib
import http.client
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvd.config.urls import ListenUrl
from kvd.net.listeners import AddressUnavailable, Listener, bind, handed_over
from kvd.net.systemd import Handed
from tests.support.server import PATIENCE_S, Client, free_port, run_kvd

UNAVAILABLE = 69


@pytest.fixture
def bound() -> Iterator[Callable[..., list[Listener]]]:
    """Binds URLs, and gives them back at the end."""
    made: list[Listener] = []

    def bound(*urls: ListenUrl) -> list[Listener]:
        new = bind(urls)
        made.extend(new)
        return new

    yield bound
    for listener in made:
        listener.close()


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a socket in the file system."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE_S)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(self._path)


def ask(path: Path, target: str) -> bytes:
    connection = UnixConnection(path)
    try:
        connection.request("GET", target)
        return connection.getresponse().read()
    finally:
        connection.close()


def reaches(port: int, host: str) -> bool:
    try:
        socket.create_connection((host, port), PATIENCE_S).close()
    except ConnectionRefusedError:
        return False
    return True


def accepts(listener: Listener, host: str) -> bool:
    listener.socket.listen()
    return reaches(listener.socket.getsockname()[1], host)


class TestAddresses:
    @pytest.fixture(autouse=True)
    def both_families(self) -> None:
        if not socket.has_dualstack_ipv6():
            pytest.skip("this machine has no IPv6")

    @pytest.mark.parametrize("host", ["0.0.0.0", "::"])
    @pytest.mark.parametrize("client", ["127.0.0.1", "::1"])
    def test_a_wildcard_of_either_family_takes_clients_of_both(self, bound, host, client):
        (listener,) = bound(ListenUrl(host, 0))
        assert accepts(listener, client)
        assert listener.urls[0].host == host
        assert listener.urls[0].port != 0

    @pytest.mark.parametrize(("host", "other"), [("127.0.0.1", "::1"), ("::1", "127.0.0.1")])
    def test_an_address_takes_its_own_clients_only(self, bound, host, other):
        (listener,) = bound(ListenUrl(host, 0))
        assert accepts(listener, host)
        assert not accepts(listener, other)

    def test_wildcards_of_both_families_share_a_port(self, bound):
        port = free_port()
        four, six = bound(ListenUrl("0.0.0.0", port), ListenUrl("::", port))
        assert accepts(four, "127.0.0.1")
        assert accepts(six, "::1")

    def test_a_name_of_both_families_means_the_older_one(self, bound):
        (listener,) = bound(ListenUrl("localhost", 0))
        assert listener.socket.family == socket.AF_INET

    def test_a_client_of_the_older_family_is_shown_by_its_own_address(self, make_server):
        server = make_server("--access-log", listen="http://[::]:0").start()
        port = int(server.url.rpartition(":")[2])
        with contextlib.closing(Client(port)) as client:
            client.request("GET", "/version")
        server.wait_for_log('127.0.0.1 "GET /version')
        assert "::ffff:" not in server.stderr


class TestSeveral:
    def test_port_0_is_another_one_each_time(self, bound):
        first, second = bound(ListenUrl("127.0.0.1", 0), ListenUrl("127.0.0.1", 0))
        assert first.urls[0].port != second.urls[0].port

    def test_two_schemes_on_one_address_share_a_socket(self, bound):
        port = free_port()
        plain, secured = ListenUrl("127.0.0.1", port), ListenUrl("127.0.0.1", port, "https")
        (listener,) = bound(plain, secured)
        assert listener.urls == (plain, secured)
        assert listener.speaks_plain
        assert listener.speaks_tls

    def test_where_one_is_taken_none_is_bound(self, tmp_path):
        path = tmp_path / "kvd.sock"
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(AddressUnavailable, match=f"127.0.0.1:{port}: Address already"):
                bind([ListenUrl(str(path), scheme="unix"), ListenUrl("127.0.0.1", port)])
        assert not path.exists()

    def test_an_unknown_name_is_refused(self):
        with pytest.raises(AddressUnavailable, match=r"cannot listen on http://nobody.invalid:1: "):
            bind([ListenUrl("nobody.invalid", 1)])


class TestHandedOver:
    @pytest.mark.parametrize(
        ("schemes", "plain", "tls"),
        [([], True, False), (["https"], False, True), (["http", "https"], True, True)],
    )
    def test_the_settings_say_what_is_spoken_there(self, schemes, plain, tls):
        with socket.create_server(("127.0.0.1", 0)) as given:
            port = given.getsockname()[1]
            urls = [ListenUrl("0.0.0.0", port, scheme) for scheme in schemes]
            (listener,) = handed_over([Handed("", given)], [*urls, ListenUrl("h", 1, "https")])
        assert (listener.speaks_plain, listener.speaks_tls) == (plain, tls)
        assert {url.port for url in listener.urls} == {port}


class TestPaths:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "kvd.sock"

    @pytest.fixture
    def served(self, make_server: Any, path: Path) -> Any:
        return make_server(listen=f"unix://{path},http://127.0.0.1:0")

    def test_keys_are_served_to_owner_and_group(self, served, path):
        served.start()
        assert b"etcdserver" in ask(path, "/version")
        assert path.stat().st_mode & 0o777 == 0o660
        machines = ask(path, "/v2/machines").decode()
        assert machines == f"{served.urls[1]}, unix://{path}"

    def test_its_clients_have_no_address_in_the_access_log(self, served, path):
        served.start("--access-log")
        ask(path, "/version")
        served.wait_for_log(' - "GET /version HTTP/1.1" 200 ')

    def test_the_path_goes_with_the_server(self, served, path):
        served.start()
        assert served.terminate() == 0
        assert not path.exists()

    def test_one_that_a_dead_server_left_is_made_again(self, served, path):
        served.start()
        served.kill()
        assert path.is_socket()
        served.start()
        assert b"etcdserver" in ask(path, "/version")

    def test_one_of_a_living_server_is_left_to_it(self, served, path, tmp_path):
        served.start()
        ended = run_kvd("--data-dir", str(tmp_path / "2"), f"--listen-client-urls=unix://{path}")
        assert ended.returncode == UNAVAILABLE
        assert f"cannot listen on unix://{path}: Address already in use" in ended.stderr
        assert b"etcdserver" in ask(path, "/version")

    def test_what_is_no_socket_is_left_alone(self, path):
        path.write_text("precious")
        with pytest.raises(AddressUnavailable, match="the file there is no socket"):
            bind([ListenUrl(str(path), scheme="unix")])
        assert path.read_text() == "precious"

    def test_a_link_to_a_socket_is_no_socket(self, path, tmp_path):
        with socket.socket(socket.AF_UNIX) as elsewhere:
            elsewhere.bind(str(tmp_path / "other"))
        path.symlink_to(tmp_path / "other")
        with pytest.raises(AddressUnavailable, match="no socket"):
            bind([ListenUrl(str(path), scheme="unix")])

    @pytest.mark.parametrize(
        ("name", "reason"),
        [("x" * 200, "too long"), ("missing/kvd.sock", "No such file or directory")],
        ids=["long", "missing directory"],
    )
    def test_one_that_cannot_be_made_is_refused(self, tmp_path, name, reason):
        with pytest.raises(AddressUnavailable, match=reason):
            bind([ListenUrl(str(tmp_path / name), scheme="unix")])

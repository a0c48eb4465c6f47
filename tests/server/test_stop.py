"""A stop: requests sent before it are answered, and what was answered is durable.

A process that is held still (SIGSTOP) finds everything at once when it goes on: the requests that
came meanwhile, and the signal to stop.
"""

import contextlib
import http.client
import itertools
import select
import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.support.raw import Raw, request
from tests.support.server import PATIENCE_S, Server, handed_over


def put(key: str, value: bytes = b"x", *headers: str) -> bytes:
    return request("PUT", f"/v2/keys{key}", *headers, body=b"value=" + value)


@contextlib.contextmanager
def held(server: Server) -> Iterator[None]:
    """Hold the server still; when it goes on, it is asked to stop."""
    server.signal(signal.SIGSTOP)
    try:
        yield
        server.signal(signal.SIGTERM)
    finally:
        server.signal(signal.SIGCONT)


@pytest.fixture
def connect(fresh_server):
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(Raw(fresh_server.port))


def assert_kept(server: Server, keys: list[str]) -> None:
    """The stop was a clean one, and the next start has every key."""
    assert server.wait() == 0
    client = server.start().client()
    assert [key for key in keys if client.get(key).status != 200] == []


def test_requests_that_came_before_the_signal_are_answered(fresh_server, connect):
    connections = [connect() for _ in range(50)]
    for connection in connections:
        assert connection.send(put("/first")).answer().status < 300
    keys = [f"/{number}" for number in range(50)]
    with held(fresh_server):
        for key, connection in zip(keys, connections, strict=True):
            connection.send(put(key))
    for connection in connections:
        assert connection.answer().status == 201
        assert connection.end() == b""
    assert_kept(fresh_server, keys)


def test_connections_made_before_the_signal_are_answered(fresh_server, connect):
    keys = [f"/{number}" for number in range(50)]
    with held(fresh_server):
        connections = [connect() for _ in keys]
        for key, connection in zip(keys, connections, strict=True):
            connection.send(put(key))
    for connection in connections:
        assert connection.answer().status == 201
        assert connection.end() == b""
    assert_kept(fresh_server, keys)


def test_a_body_that_is_on_its_way_is_waited_for(fresh_server, connect):
    connection = connect()
    whole = put("/a", b"x" * 1000, "Expect: 100-continue")
    connection.send(whole[:300])
    assert connection.answer().status == 100
    fresh_server.signal(signal.SIGTERM)
    fresh_server.wait_for_log("stopping")
    connection.send(whole[300:])
    answer = connection.answer()
    assert (answer.status, answer.headers["connection"]) == (201, "close")
    assert connection.end() == b""
    assert_kept(fresh_server, ["/a"])


def test_a_body_that_never_comes_does_not_hold_up_the_stop(fresh_server, connect):
    connection = connect()
    connection.send(put("/a", b"x", "Expect: 100-continue")[:-1])
    assert connection.answer().status == 100
    assert fresh_server.terminate() == 0
    assert connection.answer().status == 503
    assert connection.end() == b""


def test_a_pipelined_request_behind_the_last_answer_does_not_spoil_it(fresh_server, connect):
    connection = connect()
    with held(fresh_server):
        connection.send(put("/a") + put("/b") * 2000)
    # The loop may get to some of them before it is told of the signal.
    while (answer := connection.answer()).headers.get("connection") != "close":
        assert answer.status in (200, 201)
    assert answer.status in (200, 201)
    assert connection.end() == b""
    assert_kept(fresh_server, ["/a"])


def test_a_connection_that_asks_nothing_is_closed(fresh_server, connect):
    connection = connect()
    assert fresh_server.terminate() == 0
    assert connection.end() == b""


def test_a_watch_that_comes_while_it_stops_ends_at_once(fresh_server, connect):
    connection = connect()
    with held(fresh_server):
        connection.send(request("GET", "/v2/keys/?wait=true&recursive=true"))
    answer = connection.answer()
    assert (answer.status, answer.body) == (200, b"")
    assert connection.end() == b""
    assert fresh_server.wait() == 0


class Writer:
    """Writes one key after the other, in a thread of its own, until told or until nobody listens.

    Like an ordinary client it looks whether its connection still stands before it uses it.
    """

    def __init__(self, server: Server, name: str, *, reuse: bool) -> None:
        self.acknowledged: list[str] = []
        self.errors: list[Exception] = []
        self.first = threading.Event()
        self.enough = threading.Event()
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
        self._name = name
        self._reuse = reuse
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with contextlib.closing(self._connection):
            for number in itertools.count():
                if self.enough.is_set():
                    return
                try:
                    self._write(f"/{self._name}/{number}")
                except ConnectionRefusedError:
                    return
                except http.client.RemoteDisconnected:
                    # Closed in the very moment of sending, without an answer and without a reset.
                    self._connection.close()
                except Exception as error:  # noqa: BLE001 -- the test looks at it
                    self.errors.append(error)
                    return

    def _write(self, key: str) -> None:
        sock = self._connection.sock
        if sock is not None and select.select([sock], [], [], 0)[0]:
            self._connection.close()
        self._connection.request("PUT", f"/v2/keys{key}?value=x")
        response = self._connection.getresponse()
        response.read()
        assert response.status == 201
        self.acknowledged.append(key)
        self.first.set()
        if not self._reuse:
            self._connection.close()


@pytest.fixture
def write():
    """Makes writers, which are made to end at the end of the test."""
    writers: list[Writer] = []

    def make(server: Server, count: int, *, reuse: bool) -> list[Writer]:
        writers.extend(Writer(server, str(number), reuse=reuse) for number in range(count))
        return writers

    yield make
    for writer in writers:
        writer.enough.set()
        writer.join()


def test_a_stop_under_load_loses_no_acknowledged_write_and_resets_no_client(fresh_server, write):
    writers = write(fresh_server, 8, reuse=True)
    for writer in writers:
        assert writer.first.wait(PATIENCE_S)
    fresh_server.signal(signal.SIGTERM)
    for writer in writers:
        writer.join()
    assert [error for writer in writers for error in writer.errors] == []
    assert_kept(fresh_server, [key for writer in writers for key in writer.acknowledged])


def test_a_restart_on_a_socket_of_systemd_is_noticed_by_no_new_connection(make_server, write):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = make_server(**handed_over(listening)).start()
        writers = write(server, 8, reuse=False)
        for _ in range(2):
            for writer in writers:
                assert writer.first.wait(PATIENCE_S)
            assert server.terminate() == 0
            server.start()
            for writer in writers:
                writer.first.clear()
        for writer in writers:
            assert writer.first.wait(PATIENCE_S)
            writer.enough.set()
        for writer in writers:
            writer.join()
        assert [error for writer in writers for error in writer.errors] == []
        client = server.client()
        kept = [key for writer in writers for key in writer.acknowledged]
        assert [key for key in kept if client.get(key).status != 200] == []

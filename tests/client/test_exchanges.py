"""kvd/client/exchanges.py, against servers that misbehave: what was sent, and how often."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from kvd.client import ApiError, KvdError, OutcomeUnknown, ServerRefused, Timeout, TransportError
from tests.support.server import PATIENCE_S, free_port

EVENT = b'{"action":"set","node":{"key":"/k","value":"1","modifiedIndex":7,"createdIndex":7}}\n'


def answer(body: bytes, status: str = "200 OK", *headers: bytes) -> bytes:
    head = [f"HTTP/1.1 {status}".encode(), b"X-Etcd-Index: 7", *headers]
    return b"\r\n".join([*head, b"Content-Length: %d" % len(body), b"", body])


OK = answer(EVENT)


class Scripted:
    """A server that gives each connection the next of some behaviours.

    A behaviour gets the socket and is called with what it has read of a request; it returns whether
    the connection goes on.
    """

    def __init__(self, *behaviours: Callable[[socket.socket], bool]) -> None:
        self.requests: list[bytes] = []
        self.ended = threading.Semaphore(0)
        self._behaviours = list(behaviours)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for behaviour in self._behaviours:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                while True:
                    request = connection.recv(65536)
                    if not request:
                        break
                    self.requests.append(request)
                    if not behaviour(connection):
                        break
            self.ended.release()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def answers(data: bytes, *, goes_on: bool = True) -> Callable[[socket.socket], bool]:
    def behave(connection: socket.socket) -> bool:
        connection.sendall(data)
        return goes_on

    return behave


def hangs_up(_: socket.socket) -> bool:
    return False


def is_silent(_: socket.socket) -> bool:
    return True


@pytest.fixture
def serve() -> Iterator[Callable[..., Scripted]]:
    with contextlib.ExitStack() as stack:

        def make(*behaviours: Callable[[socket.socket], bool]) -> Scripted:
            made = Scripted(*behaviours)
            stack.callback(made.close)
            return made

        yield make


@pytest.mark.parametrize(
    "behaviour", [hangs_up, answers(b"nonsense\r\n\r\n"), answers(OK[:-20], goes_on=False)]
)
def test_a_write_that_was_sent_is_never_sent_again(serve, connect, behaviour):
    server = serve(behaviour, answers(OK))
    with pytest.raises(OutcomeUnknown, match=r"PUT /v2/keys/k was sent to 127\.0\.0\.1"):
        connect(server.url).set("/k", "1")
    assert len(server.requests) == 1


def test_a_write_without_an_answer_in_time_is_open(serve, connect):
    server = serve(is_silent)
    with pytest.raises(OutcomeUnknown):
        connect(server.url, timeout=0.1).set("/k", "1")
    assert len(server.requests) == 1


def test_a_read_is_asked_again(serve, connect):
    server = serve(hangs_up, answers(OK[:30], goes_on=False), answers(OK))
    assert connect(server.url).get("/k").value == "1"
    assert len(server.requests) == 3


def test_a_read_without_an_answer_in_time_is_a_timeout(serve, connect):
    server = serve(is_silent)
    with pytest.raises(Timeout, match=r"no answer from 127.0.0.1:\d+ in 0.1 s"):
        connect(server.url, timeout=0.1).get("/k")


def test_where_nothing_was_sent_the_next_endpoint_is_asked(serve, connect):
    server = serve(answers(OK))
    kvd = connect([f"http://127.0.0.1:{free_port()}", server.url])
    assert kvd.set("/k", "1").index == 7
    assert kvd.get("/k").value == "1"
    assert len(server.requests) == 2


def test_where_no_server_listens_nothing_has_happened(connect):
    with pytest.raises(TransportError) as caught:
        connect(f"http://127.0.0.1:{free_port()}", timeout=0.1).set("/k", "1")
    assert not isinstance(caught.value, Timeout)


def test_connections_are_kept_but_not_used_for_a_write_once_closed(serve, connect):
    server = serve(answers(OK, goes_on=False), answers(OK))
    kvd = connect(server.url)
    kvd.set("/k", "1")
    server.ended.acquire()
    kvd.set("/k", "1")
    kvd.set("/k", "1")
    assert len(server.requests) == 3


def test_an_answer_that_closes_is_the_last_on_its_connection(serve, connect):
    closing = answer(EVENT, "200 OK", b"Connection: close")
    server = serve(answers(closing), answers(OK))
    kvd = connect(server.url)
    kvd.set("/k", "1")
    kvd.set("/k", "1")
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        ("503 Busy", b"too many requests\n", ServerRefused),
        ("500 Error", b'{"errorCode":300,"cause":"no space left","index":7}', ServerRefused),
        ("500 Error", b'{"errorCode":300,"cause":"etcdserver: request timed out"}', OutcomeUnknown),
        ("500 Error", b'{"errorCode":300,"cause":"outcome unknown: disk"}', OutcomeUnknown),
        ("500 Error", b'{"errorCode":300,"cause":"etcdserver: server stopped"}', OutcomeUnknown),
        ("500 Error", b"Internal Server Error", OutcomeUnknown),
        ("502 Bad Gateway", b"<html>", OutcomeUnknown),
        ("504 Gateway Timeout", b"<html>", OutcomeUnknown),
        ("418 Teapot", b"", KvdError),
    ],
)
def test_what_the_server_says_decides_whether_it_may_have_happened(
    serve, connect, status, body, error
):
    server = serve(answers(answer(body, status)))
    with pytest.raises(error):
        connect(server.url).set("/k", "1")


def test_heads_without_end_are_refused(serve, connect):
    def floods(connection: socket.socket) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        with contextlib.suppress(OSError):
            for _ in range(100):
                connection.sendall(b"X-More: " + b"x" * 4096 + b"\r\n")
        return False

    server = serve(floods)
    with pytest.raises(OutcomeUnknown):
        connect(server.url).set("/k", "1")


def test_an_interim_answer_is_passed_over(serve, connect):
    server = serve(answers(b"HTTP/1.1 100 Continue\r\n\r\n" + OK))
    assert connect(server.url).set("/k", "1").index == 7


def test_a_silent_endpoint_leaves_time_for_the_next(serve, connect):
    silent, good = serve(is_silent), serve(answers(OK))
    kvd = connect([silent.url, good.url], timeout=2)
    assert kvd.get("/k").value == "1"
    assert kvd.set("/k", "1").index == 7


@pytest.mark.parametrize("status", ["502 Bad Gateway", "504 Gateway Timeout", "429 Slow Down"])
def test_a_proxy_without_a_server_is_one_that_cannot_answer_now(serve, connect, status):
    extras = answer(b'{"extras":[]}')
    server = serve(
        *(answers(one, goes_on=False) for one in (extras, answer(b"<html>", status), OK)),
    )
    kvd = connect(server.url)
    with kvd.watch("/k", since=7, timeout=PATIENCE_S) as watch:
        assert next(watch).index == 7
    with pytest.raises(ServerRefused):
        connect(serve(answers(answer(b"<html>", status))).url).get("/k")


@pytest.mark.parametrize("status", ["301 Moved", "304 Not Modified"])
def test_what_is_no_success_is_an_error(serve, connect, status):
    head = answer(b"", status) if status.startswith("304") else answer(b"elsewhere", status)
    server = serve(answers(head))
    with pytest.raises(KvdError):
        connect(server.url).set("/k", "1")


def test_a_redirect_says_where_to(serve, connect):
    moved = answer(b"", "307 Temporary Redirect", b"Location: https://b:2379/v2/keys/k")
    with pytest.raises(KvdError, match="not followed, and this is one to https://b:2379/v2/keys/k"):
        connect(serve(answers(moved)).url).get("/k")


STRANGE = [
    b"",
    b"<html>",
    b"null",
    b"[]",
    b"7",
    b"{}",
    b'{"node":null}',
    b'{"node":[]}',
    b'{"action":"set","node":{"modifiedIndex":"x"}}',
    b'{"action":"set","node":{"modifiedIndex":7,"value":1}}',
    b'{"action":"set","node":{"modifiedIndex":7,"expiration":"tomorrow"}}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("body", STRANGE, ids=lambda body: body[:60].decode())
def test_an_answer_that_etcd_would_not_give_is_an_error(serve, connect, body):
    kvd = connect(serve(answers(answer(body))).url)
    for ask in (kvd.get, lambda key: kvd.get_or(key, "2"), kvd.exists, kvd.ls):
        with pytest.raises(KvdError) as caught:
            ask("/k")
        assert not isinstance(caught.value, KeyError)
    for write in (lambda key: kvd.set(key, "1"), kvd.delete):
        with pytest.raises(OutcomeUnknown, match="cannot be read"):
            write("/k")
    refused = connect(serve(answers(answer(body, "400 Bad Request"))).url)
    with pytest.raises(ApiError):
        refused.get("/k")


@pytest.mark.parametrize("body", [b"null\n", b'{"node":{}}\n', b"{\n"])
def test_a_line_of_a_watch_that_is_no_event_is_an_error(serve, connect, body):
    server = serve(
        answers(answer(b'{"extras":["progress"]}'), goes_on=False),
        answers(answer(body), goes_on=False),
    )
    with (
        connect(server.url).watch("/k", since=1, timeout=PATIENCE_S) as watch,
        pytest.raises(KvdError, match="in no form of etcd's"),
    ):
        next(watch)


def test_an_event_in_many_pieces_is_put_together_once(serve, connect):
    value = "x" * (1 << 20)
    received = json.loads(EVENT)
    received["node"]["value"] = value
    line = json.dumps(received).encode() + b"\n"
    chunks = [line[at : at + 4096] for at in range(0, len(line), 4096)]
    body = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in chunks)
    head = b"HTTP/1.1 200 OK\r\nX-Etcd-Index: 7\r\nTransfer-Encoding: chunked\r\n\r\n"
    server = serve(answers(answer(b'{"extras":["progress"]}'), goes_on=False), answers(head + body))
    with connect(server.url).watch("/k", since=1, timeout=PATIENCE_S) as watch:
        assert next(watch).node.value == value


def test_an_index_that_is_none_is_not_read(serve, connect):
    strange = OK.replace(b"X-Etcd-Index: 7", b"X-Etcd-Index: " + b"9" * 5000)
    assert connect(serve(answers(strange)).url).get("/k").index == 0


@pytest.mark.parametrize("more", [b"garbage\r\n", answer(b"{}", "500 Another")])
def test_what_comes_behind_an_answer_is_not_the_next_one(serve, connect, more):
    server = serve(answers(OK + more), answers(OK))
    kvd = connect(server.url)
    assert kvd.set("/k", "1").index == 7
    assert kvd.get("/k").value == "1"
    assert server.ended.acquire(timeout=PATIENCE_S)


def test_an_upgrade_is_no_answer(serve, connect):
    switched = b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
    server = serve(answers(switched, goes_on=False), answers(OK))
    assert connect(server.url).get("/k").value == "1"


def test_what_the_server_has_is_asked_again_after_a_refusal(serve, connect):
    extras = answer(b'{"server":"kvd","extras":["raw"]}')
    server = serve(answers(answer(b"busy", "503 Busy")), answers(extras), answers(OK))
    kvd = connect(server.url)
    with pytest.raises(ServerRefused):
        kvd.get_bytes("/k")

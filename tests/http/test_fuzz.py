"""Hostile and broken requests: whatever comes, there is an answer or an end, and no bug shows.

A few hundred in the ordinary run; `pytest -m limits_full tests/http/test_fuzz.py` sends a hundred
thousand of each kind. What is found to break it is kept below, as an example.
"""

import contextlib
import json
import re
import socket
from collections.abc import Callable, Iterator
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.server import FORM, PATIENCE_S, Server, running

STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3}) [A-Za-z -]+\r\n")
BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
# A member alone cannot be reconfigured: that, and nothing else, is answered by 500.
NO_BUG = b'{"message":"Internal Server Error"}'


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that gives no time to those who say less than they announced."""
    flags = ("--header-timeout-s", "5", "--body-timeout-s", "5")
    server = Server(tmp_path_factory.mktemp("data"), *flags)
    yield from running(server)
    for word in ("ERROR", "CRITICAL", "Traceback", "could not be"):
        assert word not in server.stderr, server.stderr


def exchange(server: Server, *pieces: bytes) -> bytes:
    """Send pieces and the end of them; all that the server says until it closes, which it must."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        said = []
        with contextlib.suppress(OSError):  # it has been refused before its end
            for piece in pieces:
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(65536):
                said.append(piece)
        return b"".join(said)


def examples(count: int) -> Callable:
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def sized(test: Callable) -> Callable:
    """Run a check with a few examples, or by marker with very many."""
    return pytest.mark.parametrize(
        "count",
        [
            200,
            pytest.param(100_000, marks=[pytest.mark.limits_full, pytest.mark.timeout(4 * 3600)]),
        ],
    )(test)


# Bytes.

FRAGMENTS = [
    b"GET ",
    b"PUT ",
    b"POST ",
    b"DELETE ",
    b"HEAD ",
    b"OPTIONS ",
    b"CONNECT ",
    b"get ",
    b"PRI ",
    b"/v2/keys/a",
    b"/v2/keys/a?wait=true",
    b"/v2/keys/?recursive=true",
    b"/v2/keys/%zz",
    b"*",
    b"/version",
    b"/metrics",
    b"/v2/members",
    b"http://h/v2/keys/b",
    b"/v2/keys/\xff",
    b"//",
    b"/../",
    b"/v2/auth/users/u",
    b"/health",
    b"/readyz?exclude=log",
    b"/v2/stats/store",
    b"/v2/keys",
    b" HTTP/1.1",
    b" HTTP/1.0",
    b" HTTP/2.0",
    b" HTTP/1.1\r\nHost: h\r\n\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b"Host: h\r\n",
    b"Host: a\r\nHost: b\r\n",
    b"Host:\r\n",
    b"Host : h\r\n",
    b"Connection: close\r\n",
    b"Content-Length: 7\r\n",
    b"Content-Length: -1\r\n",
    b"Content-Length: 99999999999999999999\r\n",
    b"Content-Length: 7, 7\r\n",
    b"Content-Length: +7\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b" folded\r\n",
    b"Content-Type: application/x-www-form-urlencoded\r\n",
    b"Content-Type: multipart/form-data; boundary=b\r\n",
    b"Content-Type: application/json\r\n",
    b"Expect: 100-continue\r\n",
    b"Upgrade: h2c\r\n",
    b"X:" + b"x" * 5000,
    b"Authorization: Basic cm9vdDpyb290\r\n",
    b"Authorization: Basic %%%\r\n",
    b"Origin: http://x\r\n",
    b"value=1",
    b"value=%zz&ttl=x",
    b"7\r\nvalue=1\r\n",
    b"0\r\n\r\n",
    b"0\r\nX: y\r\n\r\n",
    b"fffffffffffffffff\r\n",
    b"--b\r\n",
    b"{}",
    b"\x00",
    b"\x16\x03\x01",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]
WHOLE = [
    b"GET /v2/keys/a HTTP/1.1\r\nHost: h\r\n\r\n",
    b"PUT /v2/keys/a HTTP/1.1\r\nHost: h\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    b"Content-Length: 7\r\n\r\nvalue=1",
    b"PUT /v2/keys/a HTTP/1.1\r\nHost: h\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n7\r\nvalue=1\r\n0\r\n\r\n",
    b"GET /v2/keys/w?wait=true&stream=true HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET /metrics HTTP/1.0\r\n\r\n",
    b"POST /v2/members HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
    b"Content-Length: 2\r\n\r\n{}",
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good request, or two, with a few bytes of it changed."""
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(WHOLE), min_size=1, max_size=3))))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 3)):
            case 0:
                data[place:place] = draw(st.binary(max_size=4))
            case 1:
                del data[place : place + draw(st.integers(1, 30))]
            case 2:
                data[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case _:
                data[place:place] = draw(st.sampled_from(FRAGMENTS))
    return bytes(data)


RAW = st.one_of(
    st.lists(st.sampled_from(FRAGMENTS), max_size=14).map(b"".join),
    st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=9)), max_size=14).map(
        b"".join
    ),
    mutated(),
    st.binary(max_size=200),
)


@sized
def test_any_bytes_are_answered_or_refused(fuzzed, count):
    @examples(count)
    @given(RAW, st.integers(0, 400))
    @example(b"GET /v2/keys/a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n", 0)
    @example(b"GET /v2/keys/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n", 60)
    def check(data: bytes, split: int) -> None:
        said = exchange(fuzzed, *(piece for piece in (data[:split], data[split:]) if piece))
        assert not said or STATUS_LINE.match(said), said[:200]
        for status in STATUS_LINE.findall(said):
            assert status != b"500" or NO_BUG in said, (status, said[:1000])

    check()
    assert_serves(fuzzed)


def assert_serves(server: Server) -> None:
    client = server.client()
    index = client.put("/fuzz/after", 1).index
    assert client.get("/fuzz/after").index == index


# Parameters.

NAMES = (
    *("value", "dir", "ttl", "prevExist", "prevValue", "prevIndex", "recursive", "sorted"),
    *("quorum", "wait", "stream", "waitIndex", "refresh", "noValueOnSuccess", "exclude", "verbose"),
)
VALUES = st.one_of(
    st.sampled_from(
        [b"", b"true", b"false", b"1", b"0", b"-1", b"+1", b"1.5", b"1e9", b"0x1f", b"9" * 40]
        + [str(n).encode() for n in (2**31, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63))]
        + [b"t", b"TRUE", b" 1", b"1 ", b"\xff", b"\x00", "\u2028\ud7ff".encode(), b"a" * 300]
    ),
    st.binary(max_size=12),
)
NAME = st.one_of(st.sampled_from(NAMES).map(str.encode), st.binary(max_size=6))
PARAMETERS = st.lists(st.tuples(NAME, VALUES), max_size=5)
KEYS = st.lists(
    st.one_of(
        st.sampled_from([b"a", b"b", b"_h", b".", b"..", b"", b"c%2Fd"]), st.binary(max_size=6)
    ),
    max_size=4,
).map(b"/".join)
PATHS = st.one_of(
    KEYS.map(lambda key: b"/v2/keys/" + quote_from_bytes(key, safe="/%").encode()),
    st.sampled_from(
        b"/v2/keys /v2/members /v2/members/leader /v2/members/zz /v2/machines /v2/stats/store "
        b"/v2/stats/self /v2/stats/leader /v2/stats/none /v2/auth/users /v2/auth/users/u "
        b"/v2/auth/roles /v2/auth/roles/r /v2/auth /version /health /readyz /livez /metrics "
        b"/debug/vars /v3/x /".split()
    ),
)
METHODS = st.sampled_from([b"GET", b"PUT", b"POST", b"DELETE", b"HEAD", b"PATCH", b"OPTIONS", b"X"])
ANY_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    "peerURLs",
                    "user",
                    "password",
                    "roles",
                    "grant",
                    "revoke",
                    "role",
                    "permissions",
                    "kv",
                    "read",
                    "write",
                ]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)
BODIES = st.one_of(
    st.none(),
    PARAMETERS.map(lambda pairs: (FORM.encode(), form(pairs))),
    ANY_JSON.map(lambda value: (b"application/json", json.dumps(value).encode())),
    st.tuples(
        st.sampled_from([b"", b"text/plain", b'a/b; c="', FORM.encode() + b"; charset=x"]),
        st.binary(max_size=60),
    ),
)


def form(pairs: list[tuple[bytes, bytes]]) -> bytes:
    return b"&".join(
        quote_from_bytes(name).encode() + b"=" + quote_from_bytes(value).encode()
        for name, value in pairs
    )


@sized
def test_any_parameters_are_answered_by_no_error_of_the_server(fuzzed, count):
    @examples(count)
    @given(METHODS, PATHS, PARAMETERS, BODIES)
    @example(b"GET", b"/v2/keys/a", [(b"wait", b"true"), (b"waitIndex", b"9" * 40)], None)
    @example(b"GET", b"/v2/keys/%", [], None)
    @example(b"HEAD", b"/v2/keys/%zz", [], None)
    @example(b"DELETE", b"/v2/keys/", [(b"prevValue", b"true")], None)
    def check(
        method: bytes,
        path: bytes,
        pairs: list[tuple[bytes, bytes]],
        body: tuple[bytes, bytes] | None,
    ) -> None:
        head = method + b" " + path + (b"?" + form(pairs) if pairs else b"") + b" HTTP/1.1\r\n"
        head += b"Host: h\r\n"
        content = b""
        if body is not None:
            content_type, content = body
            head += b"Content-Type: %b\r\nContent-Length: %d\r\n" % (content_type, len(content))
        said = exchange(fuzzed, head + b"\r\n" + content)
        match = STATUS_LINE.match(said)
        assert match, said[:200]
        status = int(match[1])
        assert status != 500 or (NO_BUG in said and path.startswith(b"/v2/members")), said
        answer = said.partition(b"\r\n\r\n")[2]
        if BAD_ESCAPE.search(path):
            assert answer == b"400 Bad Request"  # as in Go, by HTTP itself
            return
        is_asked_of_keys = path.startswith(b"/v2/keys/") and method in (b"GET", b"PUT", b"DELETE")
        if is_asked_of_keys and status in (400, 403, 404, 412):
            # As in etcd, a cause that is empty is left out.
            assert {"errorCode", "message", "index"} <= json.loads(answer).keys()

    check()
    assert_serves(fuzzed)

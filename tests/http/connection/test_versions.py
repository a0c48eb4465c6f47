"""HTTP/1.0, old heads, and what is no HTTP/1.1."""

import contextlib
import time

import pytest

from tests.support.connections import (
    EVIL,
    VERSION,
    assert_refused,
)
from tests.support.raw import request
from tests.support.server import FORM, PATIENCE_S


def test_http_1_0_closes_after_the_answer(raw):
    raw.send(b"GET /v2/keys/ HTTP/1.0\r\n\r\n" + VERSION)
    answer = raw.answer()
    assert answer.status == 200
    assert "transfer-encoding" not in answer.headers
    assert raw.closed()


@pytest.mark.parametrize("target", ["/v2/keys/", "/v2/keys/none", "/version", "/nothing"])
def test_http_1_0_keeps_the_connection_when_asked(raw, target):
    for _ in range(2):
        raw.send(f"GET {target} HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n".encode())
        assert raw.answer().headers["connection"] == "keep-alive"


def test_an_http_1_0_watch_ends_with_the_connection(raw, server, client):
    raw.send(b"GET /v2/keys/ten?wait=true HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    head = raw.head()
    assert head.headers["connection"] == "close"
    assert not {"transfer-encoding", "content-length"} & head.headers.keys()
    client.put("/ten", 1)
    assert raw.rest().endswith(b'"createdIndex":%d}}\n' % client.get("/ten").index)


def test_an_http_1_0_request_with_chunks_ends_the_connection(raw):
    body = b"7\r\nvalue=x\r\n0\r\n\r\n"
    raw.send(
        b"PUT /v2/keys/f10 HTTP/1.0\r\nConnection: keep-alive\r\nContent-Type: %b\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n" % FORM.encode() + body + VERSION
    )
    assert raw.answer().headers["connection"] == "close"
    assert raw.closed()


def test_a_request_without_a_host_is_refused(raw):
    raw.send(b"GET /version HTTP/1.1\r\n\r\n")
    assert_refused(raw.answer(), 400, "Bad Request: missing required Host header")
    assert raw.closed()


@pytest.mark.parametrize("target", ["/version", "/v2/keys/", "/nothing"])
@pytest.mark.parametrize("host", ["a b", "a\r\nHost: b", "\xff", "a/b"])
def test_a_malformed_host_is_refused(raw, target, host):
    raw.send(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1"))
    assert_refused(raw.answer(), 400, "malformed Host header")
    assert raw.closed()


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/2.0",
        b"GET foo HTTP/1.1",
        b"GET a:b HTTP/1.1",
        b"GET ://h/ HTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_request_line_is_refused(raw, line):
    """Of the lines that the parser refuses (test_request_parser.py) the first, and TLS."""
    raw.send(line + b"\r\nHost: h\r\n\r\n" + VERSION)
    assert_refused(raw.answer(), 400)
    assert raw.closed()


OLD_HEADS = {
    "LF alone": b"PUT /v2/keys/old HTTP/1.1\nHost: h\nContent-Type: %b\nContent-Length: 7\n\n",
    "LF alone, HTTP/1.0": b"PUT /v2/keys/old HTTP/1.0\nContent-Type: %b\nContent-Length: 7\n\n",
    "LF at the end": b"PUT /v2/keys/old HTTP/1.1\r\nHost: h\r\nContent-Type: %b\r\n"
    b"Content-Length: 7\r\n\n",
}


@pytest.mark.parametrize("size", [1 << 20, 1], ids=["at once", "byte by byte"])
@pytest.mark.parametrize("form", OLD_HEADS)
def test_a_head_with_line_feeds_alone_is_the_last_of_its_connection(raw, client, form, size):
    stream = OLD_HEADS[form] % FORM.encode() + b"value=1" + EVIL
    with contextlib.suppress(ConnectionError):  # it has been answered before its end
        raw.send(*(stream[i : i + size] for i in range(0, len(stream), size)))
    answer = raw.answer()
    assert answer.json["node"]["value"] == "1"
    assert answer.headers["connection"] == "close"
    assert raw.closed()
    assert client.get("/evil").status == 404


def test_line_ends_that_can_be_read_in_two_ways_are_refused(raw):
    assert_refused(raw.send(b"GET /version HTTP/1.1\nHost: h\r\n\r\n" + VERSION).answer(), 400)
    assert raw.closed()


@pytest.mark.parametrize("times", [1, 2])
def test_equal_lengths_and_folded_fields_are_taken(raw, times):
    for _ in range(times):  # the second time from the cache
        answer = raw.ask(
            "PUT", "/v2/keys/old", "Content-Length: 7", "User-Agent: a\r\n\tb", body=b"value=2"
        )
        assert answer.json["node"]["value"] == "2"


def test_empty_lines_before_a_request_are_passed_over(raw):
    assert raw.send(b"\r\n\r\n\r\n" + VERSION).answer().status == 200
    assert raw.send(b"\r", b"\n", VERSION).answer().status == 200


def test_a_flood_of_empty_lines_delays_no_client(server, raw):
    started = time.monotonic()
    raw.send(b"\r\n" * (4 << 20) + VERSION)
    assert raw.answer().status == 200
    assert time.monotonic() - started < PATIENCE_S / 2


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"get /v2/keys/none", 405),
        (b"Get /version", 405),
        (b"BREW /v2/keys/none", 405),
        (b"BREW /version", 405),
        (b"BREW /nothing", 404),
        (b"CONNECT /v2/keys/none", 405),
        (b"CONNECT /v2/keys//none", 405),
        (b"CONNECT h:443", 404),
        (b"OPTIONS *", 200),
        (b"GET http://h/version", 200),
        (b"GET HTTP://H/version?x", 200),
        (b"GET http://h/v2/keys/none?x", 404),
        (b"GET http://h/v2//keys", 301),
        (b"GET /v%65rsion", 200),
        (b"GET /%76%32/keys/", 200),
        (b"GET /version?%zz", 200),
        (b"GET /v2/keys/\xff", 404),
        (b"GET /\xff", 404),
    ],
)
def test_methods_and_targets_of_all_kinds(raw, line, status):
    assert raw.send(line + b" HTTP/1.1\r\nHost: h\r\n\r\n").answer().status == status
    assert raw.ask("GET", "/version").status == 200


def test_a_star_is_refused_without_a_body(raw):
    answer = raw.send(b"GET * HTTP/1.1\r\nHost: h\r\n\r\n").answer()
    assert (answer.status, answer.body, answer.headers["connection"]) == (400, b"", "close")
    assert raw.closed()


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS", "BREW"])
@pytest.mark.parametrize("target", ["/v2/keys/%zz", "/%", "/version%4"])
def test_a_bad_escape_in_a_path_is_refused(raw, method, target):
    raw.send(request(method, target, body=b"value=1") + VERSION)
    answer = raw.answer()
    assert_refused(answer, 400)
    assert answer.body == b"400 Bad Request"
    assert raw.closed()


def test_an_upgrade_is_not_taken_up(raw):
    for _ in range(2):
        answer = raw.ask("GET", "/version", "Connection: Upgrade", "Upgrade: websocket")
        assert answer.status == 200

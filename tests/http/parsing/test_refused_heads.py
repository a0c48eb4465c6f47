"""Heads that the request parser refuses, and those that end their connection."""

from http import HTTPStatus

import pytest

from kvd.http.parsing.request_parser import (
    MALFORMED,
    SPOKE_TLS,
    TOO_LONG,
    Refusal,
    RequestParser,
)
from tests.support.parsed import EVIL, GET, LIMIT, PUT, Parsed, bytewise, new_blocks, parse


@pytest.mark.parametrize(
    "line",
    [
        b"GET",
        b"GET /",
        b"GET / HTTP/2.0",
        b"GET / HTTP/0.9",
        b"GET / HTTP/x",
        b"GET / http/1.1",
        b"GET  / HTTP/1.1",
        b"GET / HTTP/1.1 ",
        b" GET / HTTP/1.1",
        b"GET /a b HTTP/1.1",
        b"GET /\0 HTTP/1.1",
        b"GET /\x7f HTTP/1.1",
        b"G(T / HTTP/1.1",
        b"G\xc3\xa4T / HTTP/1.1",
        b"GET / HTTP/1.1\rX: y",
        b"PRI * HTTP/2.0",
    ],
)
def test_what_is_no_request_line_is_refused(line):
    sent = line + b"\r\nHost: h\r\n\r\n" + EVIL
    assert parse(sent) == parse(*bytewise(sent)) == Parsed(refusal=MALFORMED, is_complete=False)


def test_tls_is_recognized_by_its_first_byte():
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    for pieces in ([hello], bytewise(hello)):
        assert parse(*pieces).refusal is SPOKE_TLS


SMUGGLED = {
    "CL.TE": b"Content-Length: 35\r\nTransfer-Encoding: chunked",
    "TE.CL": b"Transfer-Encoding: chunked\r\nContent-Length: 35",
    "CL.CL": b"Content-Length: 5\r\nContent-Length: 35",
    "CL,CL": b"Content-Length: 5, 35",
    "TE.TE": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "TE x": b"Transfer-Encoding: xchunked",
    "TE blank": b"Transfer-Encoding : chunked",
    "TE folded": b"Transfer-Encoding:\r\n chunked",
    "TE tab": b"Transfer-Encoding:\x0bchunked",
    "TE gzip": b"Transfer-Encoding: gzip, chunked",
    "LF": b"X: y\nContent-Length: 35",
    "CR": b"X: y\rContent-Length: 35",
}


@pytest.mark.parametrize("shape", SMUGGLED)
@pytest.mark.parametrize("method", [b"GET", b"PUT"])
def test_a_smuggled_request_is_refused_with_its_carrier(shape, method):
    head = method + b" /carrier HTTP/1.1\r\nHost: h\r\n" + SMUGGLED[shape] + b"\r\n\r\n"
    parsed = parse(head + b"0\r\n\r\n" + EVIL)
    assert (parsed.requests, parsed.refusal) == ([], MALFORMED)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /a HTTP/1.1\nHost: h\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: h\n\r\n",
        b"GET /a HTTP/1.1\nHost: h\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: h\n\n",
        b"GET /a HTTP/1.1\r\nHost: h\nX: y\r\n\r\n",
        b"GET /a HTTP/1.1\nHost: h\rX: y\n\n",
    ],
)
def test_line_ends_that_can_be_read_in_two_ways_are_refused(sent):
    parsed = parse(sent + EVIL)
    assert (parsed.requests, parsed.refusal) == ([], MALFORMED)


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\n"], ids=["LF alone", "LF at the end"])
@pytest.mark.parametrize("split", [bytewise, lambda data: [data]], ids=["byte by byte", "at once"])
def test_a_head_with_line_feeds_alone_is_the_last_of_its_connection(end, split):
    lines = PUT.replace(b"\r\n\r\n", end)
    sent = lines.replace(b"\r\n", b"\n") if end == b"\n\n" else lines
    parsed = parse(*split(sent))
    assert parsed.requests == [("PUT /a HTTP/1.1", b"value=1")]
    assert [head.keep_alive for head in parsed.heads] == [False]


@pytest.mark.parametrize(
    ("headers", "refusal"),
    [
        (b"", Refusal(HTTPStatus.BAD_REQUEST, "missing required Host header")),
        (b"Host: a b\r\n", Refusal(HTTPStatus.BAD_REQUEST, "malformed Host header")),
        (b"Host: a\r\nHost: b\r\n", Refusal(HTTPStatus.BAD_REQUEST, "malformed Host header")),
        (b"Host: h\r\nExpect: 200-ok\r\n", Refusal(HTTPStatus.EXPECTATION_FAILED)),
    ],
)
def test_a_well_formed_head_may_be_refused_and_is_known_then(headers, refusal):
    parsed = parse(b"GET /a HTTP/1.1\r\n" + headers + b"\r\n")
    assert [head.refusal for head in parsed.heads] == [refusal]
    assert parsed.heads[0].target == "/a"


def test_http_1_0_needs_no_host_and_knows_no_expectations():
    sent = b"GET /a HTTP/1.0\r\nExpect: anything\r\nContent-Length: 1\r\n\r\n"
    (head,) = parse(sent).heads
    assert (head.http10, head.keep_alive, head.refusal) == (True, False, None)


@pytest.mark.parametrize(
    ("version", "headers", "keep_alive"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Connection: close\r\n", False),
        (b"1.1", b"Connection: keep-alive, Close\r\n", False),
        (b"1.0", b"", False),
        (b"1.0", b"Connection: Keep-Alive\r\n", True),
        (b"1.0", b"Connection: keep-alive, close\r\n", False),
        (b"1.0", b"Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n", False),
    ],
)
def test_whether_the_connection_may_stay_open(version, headers, keep_alive):
    sent = b"PUT /a HTTP/%b\r\nHost: h\r\n%b\r\n" % (version, headers)
    assert [head.keep_alive for head in parse(sent).heads] == [keep_alive]


# The length of heads.


def padded(size: int, end: bytes = b"\r\n\r\n") -> bytes:
    """A request whose head is so long, the line ends behind it apart."""
    head = b"GET /a HTTP/1.1\r\nHost: h\r\nX: "
    return head + b"x" * (size - len(head)) + end


@pytest.mark.parametrize("split", [bytewise, lambda data: [data]], ids=["byte by byte", "at once"])
@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\r\n\n"], ids=["CRLF", "LF"])
def test_a_head_is_bounded(split, end):
    assert parse(*split(padded(LIMIT, end))).refusal is None
    for sent in (padded(LIMIT + 1, end), padded(LIMIT + 1, b""), padded(5 * LIMIT, end)):
        parsed = parse(*split(sent))
        assert (parsed.requests, parsed.refusal) == ([], TOO_LONG)


def test_an_unfinished_head_is_known_to_be_so_without_a_look_at_all_of_it():
    parser = RequestParser(new_blocks(), LIMIT)
    parser.feed(GET[:10])
    assert not parser.is_head_unfinished  # it has not been searched yet
    assert parser.find_head() is False
    parser.feed(GET[10:-1])
    assert parser.is_head_unfinished
    parser.feed(GET[-1:])
    assert not parser.is_head_unfinished
    assert parser.find_head() is True


def test_empty_lines_before_a_request_are_dropped():
    for pieces in ([b"\r\n\r\n\r\n" + GET], [b"\r", b"\n", GET], bytewise(b"\r\n\r\n" + GET)):
        assert parse(*pieces).requests == [("GET /a HTTP/1.1", b"")]
    assert parse(b"\r\n" * LIMIT).is_complete

"""The request parser: bytes in, requests out, with no socket between."""

from dataclasses import dataclass, field
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvd.http.parsing.header_cache import Blocks
from kvd.http.parsing.request_parser import (
    MALFORMED,
    SHORT_LINE_BYTES,
    SPOKE_TLS,
    TOO_LONG,
    Refusal,
    Request,
    RequestParser,
    is_deep,
)
from tests.http.test_fuzz import RAW

LIMIT = 1 << 10
GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
PUT = b"PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: 7\r\n\r\nvalue=1"
CHUNKED = b"PUT /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = b"3\r\nval\r\n4;x\r\nue=1\r\n0\r\nT: v\r\n\r\n"
EVIL = b"GET /evil HTTP/1.1\r\nHost: h\r\n\r\n"


@dataclass
class Parsed:
    """What a parser has made of some bytes."""

    requests: list[tuple[str, bytes]] = field(default_factory=list)
    """The request lines as they were understood, and the bodies as far as they have come."""
    heads: list[Request] = field(default_factory=list)
    whole: int = 0
    """How many requests were taken whole."""
    refusal: Refusal | None = None
    is_complete: bool = True
    """Whether the last request has come to its end."""


def parse(*pieces: bytes, limit: int = LIMIT, blocks: Blocks | None = None) -> Parsed:
    """Feed the pieces one by one, and take after each what there is."""
    parser = RequestParser(blocks or new_blocks(), limit)
    parsed = Parsed()
    for piece in pieces:
        parser.feed(piece)
        while parser.buffer and parsed.refusal is None and take(parser, parsed):
            pass
    parsed.is_complete = not parser.buffer and not parser.body_left
    return parsed


def new_blocks() -> Blocks:
    """A cache of header blocks whose requests may all be taken whole."""
    return Blocks(lambda block: False)


def take(parser: RequestParser, parsed: Parsed) -> bool:
    """Take what comes next; whether there may be more."""
    if parser.body_left:
        piece = parser.read_body()
        if isinstance(piece, Refusal):
            parsed.refusal = piece
            return False
        line, body = parsed.requests.pop()
        parsed.requests.append((line, body + piece))
        return not parser.body_left or parser.has_more
    whole = parser.take_whole()
    if whole is not None:
        head, _, body = whole.partition(b"\r\n\r\n")
        parsed.whole += 1
        parsed.requests.append((head.partition(b"\r\n")[0].decode("latin-1"), body))
        return True
    found = parser.find_head()
    request = parser.take_head() if found is True else found
    if isinstance(request, Request):
        parsed.heads.append(request)
        request_line = f"{request.method} {request.target} HTTP/1.{0 if request.http10 else 1}"
        parsed.requests.append((request_line, b""))
        parsed.refusal = request.refusal
        return True
    parsed.refusal = request or None
    return False


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


# Requests.


def test_a_request_without_a_body():
    parsed = parse(GET)
    assert parsed.requests == [("GET /a HTTP/1.1", b"")]
    (head,) = parsed.heads
    assert (head.method, head.target, head.http10, head.keep_alive) == ("GET", "/a", False, True)
    assert head.block.headers["host"] == "h"
    assert parsed.is_complete


@pytest.mark.parametrize("sent", [PUT, CHUNKED + BODY], ids=["length", "chunks"])
def test_a_request_split_anywhere(sent):
    expected = [("PUT /a HTTP/1.1", b"value=1"), ("GET /a HTTP/1.1", b"")]
    for cut in range(len(sent)):
        parsed = parse(sent[:cut], sent[cut:] + GET)
        assert (parsed.requests, parsed.refusal) == (expected, None), cut
    assert parse(*bytewise(sent + GET)).requests == expected


def test_pipelined_requests_are_taken_in_order():
    sent = (GET + PUT + CHUNKED + BODY) * 5
    lines = [line for line, _ in parse(sent).requests]
    assert lines == ["GET /a HTTP/1.1", "PUT /a HTTP/1.1", "PUT /a HTTP/1.1"] * 5


@given(RAW, st.lists(st.integers(0, 300), max_size=4))
def test_it_does_not_matter_how_the_bytes_are_split(data, cuts):
    places = sorted(cut for cut in cuts if cut < len(data))
    pieces = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
    whole, split = parse(data), parse(*pieces)
    assert (split.requests, split.refusal) == (whole.requests, whole.refusal)


@pytest.mark.parametrize("length", range(1, len(PUT)))
def test_a_request_without_its_end_is_not_complete(length):
    parsed = parse(PUT[:length])
    assert not parsed.is_complete
    assert parsed.refusal is None


def test_targets_and_methods_are_taken_as_they_come():
    for line in ("BREW /v2/keys/ü%zz HTTP/1.1", "get * HTTP/1.1", "GET http://h/a?b HTTP/1.1"):
        sent = f"{line}\r\nHost: h\r\n\r\n".encode("latin-1")
        assert parse(sent).requests == [(line, b"")]


# Requests that are taken whole.


@pytest.mark.parametrize("sent", [GET, PUT])
def test_a_request_whose_block_is_known_is_taken_whole(sent):
    blocks = new_blocks()
    first, second = parse(sent, blocks=blocks), parse(sent, blocks=blocks)
    assert (first.whole, second.whole) == (0, 1)
    assert first.requests == second.requests


@pytest.mark.parametrize(
    "sent", [CHUNKED + BODY, b"GET /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"]
)
def test_a_request_that_is_not_plain_is_never_taken_whole(sent):
    blocks = new_blocks()
    assert [parse(sent, blocks=blocks).whole for _ in range(3)] == [0, 0, 0]


def test_a_request_is_taken_whole_only_when_it_has_come_whole():
    blocks = new_blocks()
    parse(PUT, blocks=blocks)
    for cut in range(1, len(PUT)):
        parsed = parse(PUT[:cut], PUT[cut:], blocks=blocks)
        assert (parsed.whole, parsed.requests) == (0, [("PUT /a HTTP/1.1", b"value=1")])


def test_a_whole_request_can_be_put_back():
    blocks = new_blocks()
    parse(PUT, blocks=blocks)
    parser = RequestParser(blocks, LIMIT)
    parser.feed(PUT + GET)
    before = parser.buffer
    assert parser.take_whole() == PUT
    parser.put_back(before)
    assert parser.find_head() is True
    assert parser.take_head().method == "PUT"
    assert parser.read_body() == b"value=1"
    assert parser.buffer == GET


def test_no_request_is_taken_whole_after_that_was_declined():
    blocks = new_blocks()
    parse(GET, blocks=blocks)
    parser = RequestParser(blocks, LIMIT)
    parser.decline_whole()
    parser.feed(GET)
    assert parser.take_whole() is None
    assert parser.find_head() is True


# Heads that are refused.


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


def test_tls_is_told_from_other_bytes_by_its_first_one():
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


# Bodies.


def test_a_malformed_chunk_is_refused():
    parsed = parse(CHUNKED + b"3\r\nvalue\r\n" + EVIL)
    assert (parsed.requests, parsed.refusal) == ([("PUT /a HTTP/1.1", b"")], MALFORMED)


def test_many_small_chunks_are_read_in_several_steps():
    parser = RequestParser(new_blocks(), LIMIT)
    parser.feed(CHUNKED)
    assert parser.find_head() is True
    parser.take_head()
    parser.feed(b"1\r\nx\r\n" * 1000)
    first = parser.read_body()
    assert 0 < len(first) < 1000
    assert parser.has_more
    parser.feed(b"0\r\n\r\n" + GET)
    rest = b""
    while parser.body_left:
        rest += parser.read_body()
    assert len(first) + len(rest) == 1000
    assert parser.buffer == GET


@pytest.mark.parametrize(
    ("sent", "expects"),
    [
        (PUT[:-7].replace(b"Host", b"Expect: 100-continue\r\nHost"), True),
        (PUT.replace(b"Host", b"Expect: 100-continue\r\nHost"), False),  # it has come already
        (CHUNKED.replace(b"Host", b"Expect: 100-Continue\r\nHost"), True),
        (GET.replace(b"Host", b"Expect: 100-continue\r\nHost"), False),
        (PUT[:-7].replace(b"1.1\r\n", b"1.0\r\nExpect: 100-continue\r\n"), False),
        (PUT[:-7], False),
    ],
)
def test_permission_is_expected_for_a_body_that_has_not_come(sent, expects):
    parser = RequestParser(new_blocks(), LIMIT)
    parser.feed(sent)
    assert parser.find_head() is True
    assert parser.take_head().refusal is None
    assert parser.expects is expects


@pytest.mark.parametrize(
    ("sent", "is_short"),
    [
        (PUT[:-7], True),
        (PUT[:-7].replace(b": 7", b": %d" % (256 << 10)), True),
        (PUT[:-7].replace(b": 7", b": %d" % (257 << 10)), False),
        (PUT[:-7].replace(b"Host", b"Expect: 100-continue\r\nHost"), False),
        (CHUNKED, False),
    ],
)
def test_the_rest_of_a_body_is_short_if_its_length_is_known(sent, is_short):
    parser = RequestParser(new_blocks(), LIMIT)
    parser.feed(sent)
    assert parser.find_head() is True
    parser.take_head()
    assert parser.is_rest_short is is_short


# What requests cost.


@pytest.mark.parametrize(
    ("target", "header_bytes", "is_costly"),
    [
        (b"/v2/keys/a", 10, False),
        (b"/v2/raw/a", 10, False),
        (b"/metrics", 10, True),
        (b"/v2/keysa", 10, True),
        (b"/v2/keys/" + b"a" * 2000, 10, True),
        (b"/v2/keys" + b"/a" * 70, 10, False),  # too short a line to be looked at
        (b"/v2/keys" + b"/a" * 200, 10, True),
        (b"/v2/keys/" + b"a" * 500, 10, False),
        (b"/v2/keys/a", 5000, True),
    ],
)
def test_costly_requests_are_told_from_others(target, header_bytes, is_costly):
    parser = RequestParser(new_blocks(), 64 << 10)
    parser.feed(b"GET %b HTTP/1.1\r\nHost: h\r\nX: %b\r\n\r\n" % (target, b"x" * header_bytes))
    assert parser.find_head() is True
    assert parser.is_costly is is_costly


def test_depth_counts_in_the_path_alone():
    line = b"/a" * SHORT_LINE_BYTES
    assert is_deep(line, len(line))
    assert not is_deep(b"/a?" + line, len(line))
    assert is_deep(b"/" + b"%2f" * 70, 211)

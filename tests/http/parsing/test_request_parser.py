"""The request parser: bytes in, requests out, with no socket between."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvd.http.parsing.request_parser import (
    MALFORMED,
    SHORT_LINE_BYTES,
    RequestParser,
    is_deep,
)
from tests.http.test_fuzz import RAW
from tests.support.parsed import BODY, CHUNKED, EVIL, GET, LIMIT, PUT, bytewise, new_blocks, parse

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
def test_costly_requests_are_recognized(target, header_bytes, is_costly):
    parser = RequestParser(new_blocks(), 64 << 10)
    parser.feed(b"GET %b HTTP/1.1\r\nHost: h\r\nX: %b\r\n\r\n" % (target, b"x" * header_bytes))
    assert parser.find_head() is True
    assert parser.is_costly is is_costly


def test_depth_counts_in_the_path_alone():
    line = b"/a" * SHORT_LINE_BYTES
    assert is_deep(line, len(line))
    assert not is_deep(b"/a?" + line, len(line))
    assert is_deep(b"/" + b"%2f" * 70, 211)

"""extras/raw.py: a value as a body, and the conditions of HTTP as those of the API."""

import pytest

from kvd.storage.format.node import Node
from kvd.v2.commands import (
    CompareAndDelete,
    CompareAndSwap,
    Create,
    Delete,
    Get,
    Set,
    Update,
    Watch,
)
from kvd.v2.errors import INVALID_FIELD, ApiError
from kvd.v2.extras.parameters import ACCEPT, IF_NONE_MATCH
from kvd.v2.extras.raw import (
    Conditions,
    ReadHeaders,
    entity_tag,
    is_named,
    is_text,
    parse_read,
    parse_write,
    prefers_raw,
    raw_lines,
    type_lines,
    wants_events,
)

SECOND_NS = 1_000_000_000
ANY, NO = b"*", b""


def write(method="PUT", query=b"", value=b"v", if_match=b"", if_none_match=b""):
    command, *_ = parse_write(method, b"/a", query, value, Conditions(if_match, if_none_match))
    return command


def read(query=b"", *, path_is_raw=False, **headers):
    request, *_ = parse_read("GET", b"/a", query, ReadHeaders(**headers), path_is_raw=path_is_raw)
    return request


@pytest.mark.parametrize(
    ("method", "query", "if_match", "if_none_match", "kind"),
    [
        ("PUT", b"", NO, NO, Set),
        ("PUT", b"", b'"7"', NO, CompareAndSwap),
        ("PUT", b"", ANY, NO, Update),
        ("PUT", b"", NO, ANY, Create),
        ("PUT", b"prevValue=x", b'"7"', NO, CompareAndSwap),
        ("PUT", b"prevIndex=7", b' "7" ', NO, CompareAndSwap),
        ("PUT", b"ttl=5", ANY, NO, Update),
        ("DELETE", b"", NO, NO, Delete),
        ("DELETE", b"", b'"7"', NO, CompareAndDelete),
    ],
)
def test_a_condition_of_http_is_one_of_the_api(method, query, if_match, if_none_match, kind):
    command = write(method, query, if_match=if_match, if_none_match=if_none_match)
    assert type(command) is kind
    assert getattr(command, "prev_index", 7) == 7
    if method == "PUT":
        assert command.value == b"v"


@pytest.mark.parametrize(
    "value", [b"", b"value=x&ttl=5", bytes(range(256)), b"\xff"], ids=["empty", "form", "all", "ff"]
)
def test_a_body_is_the_value_whatever_it_is(value):
    assert write(value=value).value == value


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"if_match": b"7"}, b'invalid value for "If-Match"'),
        ({"if_match": b'W/"7"'}, b'invalid value for "If-Match"'),
        ({"if_match": b'"0"'}, b'invalid value for "If-Match"'),
        ({"if_match": b'"7", "8"'}, b'invalid value for "If-Match"'),
        ({"if_none_match": b'"7"'}, b'invalid value for "If-None-Match"'),
        ({"if_none_match": ANY, "if_match": ANY}, b'invalid value for "If-None-Match"'),
        ({"if_none_match": ANY, "method": "DELETE"}, b'invalid value for "If-None-Match"'),
        ({"if_match": b'"7"', "query": b"prevIndex=8"}, b'"If-Match" contradicts the query'),
        ({"if_match": b'"7"', "query": b"prevExist=false"}, b'"If-Match" contradicts the query'),
        ({"if_none_match": ANY, "query": b"prevIndex=8"}, b'"If-None-Match" contradicts the query'),
        ({"query": b"value=x"}, b'"value" cannot be used with "raw"'),
        ({"query": b"dir=true"}, b'"dir" cannot be used with "raw"'),
    ],
)
def test_what_contradicts_itself_is_refused(options, cause):
    with pytest.raises(ApiError) as caught:
        write(**options)
    assert (caught.value.code, caught.value.cause) == (INVALID_FIELD, cause)


@pytest.mark.parametrize(
    ("accept", "is_raw"),
    [
        ("application/octet-stream", True),
        ("text/plain", True),
        ("Text/*;q=0.5", True),
        ("text/plain;q=0", False),
        ("text/plain, */*", False),
        ("application/json, text/plain", False),
        ("application/json;q=0.0, text/plain", True),
        ("text/html", False),
        ("", False),
    ],
)
def test_a_value_is_sent_as_it_is_if_json_is_not_wanted(accept, is_raw):
    assert prefers_raw(accept) == is_raw
    request = read(accept=accept)
    assert isinstance(request, Get)
    assert request.extras == (((ACCEPT, b""),) if is_raw else ())


def test_a_path_that_asks_for_it_needs_no_header():
    request = read(path_is_raw=True)
    assert request.extras == ((b"raw", b"true"),)
    assert read(b"raw=false", path_is_raw=True).extras == ((b"raw", b"true"),)


def test_entity_tags_count_for_raw_reads_only():
    assert read(etags=b'"7"').extras == ()
    assert (IF_NONE_MATCH, b'"7"') in read(etags=b'"7"', path_is_raw=True).extras


def test_a_watch_is_one_of_events_if_its_client_takes_them():
    assert wants_events("text/event-stream;q=0.9, */*")
    assert not wants_events("text/event-stream;q=0")
    request = read(b"wait=true", accept="text/event-stream", last_event_id=b"4")
    assert isinstance(request, Watch)
    assert (request.stream, request.wait_index) == (True, 5)
    with pytest.raises(ApiError, match="wait"):
        read(b"wait=true", path_is_raw=True)


@pytest.mark.parametrize("at", [0, 100_000, 262_143, 262_144, 299_999])
def test_one_bad_byte_anywhere_makes_a_value_no_text(at):
    text = ("é" * 150_000).encode()
    assert all(is_text(text))
    assert all(is_text(b""))
    assert not all(is_text(text[:at] + b"\xff" + text[at + 1 :]))


def test_no_character_is_cut_by_a_check_in_pieces():
    for shift in range(4):
        assert all(is_text(b"x" * shift + "\N{ROCKET}".encode() * 140_000))


@pytest.mark.parametrize(
    ("tags", "named"),
    [('"7"', True), ('"6", W/"7"', True), ("*", True), ('"77"', False), ("7", False), ("", False)],
)
def test_a_tag_is_named_by_weak_comparison(tags, named):
    assert is_named(tags.encode(), entity_tag(Node(b"v", 3, 7))) == named


def test_headers_say_what_the_value_is():
    lines = raw_lines(Node(b"v", 3, 7, 12 * SECOND_NS), 2 * SECOND_NS)
    assert lines == (
        b'ETag: "7"\r\nX-Kvd-Created-Index: 3\r\nX-Kvd-Modified-Index: 7\r\nX-Kvd-TTL: 10\r\n'
    )
    assert b"X-Kvd-TTL" not in raw_lines(Node(b"v", 3, 7), 0)
    for text in (True, False):
        assert b"nosniff\r\nContent-Security-Policy: sandbox\r\n" in type_lines(text=text)

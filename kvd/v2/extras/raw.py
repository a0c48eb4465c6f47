"""Raw values: a file's bytes as the body of a request or an answer, with entity tags (RFC 9110).

The entity tag of a file is its modified index. What is UTF-8 is text, all else is octets; either
way headers forbid a browser to take it for anything else, and to run nothing that is in it.

A write is that of `/v2/keys` with the same query, but its value is the body, whatever that is. In
place of conditions in the query it may have those of HTTP:

    If-Match: "7"        prevIndex=7
    If-Match: *          prevExist=true
    If-None-Match: *     prevExist=false
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple, NoReturn

from kvd.json_text import cut
from kvd.storage.format.node import Node
from kvd.v2.commands import (
    CompareAndDelete,
    CompareAndSwap,
    Create,
    CreateInOrder,
    Delete,
    Get,
    Request,
    Update,
    Watch,
)
from kvd.v2.errors import INVALID_FIELD, ApiError
from kvd.v2.extras.parameters import ACCEPT, IF_NONE_MATCH
from kvd.v2.extras.watch import as_event_stream
from kvd.v2.request import Parsed, parse_whole, uint
from kvd.v2.response import ttl_s

RAW = b"/v2/raw"
METHODS = ("HEAD", "GET", "PUT", "DELETE")

_CHECKED_BYTES = 256 << 10
_TAG = re.compile(rb'"(\d+)"')
_MEDIA = ("text/plain", "text/*", "application/octet-stream")
_JSON = ("application/json", "application/*", "*/*")


class Conditions(NamedTuple):
    """Conditional headers of a request; empty where absent."""

    if_match: bytes = b""
    if_none_match: bytes = b""


class ReadHeaders(NamedTuple):
    """Headers of a read; empty where absent."""

    accept: str = ""
    etags: bytes = b""
    last_event_id: bytes = b""


@lru_cache(maxsize=64)
def wants_events(accept: str) -> bool:
    """Return whether an Accept header names server-sent events, as EventSource does."""
    return "text/event-stream" in _allowed(accept)


def _allowed(accept: str) -> set[str]:
    """Return the media types that an Accept header allows."""
    allowed = set()
    for one in accept.split(","):
        media_type, *parameters = (part.strip().lower() for part in one.split(";"))
        if not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters):
            allowed.add(media_type)
    return allowed


@lru_cache(maxsize=64)
def prefers_raw(accept: str) -> bool:
    """Return whether an Accept header allows the value as it is, and no JSON."""
    allowed = _allowed(accept)
    return not allowed.isdisjoint(_MEDIA) and allowed.isdisjoint(_JSON)


def parse_read(
    method: str, key: bytes, query: bytes, headers: ReadHeaders, *, path_is_raw: bool
) -> Parsed:
    """Return the read of a request, in which headers count.

    Args:
        method: GET or HEAD.
        key: the cleaned path of the key.
        query: the raw query string.
        headers: its headers that count.
        path_is_raw: its path asks for the value as it is.

    Raises:
        ApiError: 2xx, the first thing wrong.
    """
    request, no_value, recursive = parse_whole(method, key, query)
    if isinstance(request, Watch):
        if path_is_raw:
            _refuse(b'"wait" cannot be used with "raw"')
        if wants_events(headers.accept):
            request = as_event_stream(request, headers.last_event_id)
        return request, no_value, recursive
    assert isinstance(request, Get)
    extras = request.extras
    if path_is_raw:
        extras = (*(pair for pair in extras if pair[0] != b"raw"), (b"raw", b"true"))
    elif prefers_raw(headers.accept):
        extras = (*extras, (ACCEPT, b""))
    if headers.etags and any(name in (b"raw", ACCEPT) for name, _ in extras):
        extras = (*extras, (IF_NONE_MATCH, headers.etags))
    return request._replace(extras=extras), no_value, recursive


def parse_write(
    method: str, key: bytes, query: bytes, value: bytes, conditions: Conditions
) -> Parsed:
    """Return the command of a PUT or DELETE.

    Raises:
        ApiError: 2xx, the first thing wrong.
    """
    plain, no_value, recursive = parse_whole(method, key, query)
    name, condition = _as_parameter(method, conditions)
    command = plain
    if condition:
        # Of a parameter that is there twice the first one counts.
        command, *_ = parse_whole(method, key, condition + b"&" + query)
        if _contradicts(command, plain, condition):
            _refuse(b'"%b" contradicts the query' % name)
    if isinstance(command, Delete | CompareAndDelete):
        return command, no_value, recursive
    assert not isinstance(command, Get | Watch | CreateInOrder)
    for given, other in (
        (command.value, b"value"),
        (getattr(command, "dir", False), b"dir"),
        (getattr(command, "refresh", False), b"refresh"),
    ):
        if given:
            _refuse(b'"%b" cannot be used with "raw"' % other)
    return command._replace(value=value), no_value, recursive


def _as_parameter(method: str, conditions: Conditions) -> tuple[bytes, bytes]:
    """Return the name of the header that is a condition, and the parameter that says the same."""
    if_match, if_none_match = conditions
    if if_none_match:
        if if_none_match.strip() != b"*" or method != "PUT" or if_match:
            _refuse(b'invalid value for "If-None-Match"')
        return IF_NONE_MATCH, b"prevExist=false"
    if not if_match:
        return b"", b""
    if if_match.strip() == b"*":
        return b"If-Match", b"prevExist=true"
    tag = _TAG.fullmatch(if_match.strip())
    # In the query 0 is no condition.
    if tag is None or not uint(tag[1]):
        _refuse(b'invalid value for "If-Match"')
    return b"If-Match", b"prevIndex=" + tag[1]


def _contradicts(command: Request, plain: Request, condition: bytes) -> bool:
    """Return whether a query means another command without the condition of a header."""
    if condition == b"prevExist=false":
        # No other condition goes with it.
        return isinstance(plain, CompareAndSwap | Update)
    if isinstance(command, Create) or isinstance(plain, Create):
        return True
    before = plain.prev_index if isinstance(plain, CompareAndSwap | CompareAndDelete) else 0
    after = command.prev_index if isinstance(command, CompareAndSwap | CompareAndDelete) else 0
    return before not in (0, after)


def _refuse(cause: bytes) -> NoReturn:
    raise ApiError(INVALID_FIELD, cause)


def is_text(value: bytes) -> Iterator[bool]:
    """Yield for each piece of a value whether it is UTF-8: all are if the value is."""
    start = 0
    while start < len(value):
        end = cut(value, start + _CHECKED_BYTES)
        try:
            value[start:end].decode()
        except UnicodeDecodeError:
            yield False
        else:
            yield True
        start = end


def entity_tag(node: Node) -> bytes:
    """Return the entity tag of a file."""
    return b'"%d"' % node.modified_index


def is_named(tags: bytes, tag: bytes) -> bool:
    """Return whether an If-None-Match header names a tag, by weak comparison (section 13.1.2)."""
    named = [one.strip() for one in tags.split(b",")]
    return tags.strip() == b"*" or any(one.removeprefix(b"W/") == tag for one in named)


def raw_lines(node: Node, now_ns: int) -> bytes:
    """Return the header lines of an answer that are about the node."""
    lines = b"ETag: %b\r\nX-Kvd-Created-Index: %d\r\nX-Kvd-Modified-Index: %d\r\n" % (
        entity_tag(node),
        node.created_index,
        node.modified_index,
    )
    if node.expiration_ns:
        lines += b"X-Kvd-TTL: %d\r\n" % ttl_s(node.expiration_ns, now_ns)
    return lines


def type_lines(*, text: bool) -> bytes:
    """Return the header lines that say what the body is."""
    return (
        b"Content-Type: %b\r\nX-Content-Type-Options: nosniff\r\n"
        b"Content-Security-Policy: sandbox\r\n"
        % (b"text/plain; charset=utf-8" if text else b"application/octet-stream")
    )

"""Header blocks: parsed by llhttp, checked for what makes the framing of a request ambiguous."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import NamedTuple

import httptools
from tornado import httputil

# Tornado keeps the last thousand names.
_NAME_BYTES_MAX = 1024
# What Go's net/http takes for a host, with or without a port.
_HOST = re.compile(r"[A-Za-z0-9!$%&'()*+,\-.:;=\[\]_~]*")
_LENGTH = re.compile(rb"(?i:content-length):[ \t]*([0-9]+)[ \t]*")
# Fields that decide something here: these are not taken folded.
_DECISIVE = frozenset(
    b"authorization connection content-length content-type expect host origin sec-fetch-site "
    b"transfer-encoding upgrade".split()
)


class Block(NamedTuple):
    """A parsed header block, shared by all requests that bring the same bytes."""

    headers: httputil.HTTPHeaders
    content_length: int
    chunked: bool
    has_host: bool
    host_is_valid: bool
    content_type: str
    expect: str
    close: bool
    keep_alive: bool
    is_plain: bool
    """Nothing in it but what every HTTP/1.1 request has."""
    is_sized: bool
    """Plain, and its body has the length that it says: nothing is read beyond it."""


class _Collector:
    """Receives llhttp's callbacks."""

    def __init__(self) -> None:
        self.headers = httputil.HTTPHeaders()

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) > _NAME_BYTES_MAX:
            raise httptools.HttpParserError("the name of a field is too long")
        # llhttp leaves the blanks behind a value, which are none of it (RFC 9110 section 5.5).
        self.headers.add(name.decode("latin-1"), value.strip(b" \t").decode("latin-1"))


def with_crlf(head: bytes) -> bytes:
    r"""Return a head whose lines end in LF with lines that end in CRLF; empty if it is ambiguous.

    Two forms are taken (RFC 9112 section 2.2): LF ends every line and there is no CR, or LF ends
    the empty line alone. In any other mixture a proxy that knows CRLF only would see other fields
    than this server does, and so maybe another end of the body.
    """
    if b"\r" not in head:
        return head.replace(b"\n", b"\r\n")
    if head.endswith(b"\r\n\n") and head.count(b"\n") == head.count(b"\r\n") + 1:
        return head[:-1] + b"\r\n"
    return b""


def parse_block(raw: bytes) -> Block:
    """Return a header block, parsed.

    Raises:
        httptools.HttpParserError: it is malformed, or its framing is ambiguous or unknown here.
    """
    try:
        return _parse_strictly(raw)
    except httptools.HttpParserError:
        rewritten = _without_old_forms(raw)
        if rewritten == raw:
            raise
        return _parse_strictly(rewritten)


def _without_old_forms(raw: bytes) -> bytes:
    """Return a block without folded lines and repeated lengths, or as it is if that is not safe.

    Content-Length may be repeated with the same digits (RFC 9110 section 8.6). A field may be
    folded (RFC 9112 section 5.2) if it decides nothing here and no continuation line could be
    taken for a field or for the end of the head.
    """
    lines: list[bytes] = []
    length: bytes | None = None
    name = b""  # of the line before, which may be one that is left out
    for line in raw.removesuffix(b"\r\n").split(b"\r\n"):
        if line[:1] in (b" ", b"\t"):
            more = line.strip(b" \t")
            if not lines or not more or b":" in more or name in _DECISIVE:
                return raw
            lines[-1] += b" " + more
            continue
        name = line.partition(b":")[0].strip().lower()
        found = _LENGTH.fullmatch(line)
        if found is not None:
            if found[1] == length:
                continue
            length = found[1]
        lines.append(line)
    return b"\r\n".join([*lines, b""])


def _parse_strictly(raw: bytes) -> Block:
    collector = _Collector()
    parser = httptools.HttpRequestParser(collector)
    # An upgrade is an offer, declined by answering as if it had not been made.
    with suppress(httptools.HttpParserUpgrade):
        # The request line is a stand-in: llhttp knows a fixed set of methods, etcd answers any.
        parser.feed_data(b"POST / HTTP/1.1\r\n" + raw + b"\r\n")
    headers = collector.headers
    if headers.get("Transfer-Encoding", "chunked").lower() != "chunked":
        raise httptools.HttpParserError("a transfer coding that is not understood")
    connection = {word.strip().lower() for word in headers.get("Connection", "").split(",")}
    has_host = "Host" in headers
    host_is_valid = len(headers.get_list("Host")) <= 1 and bool(
        _HOST.fullmatch(headers.get("Host", ""))
    )
    expect = headers.get("Expect", "").lower()
    chunked = "Transfer-Encoding" in headers
    is_plain = has_host and host_is_valid and not expect and "close" not in connection
    return Block(
        headers,
        content_length=int(headers.get("Content-Length") or 0),
        chunked=chunked,
        has_host=has_host,
        host_is_valid=host_is_valid,
        content_type=headers.get("Content-Type", ""),
        expect=expect,
        close="close" in connection,
        keep_alive="keep-alive" in connection,
        is_plain=is_plain,
        is_sized=is_plain and not chunked,
    )

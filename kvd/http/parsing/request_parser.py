"""Request parser: the bytes of one connection in, requests and pieces of bodies out. No socket.

    feed  -->  take_whole                                a short request, head and body
          -->  find_head  -->  take_head  -->  read_body ...   any other

A head is the request line, which is read here, and the header block, which is not: llhttp parses
each block that has not been seen lately, and decides what framing it means (`headers`).
Clients repeat themselves, so nearly every block is found in a cache, by its bytes.

Invariants:

- What is returned depends on the bytes alone, not on how they were split.
- Bytes that were searched for the end of a head are not searched again, and an unfinished head is
  extended in place: a copy for each byte would be quadratic.
- After a refusal nothing is read any more: where the next request begins is not known.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import NamedTuple, cast

import httptools

from kvd.http.parsing.chunked import Chunks
from kvd.http.parsing.header_cache import HeaderCache, Short
from kvd.http.parsing.headers import Block, with_crlf

_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([^\x00-\x20\x7f]+) HTTP/1\.([01])")
_EMPTY_LINES = re.compile(rb"(?:\r\n)+")
_HEAD_END = re.compile(rb"\n\r?\n")
# The first byte of a client that speaks TLS: a record of its handshake (RFC 8446 section 5.1).
_TLS_HANDSHAKE = b"\x16"
SHORT_LINE_BYTES = 256
"""A longer request line may be costly: a component of a path takes 6 us to be looked up."""
# A longer head that has to be parsed is costly: a header line takes 2 to 3 us.
_SHORT_HEAD_BYTES = 4 << 10
_COMPONENTS_MAX = 64
_SHORT_PATH_BYTES = 1 << 10
_WRITING = (b"PUT ", b"POST ", b"DELETE ")
# Requests of the key space; all others cost far more.
_KEY_LINE = re.compile(rb"[A-Z]+ /v2/(?:keys|raw)[/?\x20]")
# The rest of the body of a request that was answered before its end: up to this size it is read and
# dropped, a longer one closes the connection. (Go's net/http does the same.)
_DROPPED_REST_BYTES_MAX = 256 << 10
_CR = 0x0D
# Of the line ends behind a head, at least so many bytes.
_LINE_ENDS_BYTES = 3
_NO_BLOCKS: dict[bytes, Short] = {}


class Refusal(NamedTuple):
    """Why HTTP itself refuses a request."""

    status: HTTPStatus
    detail: str = ""


MALFORMED = Refusal(HTTPStatus.BAD_REQUEST)
TOO_LONG = Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
SPOKE_TLS = Refusal(HTTPStatus.BAD_REQUEST)
"""Of its own kind, told from `MALFORMED` by identity."""
_NO_HOST = Refusal(HTTPStatus.BAD_REQUEST, "missing required Host header")
_BAD_HOST = Refusal(HTTPStatus.BAD_REQUEST, "malformed Host header")
_UNKNOWN_EXPECTATION = Refusal(HTTPStatus.EXPECTATION_FAILED)


class Request(NamedTuple):
    """The head of a request."""

    method: str
    target: str
    """As it came, in latin-1."""
    block: Block
    http10: bool
    keep_alive: bool
    """Whether the connection may stay open after the response."""
    refusal: Refusal | None
    """Why the request is not served, though it is well-formed."""


class RequestParser:
    """The received bytes of one connection that have not been served.

    Attributes:
        buffer: the bytes that have not been used.
        body_left: how many bytes of the present body are missing; 1 for an unfinished chunked body.
        has_more: whether `buffer` holds more of a chunked body than was read at once.
        expects: whether the client waits for `100 Continue` before it sends the body.
    """

    __slots__ = (
        "_blocks", "_chunks", "_head_bytes", "_header_bytes_max", "_searched_bytes", "_short",
        "body_left", "buffer", "expects", "has_more",
    )  # fmt: skip

    def __init__(self, blocks: HeaderCache, header_bytes_max: int) -> None:
        self.buffer = b""
        self.body_left = 0
        self.has_more = False
        self.expects = False
        self._blocks = blocks
        self._short = blocks.short
        self._header_bytes_max = header_bytes_max
        self._chunks: Chunks | None = None
        # Length of the head at the front of the buffer up to its empty line; 0 before it is found.
        self._head_bytes = 0
        # How much of an unfinished head was searched for its end. The buffer may be a bytearray
        # then.
        self._searched_bytes = 0

    def feed(self, data: bytes) -> None:
        """Append received bytes."""
        if not self.buffer:
            self.buffer = data
            return
        if self._searched_bytes and isinstance(self.buffer, bytes):
            self.buffer = cast(bytes, bytearray(self.buffer))
        self.buffer += data

    def clear(self) -> None:
        """Drop what has not been used."""
        self.buffer = b""
        self._head_bytes = self._searched_bytes = 0

    def decline_whole(self) -> None:
        """Make `take_whole` return nothing from now on."""
        self._short = _NO_BLOCKS

    @property
    def is_write(self) -> bool:
        """Whether the buffer begins with a request that writes."""
        return self.buffer.startswith(_WRITING)

    # Heads

    def take_whole(self) -> bytes | None:
        """Take one whole request, head and body, if its header block is known as a short one."""
        buffer = self.buffer
        if self._searched_bytes:
            return None
        end = buffer.find(b"\r\n\r\n")
        line_end = buffer.find(b"\r\n")
        short = self._short.get(buffer[line_end + 2 : end]) if end >= 0 else None
        if short is None or len(buffer) < (following := end + 4 + short[0]):
            return None
        self.buffer = buffer[following:]
        self._head_bytes = 0
        return buffer[:following]

    def put_back(self, buffer: bytes) -> None:
        """Undo `take_whole`, given the buffer from before it."""
        self.buffer = buffer

    @property
    def is_head_unfinished(self) -> bool:
        """Whether a head that was unfinished before the last bytes came still is.

        It also is false if the head has become too long.
        """
        return (
            self._searched_bytes > 0
            and len(self.buffer) <= self._header_bytes_max
            and not self._search()
        )

    def find_head(self) -> Refusal | bool:
        """Return whether the buffer begins with a complete head, or why it cannot become one.

        Empty lines before a request line are dropped (RFC 9112 section 2.2).
        """
        if self.buffer.startswith(b"\r\n"):
            empty = _EMPTY_LINES.match(self.buffer)
            assert empty is not None
            self.buffer = bytes(self.buffer[empty.end() :])
            self._searched_bytes = self._head_bytes = 0
        if self._head_bytes or self._search():
            is_long = self._head_bytes - _LINE_ENDS_BYTES > self._header_bytes_max
            return TOO_LONG if is_long and self._head_size() > self._header_bytes_max else True
        if self._is_unfinished_head_too_long():
            return TOO_LONG
        return SPOKE_TLS if self.buffer[:1] == _TLS_HANDSHAKE else False

    def _search(self) -> bool:
        """Search for the end of a head; return whether it was found."""
        end = _HEAD_END.search(self.buffer, max(0, self._searched_bytes - 2))
        if end is None:
            self._searched_bytes = len(self.buffer)
            return False
        self._head_bytes = end.end()
        return True

    def _is_unfinished_head_too_long(self) -> bool:
        excess = self.buffer[self._header_bytes_max :]
        # The line ends behind a head do not count, nor do they while they come.
        return len(excess) > 3 or bool(excess.strip(b"\r\n"))

    def _head_size(self) -> int:
        """Return the length of the head that was found, without the line ends behind it."""
        return self._head_bytes - (4 if self.buffer[self._head_bytes - 2] == _CR else 3)

    @property
    def is_costly(self) -> bool:
        """Whether the request whose head was found costs far more than a short one of a key."""
        size = self._head_bytes - _LINE_ENDS_BYTES
        if size > _SHORT_HEAD_BYTES or _KEY_LINE.match(self.buffer) is None:
            return True
        return size > SHORT_LINE_BYTES and is_deep(self.buffer, self.buffer.find(b"\n"))

    def take_head(self) -> Request | Refusal:
        """Take the head that `find_head` has found. Next comes `read_body`, if `body_left`."""
        end = self._head_bytes
        head, self.buffer = bytes(self.buffer[:end]), bytes(self.buffer[end:])
        self._head_bytes = self._searched_bytes = 0
        has_crlf = head.count(b"\n") == head.count(b"\r\n")
        lines = head if has_crlf else with_crlf(head)
        line_end = lines.find(b"\r\n")
        match = _REQUEST_LINE.fullmatch(lines, 0, line_end)
        if match is None:
            return MALFORMED
        try:
            block = self._blocks.parse(lines[line_end + 2 : -2])
        except httptools.HttpParserError:
            return MALFORMED
        http10 = match[3] == b"0"
        # Behind a head with other line ends nothing is read: a proxy may see another end of it.
        keep_alive, refusal = has_crlf, None
        if http10 or not block.is_plain:
            keep_alive = keep_alive and _keeps_alive(block, http10=http10)
            refusal = _refusal_of(block, http10=http10)
        if refusal is None and (block.content_length or block.chunked):
            self._expect_body(block, http10=http10)
        return Request(
            match[1].decode(), match[2].decode("latin-1"), block, http10, keep_alive, refusal
        )

    # Bodies

    def _expect_body(self, block: Block, *, http10: bool) -> None:
        self._chunks = Chunks() if block.chunked else None
        self.body_left = 1 if block.chunked else block.content_length
        comes_later = block.chunked or self.body_left > len(self.buffer)
        self.expects = comes_later and bool(block.expect) and not http10

    def read_body(self) -> bytes | Refusal:
        """Take what there is of the body, or of many small chunks only some (`has_more`)."""
        if self._chunks is None:
            left = self.body_left
            data, self.buffer = self.buffer[:left], self.buffer[left:]
            self.body_left -= len(data)
            return data
        try:
            data, self.buffer = self._chunks.feed(self.buffer)
        except ValueError:
            return MALFORMED
        self.has_more = self._chunks.has_more
        if self._chunks.complete:
            self._chunks = None
            self.body_left = 0
        return data

    @property
    def is_rest_short(self) -> bool:
        """Whether the missing rest of a body is known to be short enough to be read and dropped."""
        is_short = self._chunks is None and self.body_left <= _DROPPED_REST_BYTES_MAX
        return is_short and not self.expects


def _keeps_alive(block: Block, *, http10: bool) -> bool:
    if http10:
        # HTTP/1.0 has no chunks: a proxy that forwards them may see other requests here.
        return block.keep_alive and not block.close and not block.chunked
    return not block.close


def _refusal_of(block: Block, *, http10: bool) -> Refusal | None:
    """Return why a request with a well-formed header block is refused, if it is."""
    if not http10 and not block.has_host:
        return _NO_HOST
    if not http10 and block.expect not in ("", "100-continue"):
        return _UNKNOWN_EXPECTATION
    return None if block.host_is_valid else _BAD_HOST


def is_deep(buffer: bytes, line_end: int) -> bool:
    """Return whether the path of a request line is long, or has many components (or escapes)."""
    query = buffer.find(b"?", 0, line_end)
    end = query if query >= 0 else line_end
    if end > _SHORT_PATH_BYTES:
        return True
    return buffer.count(b"/", 0, end) + buffer.count(b"%2", 0, end) > _COMPONENTS_MAX

"""Compressed responses (`--gzip-min-bytes`) of the key space, to clients that accept gzip.

Off by default: many clients accept gzip without being configured to, and responses are to be byte
for byte those of etcd. It costs nothing while it is off: compression is a subclass of connections,
and requests that accept gzip go the long way (`kvd.handlers.router`).

A body up to 64 KiB is compressed at once, which takes a millisecond; a larger one in slices of that
size, one per turn of the loop. Watches, errors and responses without a body are not compressed, nor
is what there is no memory for.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import lru_cache
from http import HTTPStatus
from time import monotonic
from typing import NamedTuple

from kvd.http.access_log import LoggedConnection
from kvd.http.connection import Connection
from kvd.http.parsing.request_parser import Request
from kvd.http.server import HttpServer
from kvd.json_text import cut, escape
from kvd.limits.memory_budget import MemoryBudget, Piece

# A listing shrinks to a ninth; higher levels take three times as long for a tenth less
# (measured).
_LEVEL = 1
_SLICE_BYTES = 64 << 10
# Escaped, it has six times this at worst.
_ESCAPED_BYTES = 8 << 10
_GZIP_FORMAT = 16 + zlib.MAX_WBITS
_COMPRESSED = (HTTPStatus.OK, HTTPStatus.CREATED)
_ENCODING = b"Content-Encoding: gzip\r\nVary: Accept-Encoding\r\n"


@lru_cache(maxsize=256)
def accepts_gzip(header: str) -> bool:
    """Return whether an Accept-Encoding header allows gzip (RFC 9110 section 12.5.3)."""
    allowed: dict[str, bool] = {}
    for one in header.lower().split(","):
        coding, *parameters = (part.strip() for part in one.split(";"))
        weights = [p[2:].strip(".0") for p in parameters if p.startswith("q=")]
        allowed[coding] = weights != [""]
    return allowed.get("gzip", allowed.get("x-gzip", allowed.get("*", False)))


class Gzip(NamedTuple):
    """Settings of compression, and what its turns need."""

    bytes_min: int
    memory: MemoryBudget
    slices: asyncio.Lock
    start: Callable[[Connection, Coroutine[None, None, None]], None]


class _Compressing(Connection):
    """Compression of responses.

    Attributes:
        accepts_gzip: whether the present request accepts it.
        gzip: the settings.
    """

    accepts_gzip: bool
    gzip: Gzip

    def _start(self, request: Request) -> bool:
        self.accepts_gzip = accepts_gzip(request.block.headers.get("Accept-Encoding", ""))
        return super()._start(request)

    def done(self) -> None:
        """Forget that the request accepts gzip: the next one may go the short way."""
        self.accepts_gzip = False
        super().done()

    def respond(self, status: int, headers: bytes, body: bytes, *, head_only: bool = False) -> None:
        """Send a whole response, compressed if it is long enough."""
        if self._compresses(status, len(body)) and not head_only:
            if len(body) > _SLICE_BYTES:
                self.respond_in_pieces(status, headers, [Piece(body, self.gzip.memory)])
                return
            headers += _ENCODING
            body = self._compressed(body)
        super().respond(status, headers, body, head_only=head_only)

    def respond_in_pieces(self, status: int, headers: bytes, pieces: Sequence[Piece]) -> None:
        """Send a whole response of many pieces, compressed if it is long enough."""
        memory = self.gzip.memory
        size = sum(len(piece.data) for piece in pieces)
        uncounted = sum(len(piece.data) for piece in pieces if not piece.is_held)
        if self._compresses(status, size) and memory.has_room(size + uncounted):
            # Counted before it is made: it is hardly ever longer than the original.
            memory.take(size)
            for piece in pieces:
                piece.hold()
            in_turns = self._in_turns(status, headers + _ENCODING, pieces, size)
            self.gzip.start(self, in_turns)
        else:
            super().respond_in_pieces(status, headers, pieces)

    def _compresses(self, status: int, size: int) -> bool:
        return self.accepts_gzip and size >= self.gzip.bytes_min and status in _COMPRESSED

    def _compressed(self, body: bytes) -> bytes:
        began = monotonic()
        engine = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP_FORMAT)
        body = engine.compress(body) + engine.flush()
        self.spend(monotonic() - began)
        return body

    async def _in_turns(
        self, status: int, headers: bytes, pieces: Sequence[Piece], reserved: int
    ) -> None:
        """Compress the pieces and send the response; they and `reserved` bytes are held."""
        gzip = self.gzip
        engine = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP_FORMAT)
        left, made = list(pieces), list[Piece]()

        def keep(data: bytes) -> int:
            """Count a piece instead of reserved bytes; return how many of these are left."""
            if data:
                made.append(Piece(data, gzip.memory))
                gzip.memory.give_back(min(len(data), reserved))
                made[-1].hold()
            return max(reserved - len(data), 0)

        try:
            while left:
                for data in _slices(left[0]):
                    async with gzip.slices:
                        await asyncio.sleep(0)
                        if self.gone:
                            return
                        reserved = keep(engine.compress(data))
                left.pop(0).drop()
            reserved = keep(engine.flush())
            super().respond_in_pieces(status, headers, made)
        finally:
            gzip.memory.give_back(reserved)
            for piece in (*left, *made):
                piece.drop()


class GzipConnection(_Compressing):
    """A connection that compresses."""

    def __init__(self, server: HttpServer, gzip: Gzip) -> None:
        super().__init__(server)
        self.gzip = gzip
        self.accepts_gzip = False


class LoggedGzipConnection(_Compressing, LoggedConnection):
    """A connection that compresses and logs its requests."""

    def __init__(self, server: HttpServer, gzip: Gzip) -> None:
        super().__init__(server)
        self.gzip = gzip
        self.accepts_gzip = False


def _slices(piece: Piece) -> Iterator[bytes]:
    """Yield the bytes of a piece as they are sent, in slices."""
    data, start = piece.data, 0
    while start < len(data):
        if piece.escapes:
            end = cut(data, start + _ESCAPED_BYTES)
            yield escape(data[start:end])
        else:
            end = start + _SLICE_BYTES
            yield data[start:end]
        start = end

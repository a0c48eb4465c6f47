"""Outbox of a connection: large output, sent in slices no faster than the client reads.

The event loop copies output that it cannot send, for each connection. So it gets a slice at a time,
and the rest stays one object for all clients that it is sent to. Values are escaped a slice at a
time, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from kvd.json_text import cut, escape
from kvd.limits.memory_budget import Piece

_SLICE_BYTES = 32 << 10
# Escaping makes it up to six times as long.
_ESCAPED_SLICE_BYTES = 8 << 10
# Limit of one visit, however fast the client reads.
_VISIT_BYTES = 256 << 10


class Outbox:
    """Pieces in the order of sending; each is held until it is sent."""

    __slots__ = ("_offset", "_pieces", "sent_bytes", "unsent_bytes")

    def __init__(self) -> None:
        self._pieces: deque[tuple[Piece, bool]] = deque()
        self._offset = 0
        self.unsent_bytes = 0
        self.sent_bytes = 0
        """Total of sent bytes."""

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def add(self, piece: Piece, *, chunked: bool = False) -> None:
        """Append a piece; with `chunked`, each slice of it is an HTTP chunk."""
        if piece.data:
            piece.hold()
            self._pieces.append((piece, chunked))
            self.unsent_bytes += len(piece.data)

    def slices(self) -> Iterator[memoryview | bytes]:
        """Yield slices of one visit; what was yielded counts as sent."""
        sent = 0
        while self._pieces and sent < _VISIT_BYTES:
            taken = self._next()
            sent += len(taken)
            self.sent_bytes += len(taken)
            yield taken

    def _next(self) -> memoryview | bytes:
        piece, chunked = self._pieces[0]
        data, start = piece.data, self._offset
        taken: memoryview | bytes
        if piece.escapes:
            end = cut(data, start + _ESCAPED_SLICE_BYTES)
            taken = escape(data[start:end])
        else:
            end = min(start + _SLICE_BYTES, len(data))
            taken = memoryview(data)[start:end]
        self.unsent_bytes -= end - start
        self._offset = end
        if end == len(data):
            self._offset = 0
            self._pieces.popleft()
            piece.drop()
        return b"%x\r\n%b\r\n" % (len(taken), bytes(taken)) if chunked else taken

    def clear(self) -> None:
        """Drop all pieces."""
        while self._pieces:
            self._pieces.popleft()[0].drop()
        self._offset = self.unsent_bytes = 0

"""Outbox of a connection: large output, sent in slices no faster than the client reads.

The event loop copies output that it cannot send, for each connection. So it gets a slice at a time,
and the rest stays one object for all clients that it is sent to. Values are escaped a slice at a
time, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from kvd.json_text import cut, escape
from kvd.limits.memory_budget import Payload

_SLICE_BYTES = 32 << 10
# Escaping makes it up to six times as long.
_ESCAPED_SLICE_BYTES = 8 << 10
# Limit of one visit, however fast the client reads.
_VISIT_BYTES = 256 << 10


class Outbox:
    """Payloads in the order of sending; each is held until it is sent."""

    __slots__ = ("_offset", "_payloads", "sent_bytes", "unsent_bytes")

    def __init__(self) -> None:
        self._payloads: deque[tuple[Payload, bool]] = deque()
        self._offset = 0
        self.unsent_bytes = 0
        self.sent_bytes = 0
        """Total of sent bytes."""

    def __bool__(self) -> bool:
        return bool(self._payloads)

    def add(self, payload: Payload, *, chunked: bool = False) -> None:
        """Append a payload; with `chunked`, each slice of it is an HTTP chunk."""
        if payload.data:
            payload.hold()
            self._payloads.append((payload, chunked))
            self.unsent_bytes += len(payload.data)

    def slices(self) -> Iterator[memoryview | bytes]:
        """Yield slices of one visit; what was yielded counts as sent."""
        sent = 0
        while self._payloads and sent < _VISIT_BYTES:
            piece = self._next()
            sent += len(piece)
            self.sent_bytes += len(piece)
            yield piece

    def _next(self) -> memoryview | bytes:
        payload, chunked = self._payloads[0]
        data, start = payload.data, self._offset
        piece: memoryview | bytes
        if payload.escapes:
            end = cut(data, start + _ESCAPED_SLICE_BYTES)
            piece = escape(data[start:end])
        else:
            end = min(start + _SLICE_BYTES, len(data))
            piece = memoryview(data)[start:end]
        self.unsent_bytes -= end - start
        self._offset = end
        if end == len(data):
            self._offset = 0
            self._payloads.popleft()
            payload.drop()
        return b"%x\r\n%b\r\n" % (len(piece), bytes(piece)) if chunked else piece

    def clear(self) -> None:
        """Drop all payloads."""
        while self._payloads:
            self._payloads.popleft()[0].drop()
        self._offset = self.unsent_bytes = 0

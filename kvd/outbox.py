"""What a connection still has to send of large answers, in slices, no faster than it is read.

The event loop keeps what it is given and cannot send: as a copy of its own (asyncio), for each
connection. So it is given a slice at a time, and the rest stays one object for all the clients that
are sent the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from kvd.memory import Payload

_SLICE_BYTES = 32 << 10
# The next connection has its turn after this much, however fast it is read.
_VISIT_BYTES = 256 << 10


class Outbox:
    """Payloads in the order in which they are to be sent; each is held until it has been taken."""

    __slots__ = ("_offset", "_payloads", "unsent_bytes")

    def __init__(self) -> None:
        self._payloads: deque[Payload] = deque()
        self._offset = 0
        self.unsent_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._payloads)

    def add(self, payload: Payload) -> None:
        """Add a payload behind the others."""
        payload.hold()
        self._payloads.append(payload)
        self.unsent_bytes += len(payload.data)

    def slices(self) -> Iterator[memoryview]:
        """Yield what may be sent at once; what has been yielded counts as sent."""
        sent = 0
        while self._payloads and sent < _VISIT_BYTES:
            payload = self._payloads[0]
            piece = memoryview(payload.data)[self._offset : self._offset + _SLICE_BYTES]
            self._offset += len(piece)
            self.unsent_bytes -= len(piece)
            sent += len(piece)
            if self._offset == len(payload.data):
                self._offset = 0
                self._payloads.popleft().drop()
            yield piece

    def clear(self) -> None:
        """Drop everything: the client is gone."""
        while self._payloads:
            self._payloads.popleft().drop()
        self._offset = self.unsent_bytes = 0

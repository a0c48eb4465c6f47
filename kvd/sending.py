"""Who is sent what waits in the outboxes, and who is given up because they do not read."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio

    from kvd.memory import Memory

# How much is sent of outboxes in one turn of the loop, to all clients: about two milliseconds.
_TURN_BYTES = 4 << 20
# A client that reads nothing for so long is cut where memory is short.
_PATIENCE_S = 2.0


class Recipient(Protocol):
    """A connection whose client reads, or does not."""

    @property
    def kept_bytes(self) -> int:
        """What the event loop keeps for the client."""

    @property
    def unsent_bytes(self) -> int:
        """That, and what waits in the outbox."""

    @property
    def unread_bytes(self) -> int:
        """That, and what the kernel holds."""

    def send_some(self) -> int:
        """Send something of the outbox, if the client reads; return how many bytes."""

    def abort(self) -> None:
        """Drop the connection at once."""


class Sending:
    """The outboxes of one server's connections, by turns."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, memory: Memory, write_timeout_s: float
    ) -> None:
        self._loop = loop
        self._memory = memory
        self._write_timeout_s = write_timeout_s
        self._due: deque[Recipient] = deque()
        self._is_sending = False
        # What was unread when it last became less, and when; in the order of those times.
        self._stalled: dict[Recipient, tuple[int, float]] = {}

    def soon(self, recipient: Recipient) -> None:
        """Let a connection send of its outbox when its turn has come."""
        self._due.append(recipient)
        if not self._is_sending:
            self._is_sending = True
            self._loop.call_soon(self._send)

    def stalls(self, recipient: Recipient, now: float) -> None:
        """A client does not read as fast as it is sent to."""
        self._stalled[recipient] = (recipient.unread_bytes, now)

    def reads(self, recipient: Recipient) -> None:
        """It does again, or has gone."""
        self._stalled.pop(recipient, None)

    def cut_stalled(self, now: float) -> int:
        """Cut those who have read nothing for too long, which is less where memory is short.

        Returns:
            How many were cut.
        """
        if not self._stalled:
            return 0
        stalled = list(self._stalled)
        kept = self._memory.answers + sum(recipient.kept_bytes for recipient in stalled)
        excess = kept - self._memory.bytes_max
        waited_for = self._memory.is_waited_for
        cut = 0
        for recipient in stalled:
            left = recipient.unread_bytes
            before, since = self._stalled[recipient]
            if left < before:
                del self._stalled[recipient]
                self._stalled[recipient] = (left, now)
                continue
            self._stalled[recipient] = (left, since)
            is_in_the_way = (excess > 0 or waited_for) and now - since > _PATIENCE_S
            if is_in_the_way or now - since > self._write_timeout_s:
                excess -= recipient.unsent_bytes
                cut += 1
                recipient.abort()
        return cut

    def _send(self) -> None:
        """Let the next ones send, in all not so much that others wait for it."""
        sent = 0
        try:
            for _ in range(len(self._due)):
                sent += self._due.popleft().send_some()
                if sent >= _TURN_BYTES:
                    break
        finally:
            self._is_sending = bool(self._due)
            if self._is_sending:
                self._loop.call_soon(self._send)

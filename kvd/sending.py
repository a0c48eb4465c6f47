"""Order in which the outboxes of connections are sent, and which connections are cut.

Cut is a connection whose client reads nothing for the write timeout. Where memory is short, that is
while responses wait for room or exceed the limit, also one

- whose client reads nothing for two seconds; or
- whose client reads more slowly than `RATE_MIN`, the slowest first, until there is room.

Where what has to be sent exceeds the limit, connections are cut at once, in this order: slow ones,
those whose rate is not known yet (the oldest first), then the others by their rate.
"""

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
RATE_MIN = 512 << 10
"""Bytes a second that a client has to read while others wait for room."""
# A rate is measured over at least this: acknowledgements come in bursts.
_WINDOW_S = 2.0


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

    @property
    def read_bytes(self) -> int:
        """What the client has read of all that its outbox has sent."""

    def send_some(self) -> int:
        """Send something of the outbox, if the client reads; return how many bytes."""

    def abort(self) -> None:
        """Drop the connection at once."""


class _Reading:
    """How fast a client has read of its outbox: what it had read, when, and the last rate."""

    __slots__ = ("rate", "read", "since")

    def __init__(self, read: int, now: float) -> None:
        self.read = read
        self.since = now
        self.rate: float | None = None

    def measure(self, recipient: Recipient, now: float) -> None:
        elapsed_s = now - self.since
        if elapsed_s >= _WINDOW_S:
            read = recipient.read_bytes
            self.rate = (read - self.read) / elapsed_s
            self.read, self.since = read, now

    @property
    def is_slow(self) -> bool:
        return self.rate is not None and self.rate < RATE_MIN

    @property
    def order(self) -> tuple[int, float]:
        """Where it stands among those that are cut when the limit is exceeded."""
        if self.rate is None:
            return 1, self.since
        return 0 if self.is_slow else 2, self.rate


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
        self._reading: dict[Recipient, _Reading] = {}
        self._is_shedding = False
        self.cut = 0
        """How many connections were cut."""
        memory.on_excess = self._shed_soon

    def begins(self, recipient: Recipient) -> None:
        """Something waits in the outbox of a connection."""
        self._reading[recipient] = _Reading(recipient.read_bytes, self._loop.time())

    def ends(self, recipient: Recipient) -> None:
        """Nothing does any more."""
        self._reading.pop(recipient, None)

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

    def tick(self, now: float) -> None:
        """Cut those who read nothing, or too slowly; called every second."""
        self._cut_stalled(now)
        for recipient, reading in self._reading.items():
            reading.measure(recipient, now)
        if self._memory.lacking:
            self._cut_slow()

    def _cut_stalled(self, now: float) -> None:
        """Cut those who have read nothing for too long, which is less where memory is short."""
        stalled = list(self._stalled)
        kept = self._memory.answers + sum(recipient.kept_bytes for recipient in stalled)
        excess = max(kept - self._memory.bytes_max, self._memory.lacking)
        for recipient in stalled:
            left = recipient.unread_bytes
            before, since = self._stalled[recipient]
            if left < before:
                del self._stalled[recipient]
                self._stalled[recipient] = (left, now)
                continue
            self._stalled[recipient] = (left, since)
            is_in_the_way = excess > 0 and now - since > _PATIENCE_S
            if is_in_the_way or now - since > self._write_timeout_s:
                excess -= recipient.unsent_bytes
                self._cut(recipient)

    def _cut_slow(self) -> None:
        """Cut the slowest until there is room for those who wait."""
        slow = [(reading.order, r) for r, reading in self._reading.items() if reading.is_slow]
        for _, recipient in sorted(slow, key=lambda one: one[0]):
            if not self._memory.lacking:
                return
            self._cut(recipient)

    def _shed_soon(self) -> None:
        if not self._is_shedding:
            self._is_shedding = True
            self._loop.call_soon(self._shed)

    def _shed(self) -> None:
        """Cut connections until the limit is kept."""
        self._is_shedding = False
        memory = self._memory
        if memory.answers <= memory.bytes_max:
            return
        for recipient in sorted(self._reading, key=lambda one: self._reading[one].order):
            if memory.answers <= memory.bytes_max:
                return
            self._cut(recipient)

    def _cut(self, recipient: Recipient) -> None:
        self.cut += 1
        recipient.abort()

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

"""Schedules the outboxes of connections, and cuts clients that do not read.

A connection is cut whose client reads nothing for the write timeout. Where memory is short, that is
while responses wait for room or exceed the limit, also one

- whose client reads nothing for two seconds; or
- whose client is slow (`kvd.limits.rate`), the slowest first, until there is room.

Where what has to be sent exceeds the limit, connections are cut at once, in this order: slow ones,
those whose rate is not known yet (the oldest first), then the others by their rate. Before any that
is not slow, requests are given up that have not come whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from kvd.limits.rate import Rate

if TYPE_CHECKING:
    import asyncio

    from kvd.limits.memory_budget import MemoryBudget

# Limit of bytes from outboxes in one turn of the loop, to all clients: about a millisecond.
_TURN_BYTES = 1 << 20
# Time without reading after which a client is cut while memory is short.
_PATIENCE_S = 2.0
# A rate is measured over at least this: acknowledgements come in bursts.
_WINDOW_S = 2.0


class Recipient(Protocol):
    """A connection whose client reads, or does not."""

    @property
    def kept_bytes(self) -> int:
        """Output that the event loop keeps for the client."""

    @property
    def unsent_bytes(self) -> int:
        """That, and what waits in the outbox."""

    @property
    def unread_bytes(self) -> int:
        """That, and what the kernel holds."""

    @property
    def read_bytes(self) -> int:
        """Bytes of the outbox that the client has read."""

    def send_some(self) -> int:
        """Send something of the outbox, if the client reads; return how many bytes."""

    def abort(self) -> None:
        """Drop the connection at once."""


class SendScheduler:
    """The outboxes of one server's connections, by turns."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        memory: MemoryBudget,
        write_timeout_s: float,
        give_up_requests: Callable[[], None] = lambda: None,
    ) -> None:
        """Send what `memory` counts; `give_up_requests` makes room in it, or not."""
        self._loop = loop
        self._memory = memory
        self._write_timeout_s = write_timeout_s
        self._give_up_requests = give_up_requests
        self._due: deque[Recipient] = deque()
        self._is_sending = False
        # What was unread when it last became less, and when; in the order of those times.
        self._stalled: dict[Recipient, tuple[int, float]] = {}
        self._reading: dict[Recipient, Rate] = {}
        self._is_shedding = False
        self.cut = 0
        """How many connections were cut."""
        memory.observe_excess(self._shed_soon)

    def begins(self, recipient: Recipient) -> None:
        """Start to measure a connection whose outbox was empty."""
        self._reading[recipient] = Rate(recipient.read_bytes, self._loop.time(), _WINDOW_S)

    def ends(self, recipient: Recipient) -> None:
        """Stop measuring a connection: its outbox is empty."""
        self._reading.pop(recipient, None)

    def soon(self, recipient: Recipient) -> None:
        """Schedule a visit of a connection's outbox."""
        self._due.append(recipient)
        if not self._is_sending:
            self._is_sending = True
            self._loop.call_soon(self._send)

    def stalls(self, recipient: Recipient, now: float) -> None:
        """Note that a client reads more slowly than it is sent to."""
        self._stalled[recipient] = (recipient.unread_bytes, now)

    def stalled_since(self, recipient: Recipient) -> float:
        """Return when a stalled client has read last, as of the last tick."""
        return self._stalled[recipient][1]

    def reads(self, recipient: Recipient) -> None:
        """Note that a client reads again, or has gone."""
        self._stalled.pop(recipient, None)

    def tick(self, now: float) -> None:
        """Cut clients that read nothing, or too slowly; called every second."""
        self._cut_stalled(now)
        for recipient, rate in self._reading.items():
            if rate.is_due(now):  # the read bytes are a system call
                rate.measure(recipient.read_bytes, now)
        if self._memory.lacking:
            self._cut_slow()

    def _cut_stalled(self, now: float) -> None:
        """Cut clients that have read nothing for too long, which is less while memory is short."""
        stalled = list(self._stalled)
        kept = self._memory.answers + sum(recipient.kept_bytes for recipient in stalled)
        excess = max(kept - self._memory.answers_max, self._memory.lacking)
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
        """Cut the slowest clients until there is room for waiting responses."""
        slow = [recipient for recipient, rate in self._reading.items() if rate.is_slow]
        for recipient in sorted(slow, key=self._order):
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
        self._cut_until_it_fits([r for r, rate in self._reading.items() if rate.is_slow])
        if self._memory.exceeds:
            self._give_up_requests()
            self._cut_until_it_fits(self._reading)

    def _cut_until_it_fits(self, recipients: Iterable[Recipient]) -> None:
        for recipient in sorted(recipients, key=self._order):
            if not self._memory.exceeds:
                return
            self._cut(recipient)

    def _order(self, recipient: Recipient) -> tuple[int, float]:
        return self._reading[recipient].order

    def _cut(self, recipient: Recipient) -> None:
        self.cut += 1
        recipient.abort()

    def _send(self) -> None:
        """Visit the next outboxes, up to the limit of a turn."""
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

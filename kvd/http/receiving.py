"""Memory of incomplete requests, and which of them are refused while it is short.

Large requests leave a reserve to small ones. Without room a large body waits, unread, and is
refused after `WAIT_S`. Meanwhile requests of slow clients (`kvd.limits.rate`) are refused, the
slowest first; if none is slow, the last that has waited too long. A small request does not wait:
others are refused at once, and so they are if large ones exceed the limit by what each received
before it waited.

A complete request is never refused here: its response makes room.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kvd.limits.memory_budget import MemoryBudget
from kvd.limits.rate import Rate

SMALL_BYTES = 64 << 10
"""A request up to this size may use the reserve."""
WAIT_S = 5.0
"""Seconds that a body waits for room."""

# A rate is measured over at least this.
_WINDOW_S = 1.0
# A fraction of the budget that is freed in excess, so that not each small request frees its own.
_SLACK = 64


class Sender(Protocol):
    """A connection that receives a request."""

    @property
    def held_bytes(self) -> int:
        """Counted bytes of the request."""

    @property
    def is_receiving(self) -> bool:
        """Whether the request is incomplete."""

    def go_on(self) -> None:
        """Read the rest of the body: there is room."""

    def give_up(self) -> None:
        """Refuse the request and drop its bytes."""


class _Progress:
    """Rate of a request, and since when it waits for room."""

    __slots__ = ("rate", "waits_since")

    def __init__(self, now: float) -> None:
        self.rate = Rate(0, now, _WINDOW_S)
        self.waits_since: float | None = None

    def measure(self, held: int, now: float) -> None:
        if self.waits_since is None:
            self.rate.measure(held, now)
        else:
            # Reading is paused: its client is not slow.
            self.rate.restart(held, now)

    def waited_s(self, now: float) -> float:
        """Return the seconds that it has waited for room."""
        return 0.0 if self.waits_since is None else now - self.waits_since


class Receiving:
    """The incomplete requests of one server's connections.

    Attributes:
        given_up: number of requests that were refused for lack of room.
    """

    def __init__(self, memory: MemoryBudget, now: Callable[[], float]) -> None:
        self.given_up = 0
        self._memory = memory
        self._now = now
        self._senders: dict[Sender, _Progress] = {}
        self._waiters: dict[Sender, None] = {}
        self._is_waking = False

    def take(self, sender: Sender, size: int) -> bool:
        """Count bytes of a request, which holds them; return whether there is room for them."""
        self._memory.take_request(size)
        if sender not in self._senders:
            self._senders[sender] = _Progress(self._now())
        if self._fits(sender):
            return True
        if sender.held_bytes <= SMALL_BYTES or self._memory.requests > self._memory.requests_max:
            self._shed(sender)
        return self._fits(sender)

    def give_back(self, size: int) -> None:
        """Subtract bytes of a request that were dropped."""
        self._memory.give_back_request(size)
        self.wake()

    def forget(self, sender: Sender) -> None:
        """Stop tracking a request of which nothing is kept."""
        self._senders.pop(sender, None)
        self._waiters.pop(sender, None)
        self._memory.requests_wait = bool(self._waiters)

    def wait(self, sender: Sender) -> None:
        """Call `go_on` of a sender when there is room; it must not receive before."""
        self._senders[sender].waits_since = self._now()
        self._waiters[sender] = None
        self._memory.requests_wait = True

    def wake(self) -> None:
        """Let waiting senders go on, as far as there is room."""
        if self._waiters:
            self._wake()

    def tick(self, now: float) -> None:
        """Measure rates; refuse slow requests while others wait. Called every second."""
        for sender, progress in self._senders.items():
            progress.measure(sender.held_bytes, now)
        self.wake()
        if self._is_short:
            slow = [s for s in self._receiving() if self._senders[s].rate.is_slow]
            for sender in sorted(slow, key=self._order):
                if not self._is_short:
                    return
                self._give_up(sender)
        self._refuse_last(now)

    def give_up_for_answers(self) -> None:
        """Refuse requests not known to be fast, while responses exceed the limit."""
        for sender in sorted([*self._receiving(), *self._waiters], key=self._order):
            rate = self._senders[sender].rate
            if not (self._memory.exceeds and self._memory.needs_room_of_requests) or rate.is_fast:
                return
            self._give_up(sender)

    @property
    def _is_short(self) -> bool:
        """Whether requests or responses wait for room that requests take."""
        return bool(self._waiters) or self._memory.needs_room_of_requests

    def _refuse_last(self, now: float) -> None:
        """Refuse those that have waited too long, the last first, until another can go on."""
        late = [s for s in self._waiters if self._senders[s].waited_s(now) > WAIT_S]
        before = len(self._waiters)
        for count, sender in enumerate(reversed(late), 1):
            if sender in self._waiters:
                self._give_up(sender)
            if len(self._waiters) < before - count:
                return

    def _fits(self, sender: Sender) -> bool:
        limit = self._memory.requests_max
        if sender.held_bytes > SMALL_BYTES:
            limit -= self._memory.reserve
        return self._memory.requests <= limit

    def _receiving(self) -> list[Sender]:
        return [s for s in self._senders if s not in self._waiters and s.is_receiving]

    def _shed(self, newcomer: Sender) -> None:
        """Refuse other requests until there is room for small ones."""
        most = self._memory.requests_max - self._memory.bytes_max // _SLACK
        for sender in sorted([*self._receiving(), *self._waiters], key=self._order):
            if self._memory.requests <= most:
                return
            if sender is not newcomer:
                self._give_up(sender)

    def _order(self, sender: Sender) -> tuple[int, float]:
        return self._senders[sender].rate.order

    def _give_up(self, sender: Sender) -> None:
        """Refuse a request, unless it has become complete or resumed meanwhile."""
        if sender not in self._waiters and not (sender in self._senders and sender.is_receiving):
            return
        self.given_up += 1
        self.forget(sender)
        sender.give_up()

    def _wake(self) -> None:
        """Let senders go on, first come first served, as far as there is room."""
        if self._is_waking:
            return
        self._is_waking = True
        try:
            for sender in list(self._waiters):
                if sender in self._waiters and self._fits(sender):
                    del self._waiters[sender]
                    self._senders[sender].waits_since = None
                    sender.go_on()
        finally:
            self._is_waking = False
            self._memory.requests_wait = bool(self._waiters)

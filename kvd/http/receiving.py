"""Memory that requests take while they come, and which of them are given up where it is short.

Large requests leave a reserve to the small ones. Where there is no room, a large body waits for it,
unread, and is refused after `WAIT_S`. Meanwhile those are given up whose client is slow
(`kvd.limits.rate`), the slowest first; if none is slow, the last that has waited too long. A small
request does not wait: others are given up at once. So they are where large ones would exceed the
limit by what each of them has received before it waits.

What has come whole is never given up; it is answered, and so makes room by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kvd.limits.memory_budget import MemoryBudget
from kvd.limits.rate import Rate

SMALL_BYTES = 64 << 10
"""A request up to this size may use the reserve."""
WAIT_S = 5.0
"""How long a body waits for room."""

# A rate is measured over at least this.
_WINDOW_S = 1.0
# So much more is made free at once, so that not each small request has to look for its room.
_SLACK = 64


class Sender(Protocol):
    """A connection that receives a request."""

    @property
    def held_bytes(self) -> int:
        """What is kept of the request."""

    @property
    def is_receiving(self) -> bool:
        """Whether a part of the request has come, and another has not."""

    def go_on(self) -> None:
        """Take the rest of the body: there is room."""

    def give_up(self) -> None:
        """Refuse the request, and keep nothing of it."""


class _Progress:
    """How fast a request comes, and since when it waits for room."""

    __slots__ = ("rate", "waits_since")

    def __init__(self, now: float) -> None:
        self.rate = Rate(0, now, _WINDOW_S)
        self.waits_since: float | None = None

    def measure(self, held: int, now: float) -> None:
        if self.waits_since is None:
            self.rate.measure(held, now)
        else:
            # It is not its client that is slow.
            self.rate.restart(held, now)

    def waited_s(self, now: float) -> float:
        """Return how long it has waited for room."""
        return 0.0 if self.waits_since is None else now - self.waits_since


class Receiving:
    """The requests that come on one server's connections.

    Attributes:
        given_up: How many have been given up.
    """

    def __init__(self, memory: MemoryBudget, now: Callable[[], float]) -> None:
        self.given_up = 0
        self._memory = memory
        self._now = now
        self._senders: dict[Sender, _Progress] = {}
        self._waiters: dict[Sender, None] = {}
        self._is_waking = False

    def take(self, sender: Sender, size: int) -> bool:
        """Count more of a request, which holds it already; return whether there is room for it."""
        self._memory.take_request(size)
        if sender not in self._senders:
            self._senders[sender] = _Progress(self._now())
        if self._fits(sender):
            return True
        if sender.held_bytes <= SMALL_BYTES or self._memory.requests > self._memory.requests_max:
            self._shed(sender)
        return self._fits(sender)

    def give_back(self, size: int) -> None:
        """A part of a request is not kept any more."""
        self._memory.give_back_request(size)
        self.wake()

    def forget(self, sender: Sender) -> None:
        """Nothing is kept of its request any more."""
        self._senders.pop(sender, None)
        self._waiters.pop(sender, None)
        self._memory.requests_wait = bool(self._waiters)

    def wait(self, sender: Sender) -> None:
        """Let a sender go on when there is room; until then it must not receive."""
        self._senders[sender].waits_since = self._now()
        self._waiters[sender] = None
        self._memory.requests_wait = True

    def wake(self) -> None:
        """Let those go on that wait, as far as there is room."""
        if self._waiters:
            self._wake()

    def tick(self, now: float) -> None:
        """Measure, and give up who is in the way of those that wait; called every second."""
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
        """Give up those that are not known to come fast, as far as answers exceed the limit."""
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
        """Give up others until there is room for small requests."""
        most = self._memory.requests_max - self._memory.bytes_max // _SLACK
        for sender in sorted([*self._receiving(), *self._waiters], key=self._order):
            if self._memory.requests <= most:
                return
            if sender is not newcomer:
                self._give_up(sender)

    def _order(self, sender: Sender) -> tuple[int, float]:
        return self._senders[sender].rate.order

    def _give_up(self, sender: Sender) -> None:
        """Give up a request, unless others that were have let it go on or come whole."""
        if sender not in self._waiters and not (sender in self._senders and sender.is_receiving):
            return
        self.given_up += 1
        self.forget(sender)
        sender.give_up()

    def _wake(self) -> None:
        """Let those go on that there is room for, in the order in which they began to wait."""
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

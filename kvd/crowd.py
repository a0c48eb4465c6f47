"""Which connection gives way when there are as many as there may be.

A newcomer is let in as long as another connection keeps the server waiting: the longest idle one is
closed. In this order: those that are being closed anyway, those that have never made a request,
those whose head has begun to come, those that are idle after a request, those whose body has begun
to come; of each kind the one that began to wait first. An address
that has far more connections than others gives way before them. A connection that is being answered
never does, and neither does a watch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from heapq import nsmallest
from math import inf
from typing import Protocol

# So many are chosen at once: looking at ten thousand takes milliseconds.
_CHOSEN = 64

CLOSING, SILENT, HEAD, IDLE, BODY = range(5)
BUSY = (BODY + 1, inf)
"""The state of a connection that does not give way."""

State = tuple[int, float]
"""What a connection waits for, and since when."""


class Member(Protocol):
    """A connection."""

    @property
    def address(self) -> str:
        """Where it comes from."""

    @property
    def state(self) -> State:
        """What it waits for, and since when."""

    def abort(self) -> None:
        """Drop the connection at once."""


class Crowd:
    """The connections of one server.

    Attributes:
        displaced: How many have given way.
    """

    def __init__(self, members: Collection[Member]) -> None:
        """Choose from `members`, which change."""
        self.displaced = 0
        self._members = members
        self._addresses: Counter[str] = Counter()
        self._chosen: list[tuple[State, Member]] = []
        self._vain_s = -inf

    def enters(self, address: str) -> None:
        """A connection has been made."""
        self._addresses[address] += 1

    def leaves(self, address: str) -> None:
        """It is gone."""
        self._addresses[address] -= 1
        if not self._addresses[address]:
            del self._addresses[address]

    def displace(self, newcomer: Member, now: float) -> bool:
        """Close a connection so that another may be served; return whether one gives way.

        Args:
            newcomer: the one that may be served then.
            now: the time of the last tick. Where none was found, none is looked for until the next.
        """
        if not self._chosen and now > self._vain_s:
            self._choose(newcomer)
        while self._chosen:
            state, member = self._chosen.pop()
            if member.state == state:
                self.displaced += 1
                member.abort()
                return True
            if not self._chosen:
                self._choose(newcomer)
        self._vain_s = now
        return False

    def _choose(self, newcomer: Member) -> None:
        """Choose who gives way next, the first of them last."""
        many = max(self._addresses.values(), default=0) / 2
        waiting = (
            (self._addresses[member.address] < many, state, place, member)
            for place, member in enumerate(self._members)
            if member is not newcomer and (state := member.state) != BUSY
        )
        self._chosen = [(state, member) for _, state, _, member in nsmallest(_CHOSEN, waiting)]
        self._chosen.reverse()

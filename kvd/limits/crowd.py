"""Connections to close when the limit of connections is reached.

A new connection is served as long as another one keeps the server waiting: that which has been idle
for longest is closed. In this order: those that are closing, those that have never sent a request,
those with an incomplete head, those that are idle after a request, those with an
incomplete body, those that do not read their response; of each kind the one that waits longest.

- The kind counts after `GRACE_S` only: a client that has just connected would give way to the next
  one before its request arrives. Until then the order is that of time alone.
- An address that has far more connections than others gives way before them.
- A connection with a request in progress never gives way, and neither does a watch.

Choosing among all of ten thousand connections takes tens of milliseconds. So the best of a part of
them are chosen, which replace the worst of those that are still left from other parts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from heapq import nsmallest
from itertools import count
from math import inf
from typing import NamedTuple, Protocol

GRACE_S = 3.0
"""Seconds before a connection is judged by the kind of input that it waits for."""
# So many candidates are kept; when few are left so many more connections are judged, which takes a
# millisecond.
_CHOSEN = 64
_FEW = 16
_LOOKED_AT = 1024
# After a search without result there is none for this long.
_VAIN_S = 1.0

CLOSING, SILENT, HEAD, IDLE, BODY, UNREAD, _YOUNG = range(7)
BUSY = (_YOUNG + 1, inf)
"""The state of a connection that does not give way."""

State = tuple[int, float]
"""The kind of input that a connection waits for, and since when."""


class Member(Protocol):
    """A connection."""

    @property
    def address(self) -> str:
        """The client's address."""

    @property
    def state(self) -> State:
        """State of the connection, and since when."""

    def abort(self) -> None:
        """Drop the connection at once."""


class _Choice(NamedTuple):
    """A candidate, valid while its state is unchanged; the least gives way first."""

    is_of_few: bool
    kind: int
    since: float
    place: int
    state: State
    member: Member


class Crowd:
    """The connections of one server.

    Attributes:
        displaced: number of connections closed for others.
    """

    def __init__(self, *members: Collection[Member]) -> None:
        """Choose from the collections `members`, which change."""
        self.displaced = 0
        self._members = members
        self._addresses: Counter[str] = Counter()
        # The last of these gives way first.
        self._chosen: list[_Choice] = []
        self._unseen: list[Member] = []
        self._places = count()
        self._vain_until = -inf
        self._is_used = False

    def enters(self, address: str) -> None:
        """Count a connection of an address."""
        self._addresses[address] += 1

    def leaves(self, address: str) -> None:
        """Count it no longer."""
        self._addresses[address] -= 1
        if not self._addresses[address]:
            del self._addresses[address]

    def tick(self) -> None:
        """Drop candidates that were not needed lately; called every second."""
        if not self._is_used:
            self._chosen.clear()
            self._unseen.clear()
        self._is_used = False

    def displace(self, newcomer: Member, now: float) -> bool:
        """Close a connection so that a new one may be served; return whether one was closed.

        Args:
            newcomer: the new connection.
            now: the time, in seconds of the loop's clock.
        """
        if now < self._vain_until:
            return False
        self._is_used = True
        if len(self._chosen) < _FEW:
            self._choose(newcomer, now)
        while self._chosen:
            choice = self._chosen.pop()
            if choice.member.state == choice.state:
                self.displaced += 1
                choice.member.abort()
                return True
            if not self._chosen:
                self._choose(newcomer, now)
        self._vain_until = now + _VAIN_S
        return False

    def _choose(self, newcomer: Member, now: float) -> None:
        """Find the next candidates among more connections, or all of them."""
        chosen = {choice.member: choice for choice in self._chosen}
        many = max(self._addresses.values(), default=0) / 2
        is_last_round = False
        while self._unseen or not is_last_round:
            if not self._unseen:
                is_last_round = True
                self._unseen = [member for members in self._members for member in members]
            for member in self._unseen[-_LOOKED_AT:]:
                choice = self._judge(member, many, now)
                if choice is not None and member is not newcomer:
                    chosen[member] = choice
            del self._unseen[-_LOOKED_AT:]
            if chosen:
                break
        self._chosen = nsmallest(_CHOSEN, chosen.values())
        self._chosen.reverse()

    def _judge(self, member: Member, many: float, now: float) -> _Choice | None:
        """Return a connection as a candidate, if it may give way."""
        state = member.state
        if state == BUSY:
            return None
        kind, since = state
        if kind != CLOSING and now - since < GRACE_S:
            if kind == UNREAD:
                return None
            kind = _YOUNG
        is_of_few = self._addresses[member.address] < many
        return _Choice(is_of_few, kind, since, next(self._places), state, member)

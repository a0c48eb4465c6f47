"""Memory budget of requests and responses.

Two sums share one limit: bytes of requests that are incomplete or not answered, and bytes of
responses that are being rendered or have not been read. An eighth of the limit is reserved for each
of the two. Only what is large is counted; what is small is bounded by the number of connections.

A request without room waits for it and is refused after a time (`kvd.http.receiving`). A response
to a read is counted before it is rendered: without room it waits, and is refused after
`ROOM_WAIT_S`. So is a write of a large value, before it is accepted. Small requests and responses
may also use a reserve, which large ones leave free.

What has to be sent nonetheless (an event, the value that a write has replaced) may exceed the
limit. Then, and while others wait for room, connections are cut (`kvd.http.sending.scheduler`), and
while responses wait, slow requests are given up (`kvd.http.receiving`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from weakref import WeakValueDictionary

from kvd.json_text import LargeValue, Parts, is_plain

ROOM_WAIT_S = 10.0
"""How long a response waits for room before it is refused."""

SMALL_BYTES = 1 << 20
"""Responses up to this size may use the reserve."""

_Waiter = tuple[int, "asyncio.Future[None]"]


class NoRoom(Exception):
    """There was no room in time."""


class MemoryBudget:
    """The two sums, and the responses that wait for room.

    Args:
        bytes_max: the limit of both together.
        answer_bytes_max: the limit of a single response; None is three quarters of the other one.
    """

    def __init__(self, bytes_max: int, answer_bytes_max: int | None = None) -> None:
        self.bytes_max = bytes_max
        self.answer_bytes_max = answer_bytes_max or bytes_max // 4 * 3
        self.requests = 0
        """Bytes of requests."""
        self.answers = 0
        """Bytes of responses."""
        self.reserve = bytes_max // 16
        """What large requests leave to small ones, and large responses to small ones."""
        self.requests_wait = False
        """Whether large requests wait for room."""
        self._excess_observers: list[Callable[[], None]] = []
        self._room_observers: list[Callable[[], None]] = []
        # What is left to requests, and to responses, in any case.
        self._share = bytes_max // 8
        self._small: deque[_Waiter] = deque()
        self._large: deque[_Waiter] = deque()

    def observe_excess(self, observer: Callable[[], None]) -> None:
        """Call `observer` whenever responses have come to exceed the limit."""
        self._excess_observers.append(observer)

    def observe_room(self, observer: Callable[[], None]) -> None:
        """Call `observer` whenever there is more room for requests, while they wait for it."""
        self._room_observers.append(observer)

    @property
    def requests_max(self) -> int:
        """Current limit of all requests."""
        return self._left_by(self.answers)

    @property
    def answers_max(self) -> int:
        """Current limit of all responses."""
        return self._left_by(self.requests)

    def _left_by(self, others: int) -> int:
        most = self.bytes_max - self._share
        return min(most, max(self._share, self.bytes_max - others))

    @property
    def exceeds(self) -> bool:
        """Whether responses exceed the limit."""
        return self.answers > self.answers_max

    def fits(self, size: int) -> bool:
        """Return whether a response may be made now by one that has waited."""
        if size <= SMALL_BYTES:
            return self.answers + size <= self.answers_max
        # What is larger than the limit itself comes alone.
        large_max = self.answers_max - self.reserve
        return self.answers + min(size, large_max) <= large_max

    def has_room(self, size: int) -> bool:
        """Return whether a response may be made now, before those that wait."""
        waiters = self._small if size <= SMALL_BYTES else self._large
        return not waiters and self.fits(size)

    @property
    def lacking(self) -> int:
        """Bytes of responses to free: for those that wait, and what exceeds the limit."""
        lacking = max(0, self.lacking_responses)
        if self.requests_wait:
            excess = self.requests - (self.requests_max - self.reserve)
            lacking = max(lacking, min(excess, self.answers - self._share))
        return lacking

    @property
    def lacking_responses(self) -> int:
        """Bytes that responses lack, if any."""
        limit = self.answers_max
        excess = self.answers + min(sum(size for size, _ in self._small), limit) - limit
        if self._large:
            limit -= self.reserve
            large = min(sum(size for size, _ in self._large), limit)
            excess = max(excess, self.answers + large - limit)
        return excess

    @property
    def needs_room_of_requests(self) -> bool:
        """Whether responses lack room that requests have taken."""
        return self.requests > self._share and self.lacking_responses > 0

    def take_request(self, size: int) -> None:
        """Count a part of a request."""
        self.requests += size

    def give_back_request(self, size: int) -> None:
        """Subtract a part of a request."""
        self.requests -= size
        if self._small or self._large:
            self._wake()

    def take(self, size: int) -> None:
        """Count a response, or a part of one."""
        self.answers += size
        if self.exceeds:
            for observer in self._excess_observers:
                observer()

    def give_back(self, size: int) -> None:
        """Subtract a response, or a part of one, that was read or dropped."""
        self.answers -= size
        if self._small or self._large:
            self._wake()
        if self.requests_wait:
            for observer in self._room_observers:
                observer()

    async def room(self, size: int) -> None:
        """Wait until a response of this size may be made.

        Raises:
            NoRoom: not within `ROOM_WAIT_S`.
        """
        if not self.has_room(size):
            try:
                async with asyncio.timeout(ROOM_WAIT_S):
                    await self._wait(size)
            except TimeoutError:
                raise NoRoom from None
        if self._small or self._large:
            # The next one wakes once this has taken what it needs, or not.
            asyncio.get_running_loop().call_soon(self._wake)

    async def _wait(self, size: int) -> None:
        waiters = self._small if size <= SMALL_BYTES else self._large
        is_first = False
        while True:
            woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiter = (size, woken)
            if is_first:
                waiters.appendleft(waiter)
            else:
                waiters.append(waiter)
            try:
                await woken
            finally:
                if waiter in waiters:
                    waiters.remove(waiter)
            if self.fits(size):
                return
            # Another one has been faster.
            is_first = True

    def _wake(self) -> None:
        """Wake one waiter, the small ones first."""
        for waiters in (self._small, self._large):
            while waiters and self.fits(waiters[0][0]):
                _, woken = waiters.popleft()
                if not woken.done():
                    woken.set_result(None)
                    return


class Piece:
    """Bytes of one or several responses: counted once, until the last client has read them.

    Attributes:
        data: the bytes.
        escapes: They are a value that has to be escaped as it is sent: that takes six times the
            memory at worst, and would hold up everything else if it was done at once.
    """

    __slots__ = ("__weakref__", "_holders", "_memory", "data", "escapes")

    def __init__(self, data: bytes, memory: MemoryBudget, *, escapes: bool = False) -> None:
        self.data = data
        self.escapes = escapes
        self._memory = memory
        self._holders = 0

    @property
    def is_held(self) -> bool:
        """Whether it is being sent to a client, and so is counted."""
        return self._holders > 0

    def hold(self) -> None:
        """Count one more client that it is sent to."""
        self._holders += 1
        if self._holders == 1:
            self._memory.take(len(self.data))

    def drop(self) -> None:
        """Count one client less: it has read everything, or is gone."""
        self._holders -= 1
        if not self._holders:
            self._memory.give_back(len(self.data))


class Values:
    """Large values that are being sent, each kept once for all responses that show it.

    The index of its last change identifies a value.
    """

    def __init__(self, memory: MemoryBudget) -> None:
        self._memory = memory
        self._sent: WeakValueDictionary[int, Piece] = WeakValueDictionary()

    def make(self, value: bytes) -> Piece:
        """Return a value, of which the index is not known yet, as it is sent."""
        return Piece(value, self._memory, escapes=not is_plain(value))

    def name(self, index: int, piece: Piece) -> None:
        """Note the index of a value."""
        self._sent[index] = piece

    def pieces(self, parts: Parts) -> list[Piece]:
        """Return the parts of a body as they are sent."""
        return [
            Piece(part, self._memory) if isinstance(part, bytes) else self._of(part)
            for part in parts
        ]

    def missing_bytes(self, parts: Parts) -> int:
        """Return the memory that a body takes in addition to values that are being sent already."""
        values = (part for part in parts if isinstance(part, LargeValue))
        return sum(len(value.raw) for value in values if not self._is_counted(value))

    def _is_counted(self, value: LargeValue) -> bool:
        piece = self._sent.get(value.changed)
        return piece is not None and piece.is_held

    def _of(self, value: LargeValue) -> Piece:
        piece = self._sent.get(value.changed)
        if piece is None:
            piece = self._sent[value.changed] = self.make(value.raw)
        return piece

"""What waits in memory for all clients together: counted, so that it can be bounded.

Two sums, each with the same limit: bytes of requests that have not come whole or are not answered
yet, and bytes of answers that have not been read yet. Only what is large is counted; what is small
is bounded by the number of connections.

A request that would exceed the limit is refused. An answer to a read waits for room before it is
rendered. An answer to a write has to be given: while the limit is exceeded, those clients are cut
that have read nothing for the longest time (`kvd.sending`).
"""

from __future__ import annotations

import asyncio
from collections import deque


class Memory:
    """The two sums."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.requests = 0
        """Bytes of requests."""
        self.answers = 0
        """Bytes of answers."""
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def is_full(self) -> bool:
        """Whether no further large answer should be made."""
        return self.answers >= self.bytes_max

    @property
    def is_waited_for(self) -> bool:
        """Whether an answer waits for room."""
        return bool(self._waiters)

    def give_back(self, size: int) -> None:
        """An answer, or a part of one, has been read or is dropped."""
        self.answers -= size
        if self._waiters and not self.is_full:
            # One at a time: the next one wakes once that has taken what it needs, or not.
            self._wake()

    async def room(self) -> None:
        """Wait until a further large answer may be made."""
        while self.is_full:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        if self._waiters:
            asyncio.get_running_loop().call_soon(self._wake)

    def _wake(self) -> None:
        while self._waiters and not self.is_full:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


class Payload:
    """Bytes that several clients may be sent: counted once, as long as one of them has not read."""

    __slots__ = ("_holders", "_memory", "data")

    def __init__(self, data: bytes, memory: Memory) -> None:
        self.data = data
        self._memory = memory
        self._holders = 0

    def hold(self) -> None:
        """One more client is being sent this."""
        if not self._holders:
            self._memory.answers += len(self.data)
        self._holders += 1

    def drop(self) -> None:
        """A client has read it all, or is gone."""
        self._holders -= 1
        if not self._holders:
            self._memory.give_back(len(self.data))

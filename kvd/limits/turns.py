"""Fair shares of the event loop's turns, for connections.

A turn of the loop reads every socket that is readable, and a socket may hold a thousand requests.
So a turn serves a bounded number of requests. Connections with further ones wait in lanes and are
visited in the following turns, one request per visit, first come first served. There are lanes for

- writes, which otherwise would wait behind reads twice, before and after they are made durable;
- reads of keys that have just come: clients that send one request at a time;
- requests behind others of their connection: clients that pipeline;
- pieces of bodies, which may be of one byte;
- what costs far more than these: handshakes of TLS, requests to other routes, long heads and paths
  of many components.

Each lane has its share of each turn, so that none of them holds up another. In the last one the
addresses of clients take turns, so that handshakes without end delay only those of their address.
While a batch of writes waits for the loop, or any connection waits in a lane, a turn is shorter.

The unit is what a short read costs, some 20 us. The only counter is `left`: it is
reset in the turn after it was used up, so that a server with little load spends nothing on this.
"""

from __future__ import annotations

import sys
from collections import deque
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

from kvd.limits.fair_queue import FairQueue, Share

if TYPE_CHECKING:
    import asyncio

# What is read from a connection at once. One buffer for all: asyncio's own way allocates 256 KiB
# for each read, which costs as much as the rest of reading a small request.
_READ_BYTES_MAX = 64 << 10
# And while others wait for their turn.
_READ_BYTES_CONTENDED = 16 << 10
# Units of a turn for which nothing waits, and of one for which something does.
_TURN = 1024
_SHORT_TURN = 64
_HURRIED_TURN = 32
# Of these a turn may have as many besides.
_WRITES = 64
_SLOW = 1
# What a connection may use before others have their turn, if none wait yet.
_VISIT = 16
# A piece of a body or of an answer of so many bytes counts as a unit.
UNIT_BYTES_LOG2 = 14
# What as many small chunks cost as are read at once.
MANY_CHUNKS = 8
UNIT_S = 20e-6
"""CPU time that a unit represents."""
# Additional units of a request that goes the long way, for example because auth is enabled.
LONG_WAY = 1


class Lane(IntEnum):
    """Lane in which a connection waits."""

    WRITES = 0
    READS = 1
    AHEAD = 2
    BODIES = 3
    SLOW = 4


class Waiting(Protocol):
    """A connection that waits for its turn."""

    @property
    def address(self) -> str:
        """The client's address."""

    @property
    def gone(self) -> bool:
        """Whether the connection is closed."""

    def take_turn(self) -> None:
        """Serve one request, or do one step."""


class Turns:
    """The turns of one loop.

    Attributes:
        left: units that are left in this turn.
        buffer: the read buffer of all connections: its content is taken before the next read.
        lent: the part of it that a connection may fill at once.
        visit: number of requests of a connection that are served before others have their turn.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.left = _TURN
        self.buffer = memoryview(bytearray(_READ_BYTES_MAX))
        self.lent = self.buffer
        self.visit = _VISIT
        self._loop = loop
        self._lanes: tuple[deque[Waiting], ...] = tuple(deque() for _ in range(Lane.SLOW))
        self._slow: FairQueue[Waiting] = FairQueue(lanes=2, size_max=sys.maxsize)
        self._writes_left = _WRITES
        self._slow_left = _SLOW
        self._is_hurried = False
        # Further units of this turn, available after `calm`.
        self._put_by = 0
        self._is_set = False
        # The connection that is visited in the slow lane has waited for its slow step.
        self._is_granted = False

    def wait(self, connection: Waiting, lane: Lane) -> None:
        """Let a connection take its turn when those before it in the lane have had theirs."""
        if lane == Lane.SLOW:
            self._slow.put(Share(1, connection.address.encode(), b""), connection)
        else:
            self._lanes[lane].append(connection)
        self._set()

    def takes_write(self) -> bool:
        """Return whether this turn, whose units are used up, still takes a write."""
        if self._writes_left <= 0 or self._lanes[Lane.WRITES]:
            return False
        self._writes_left -= 1
        self.left += 1
        self._set()
        return True

    def takes_slow(self) -> bool:
        """Return whether this turn still takes a slow step."""
        if not self._is_granted and (self._slow_left <= 0 or self._slow):
            return False
        self._slow_left -= 1
        self._set()
        return True

    def hurry(self) -> None:
        """Keep the turns short until `calm`: a batch of writes waits for the loop."""
        self._is_hurried = True
        if self.left > _HURRIED_TURN:
            self._put_by += self.left - _HURRIED_TURN
            self.left = _HURRIED_TURN

    def calm(self) -> None:
        """Allow long turns again."""
        self._is_hurried = False
        self.left += self._put_by
        self._put_by = 0

    def _set(self) -> None:
        if not self._is_set:
            self._is_set = True
            self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        """Begin a turn: visit the connections that wait, each lane up to its share."""
        self._is_set = False
        self._writes_left, self._slow_left = _WRITES, _SLOW
        writes, reads, ahead, bodies = self._lanes
        is_contended = self._slow or any(self._lanes)
        self.lent = self.buffer[:_READ_BYTES_CONTENDED] if is_contended else self.buffer
        self.visit = 1 if is_contended else _VISIT
        self.left = _SHORT_TURN if is_contended else _TURN
        self._put_by = 0
        if self._is_hurried:
            self.hurry()
        if not is_contended:
            return
        fresh = 0
        try:
            # Each lane has units of its own, so that none uses up another's.
            units, self.left = self.left, _WRITES
            quarter = units >> 2
            self._visit(writes, _WRITES)
            self.left = units - quarter
            self._visit(reads, len(reads))
            unused = max(0, self.left)
            fresh = min(unused, quarter)
            self.left = unused - fresh + quarter
            self._visit(ahead, len(ahead))
            self.left = quarter
            self._visit(bodies, len(bodies))
            self._visit_slow()
        finally:
            if self._slow or any(self._lanes):
                # What comes in this turn and has none before it is served in it, for a part.
                self.left = 0 if reads else fresh
            # If nothing waits any more, the next turn is a long one again.
            self._set()

    def _visit(self, lane: deque[Waiting], count: int) -> None:
        """Visit some connections of a lane; the others wait for the next turn."""
        self.left = max(1, self.left)
        for _ in range(min(count, len(lane))):
            lane.popleft().take_turn()
            if self.left <= 0:
                break

    def _visit_slow(self) -> None:
        """Visit some of the slow lane; closed connections do not count."""
        self.left = max(1, self.left)
        self._is_granted = True
        try:
            visits = self._slow_left
            while visits > 0 and self._slow:
                connection = self._slow.pop()
                if not connection.gone:
                    visits -= 1
                    connection.take_turn()
        finally:
            self._is_granted = False

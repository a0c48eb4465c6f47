"""Commands of this replica's own clients that another replica is to decide.

Each has a rid: 12 random bytes of the process and a counter. It waits here from the moment the
closed gate holds it back until a batch with its rid was applied, the leader has refused it, or its
time is over. Then its client gets a response, once.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from typing import Any

from kvd.core.batch.round import counted, respond_to
from kvd.core.clock import Clock
from kvd.core.replicated.leading import MAYBE_DONE, NO_REPLY, NOT_SENT, WAIT_S
from kvd.core.stats import StoreStats
from kvd.replicas.forwarding.command_codec import AnyCommand, size_of
from kvd.storage.format.records import RID_BYTES
from kvd.v2.commands import Command as KeyCommand
from kvd.v2.commands import Transaction
from kvd.v2.errors import RAFT_INTERNAL, ApiError, RouteError

COMMANDS_MAX = 10_000
BYTES_MAX = 64 << 20
_WAIT_NS = int(WAIT_S * 1e9)
PROCESS_BYTES = 12
_COUNTER_MAX = (1 << 8 * (RID_BYTES - PROCESS_BYTES)) - 1
_SWEEP_S = 0.05

TOO_MANY = b"etcdserver: too many requests"
STOPPED = b"etcdserver: server stopped"


class Waiting:
    """A command, the callback that gets its outcome, and when it came (`Clock.raw_ns`).

    Attributes:
        epoch: The one for which it was sent to a leader that may have decided it; 0 if it was not.
        refusal: What `Applied.forget` takes, while a refusal waits for a frame.
    """

    __slots__ = ("came", "command", "done", "epoch", "refusal", "size")

    def __init__(self, command: AnyCommand, done: Callable[[Any], None], came: int) -> None:
        self.command = command
        self.done = done
        self.came = came
        self.size = size_of(command)
        self.epoch = 0
        self.refusal: int | None = None

    @property
    def is_of_keys(self) -> bool:
        """Whether it is a command of the key space, or a transaction."""
        return isinstance(self.command, KeyCommand | Transaction)


class Pending:
    """A table of them by rid, with limits.

    Attributes:
        epoch: The present leader's; 0 while none is known.
        bytes: About how many the commands have.
    """

    def __init__(self, clock: Clock, stats: StoreStats, forget: Callable[[int], None]) -> None:
        self._raw_ns = clock.raw_ns
        self._stats = stats
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._process = secrets.token_bytes(PROCESS_BYTES)
        self._counter = 0
        self._table: dict[bytes, Waiting] = {}
        # For the end of what came then.
        self._timer: asyncio.TimerHandle | None = None
        self._oldest = 0
        self._is_closed = False
        self._empty: list[asyncio.Future[None]] = []
        self.epoch = 0
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._table)

    def find(self, rid: bytes) -> Waiting | None:
        """Return what waits under a rid."""
        return self._table.get(rid)

    def add(
        self, command: AnyCommand, done: Callable[[Any], None], came: int
    ) -> tuple[bytes, Waiting] | None:
        """Take a command; None if it was refused because too many wait."""
        waiting = Waiting(command, done, came)
        if self._is_closed:
            self._refuse(waiting, STOPPED)
            return None
        if len(self._table) >= COMMANDS_MAX or self.bytes + waiting.size > BYTES_MAX:
            self._refuse(waiting, TOO_MANY)
            return None
        rid = self._next_rid()
        self._put(rid, waiting)
        return rid, waiting

    def take(self, rid: bytes) -> Waiting | None:
        """Remove and return what waits under a rid."""
        waiting = self._table.pop(rid, None)
        if waiting is not None:
            self.bytes -= waiting.size
            if waiting.refusal is not None:
                self._forget(waiting.refusal)
                waiting.refusal = None
            if not self._table:
                self._is_empty()
        return waiting

    def put_back(self, found: Iterable[tuple[bytes, Waiting]]) -> None:
        """Go on waiting for what was taken."""
        for rid, waiting in found:
            self._put(rid, waiting)

    def in_order(self) -> list[tuple[bytes, Waiting]]:
        """Return all, in the order in which they got their rids."""
        return sorted(self._table.items(), key=_by_rid)

    def take_all(self) -> list[tuple[bytes, Waiting]]:
        """Remove and return all, in that order."""
        waited = self.in_order()
        for rid, _ in waited:
            self.take(rid)
        return waited

    def refuse(self, rid: bytes, refusal: ApiError | RouteError) -> None:
        """Respond with a refusal of the leader."""
        waiting = self.take(rid)
        if waiting is None:
            return
        command = waiting.command
        if not isinstance(command, KeyCommand | Transaction):
            is_own = isinstance(refusal, RouteError)
            respond_to(waiting.done, refusal if is_own else RouteError(500, NO_REPLY))
            return
        if isinstance(refusal, RouteError):
            refusal = ApiError(RAFT_INTERNAL, refusal.message.encode())
        self._stats.count(counted(command), succeeded=False)
        self._stats.refused(counted(command), refusal)
        respond_to(waiting.done, refusal)

    def refuse_those(self, cause: bytes, chosen: Callable[[Waiting], bool]) -> None:
        """Respond to some of them that they are not known to be done."""
        for rid, waiting in self.in_order():
            if chosen(waiting):
                self.take(rid)
                self._refuse(waiting, cause)

    async def drained(self) -> None:
        """Wait until none waits."""
        while self._table:
            self._empty.append(self._loop.create_future())
            await self._empty[-1]

    def close(self) -> None:
        """Respond to all of them, and to those that still come: the server stops."""
        self._is_closed = True
        self.refuse_those(STOPPED, lambda _: True)
        if self._timer is not None:
            self._timer.cancel()

    def _put(self, rid: bytes, waiting: Waiting) -> None:
        self._table[rid] = waiting
        self.bytes += waiting.size
        # Those that a leader gives back may have come before what waits already.
        if self._timer is None or waiting.came < self._oldest:
            self._arm(waiting.came)

    def _next_rid(self) -> bytes:
        if self._counter == _COUNTER_MAX:
            self._process, self._counter = secrets.token_bytes(PROCESS_BYTES), 0
        self._counter += 1
        return self._process + self._counter.to_bytes(RID_BYTES - PROCESS_BYTES, "big")

    def _refuse(self, waiting: Waiting, cause: bytes) -> None:
        command = waiting.command
        if isinstance(command, KeyCommand | Transaction):
            refusal = ApiError(RAFT_INTERNAL, cause)
            self._stats.refused(counted(command), refusal)
            respond_to(waiting.done, refusal)
        else:
            respond_to(waiting.done, RouteError(500, NO_REPLY))

    def _arm(self, came: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._oldest = came
        left_s = (came + _WAIT_NS - self._raw_ns()) / 1e9
        self._timer = self._loop.call_later(max(left_s, _SWEEP_S), self._sweep)

    def _sweep(self) -> None:
        """Respond to those that have waited for too long."""
        until = self._raw_ns() - _WAIT_NS
        for rid, waiting in self.in_order():
            if waiting.came <= until:
                self.take(rid)
                lost = waiting.epoch not in (0, self.epoch)
                self._refuse(waiting, MAYBE_DONE if lost else NOT_SENT)
        self._timer = None
        if self._table:
            self._arm(min(waiting.came for waiting in self._table.values()))

    def _is_empty(self) -> None:
        for future in self._empty:
            if not future.done():
                future.set_result(None)
        self._empty.clear()


def _by_rid(item: tuple[bytes, Waiting]) -> bytes:
    return item[0]

"""Waits for a frame to be applied here: quorum reads, and refusals by the leader.

A quorum read sees all that was acknowledged before it came, at any replica: it learns the last
frame of the log after it came, waits until that frame is applied here, and reads the own state.
Reads that come while the engine is being asked wait for the next time: what was sent before a read
came proves nothing to it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Protocol

from kvd.core.replicated.leading import NOT_SENT, WAIT_S
from kvd.replicas.engine import End, EngineError
from kvd.storage.index.history import LateEvent
from kvd.storage.store import Store
from kvd.v2.errors import RAFT_INTERNAL, ApiError

_SWEEP_S = 0.05


class Applied:
    """Calls back once the store has applied a frame: an observer of batches (core/batch/flow.py).

    Attributes:
        kept: The calls that wait, in any order; while there are none this costs nothing.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._numbers = count()
        self.kept: dict[int, tuple[int, Callable[[], object]]] = {}

    @property
    def seq(self) -> int:
        """The last frame that was applied."""
        return self._store.applied.seq

    def when(self, seq: int, call: Callable[[], object]) -> int | None:
        """Call once frame `seq` is applied, which may be now; else return what `forget` takes."""
        if self.seq >= seq:
            call()
            return None
        number = next(self._numbers)
        self.kept[number] = seq, call
        return number

    def forget(self, number: int) -> None:
        """Do not call, unless that was done."""
        self.kept.pop(number, None)

    def observe(self, _events: list[LateEvent]) -> None:
        """Call what waits for a batch that has become visible."""
        self.look()

    def look(self) -> None:
        """Call what waits for no more than the store has applied."""
        seq = self.seq
        for number in [number for number, (of, _) in self.kept.items() if of <= seq]:
            self.kept.pop(number)[1]()


class HasEnd(Protocol):
    """An engine, as far as it is needed here."""

    def end(self) -> Awaitable[End]:
        """The last frame of the log, linearizable."""


class ReadIndex:
    """Lets quorum reads wait; one request to the engine serves all that came before it was sent."""

    def __init__(self, engine: HasEnd, applied: Applied, *, timeout_s: float = WAIT_S) -> None:
        self._engine = engine
        self._applied = applied
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        # Those for which the engine has not been asked yet.
        self._next: list[asyncio.Future[None]] = []
        self._asking: asyncio.Task[None] | None = None
        # Those that wait for a frame, by what `Applied.forget` takes.
        self._behind: dict[int, list[asyncio.Future[None]]] = {}
        # All of them, by when they end.
        self._ends: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def catch_up(self) -> None:
        """Return once all that was acknowledged before this call is visible here.

        Raises:
            ApiError: it took too long, or the engine cannot be used.
        """
        read = self._loop.create_future()
        self._next.append(read)
        self._end_in_time(read)
        if self._asking is None:
            self._asking = self._loop.create_task(self._ask())
        await read

    def close(self) -> None:
        """Refuse the reads that wait."""
        self._refuse_all(b"etcdserver: server stopped")
        if self._asking is not None:
            self._asking.cancel()
        if self._timer is not None:
            self._timer.cancel()

    async def _ask(self) -> None:
        try:
            while self._next:
                reads, self._next = self._next, []
                end = await self._engine.end()
                self._release_at(end.seq, reads)
        except EngineError as error:
            self._refuse_all(str(error).encode())
        finally:
            self._asking = None

    def _release_at(self, seq: int, reads: list[asyncio.Future[None]]) -> None:
        number: int | None = None

        def release() -> None:
            for read in reads:
                if not read.done():
                    read.set_result(None)
            if number is not None:
                self._behind.pop(number, None)

        number = self._applied.when(seq, release)
        if number is not None:
            self._behind[number] = reads

    def _end_in_time(self, read: asyncio.Future[None]) -> None:
        ends = self._ends
        while ends and ends[0][1].done():
            ends.popleft()
        ends.append((self._loop.time() + self._timeout_s, read))
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._sweep)

    def _sweep(self) -> None:
        """Refuse the reads that have waited for too long, and forget what was done."""
        ends, now = self._ends, self._loop.time()
        while ends and (ends[0][1].done() or ends[0][0] <= now):
            _refuse(ends.popleft()[1], NOT_SENT)
        self._next = [read for read in self._next if not read.done()]
        for number, reads in [*self._behind.items()]:
            if all(read.done() for read in reads):
                self._applied.forget(number)
                del self._behind[number]
        self._timer = None
        if ends:
            wait_s = max(ends[0][0] - now, _SWEEP_S)
            self._timer = self._loop.call_later(wait_s, self._sweep)

    def _refuse_all(self, cause: bytes) -> None:
        for number in self._behind:
            self._applied.forget(number)
        self._behind.clear()
        self._next.clear()
        for _, read in self._ends:
            _refuse(read, cause)
        self._ends.clear()


def _refuse(read: asyncio.Future[None], cause: bytes) -> None:
    if not read.done():
        read.set_exception(ApiError(RAFT_INTERNAL, cause))

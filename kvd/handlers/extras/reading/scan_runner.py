"""Scans in turns of the loop: two at a time, a slice of one of them in a turn.

A scan goes through more nodes or events than it shows. Further scans wait; one that has waited too
long is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic, thread_time

from kvd.handlers.extras.reading.scan import Scan
from kvd.handlers.keys.large_listings import too_large
from kvd.handlers.keys.parts import KeyParts
from kvd.handlers.keys.responder import TOO_MANY_SCANS
from kvd.http.connection import Connection
from kvd.v2.errors import RAFT_INTERNAL, ApiError

_SIDE_BY_SIDE = 2
# How long a scan waits until it begins, how long it goes on, and how long in one turn of the loop.
_QUEUE_S = 10.0
_SCAN_S = 2.0
_SLICE_S = 0.001


class Scans:
    """The scans of one key space."""

    def __init__(self, parts: KeyParts) -> None:
        self._state = parts.store.state
        self._slices = parts.slices
        self._memory = parts.memory
        self._running = asyncio.Semaphore(_SIDE_BY_SIDE)

    async def run(
        self, connection: Connection, begin: Callable[[SlicePace], Scan]
    ) -> tuple[int, bytes, bytes] | None:
        """Run a scan when its turn has come; None if the client has gone meanwhile.

        Returns:
            The etcd index at which it began, its body, and its header lines.

        Raises:
            ApiError: no turn has come in time, the response is too large, or as the scan.
        """
        try:
            async with asyncio.timeout(_QUEUE_S):
                await self._running.acquire()
        except TimeoutError:
            raise _too_many_scans() from None
        try:
            return await self._go_through(connection, begin)
        finally:
            self._running.release()

    async def _go_through(
        self, connection: Connection, begin: Callable[[SlicePace], Scan]
    ) -> tuple[int, bytes, bytes] | None:
        memory, index = self._memory, self._state.applied.index
        pace = SlicePace()
        scan = begin(pace)
        held = 0
        try:
            while not connection.gone:
                async with self._slices:
                    await asyncio.sleep(0)
                    pace.begin_slice()
                    size, found = _next(scan)
                if found is not None:
                    return index, *found
                memory.take(size - held)
                held = size
                if held > memory.answer_bytes_max:
                    raise too_large(memory.answer_bytes_max)
            return None
        finally:
            memory.give_back(held)


def _next(scan: Scan) -> tuple[int, tuple[bytes, bytes] | None]:
    """Return what a scan holds after another slice, and its body and header lines if it is done."""
    try:
        return next(scan), None
    except StopIteration as end:
        return 0, end.value


class SlicePace:
    """Time limits: of a scan by the clock, of a slice by the processor's time."""

    def __init__(self) -> None:
        self._end = monotonic() + _SCAN_S
        self._slice_end = 0.0

    def begin_slice(self) -> None:
        """Start the time of a slice."""
        self._slice_end = thread_time() + _SLICE_S

    def is_late(self) -> bool:
        """Return whether the slice has lasted long enough."""
        return thread_time() >= self._slice_end

    def is_over(self) -> bool:
        """Return whether the scan has lasted too long."""
        return monotonic() >= self._end


def _too_many_scans() -> ApiError:
    cause = (
        f"{_SIDE_BY_SIDE} scans go on already, and no turn has come within {_QUEUE_S:g} s: "
        "try again"
    )
    return ApiError(RAFT_INTERNAL, cause.encode(), limit=TOO_MANY_SCANS)

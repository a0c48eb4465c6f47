"""Calls that are due at the same time, made a slice in each turn of the event loop.

Timers of ten thousand watches that began together end together, too, and asyncio would run all of
them in one turn: while others wait for as long as these take. Here they only queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

_SLICE_S = 0.001


class DueCalls:
    """A queue of calls, in the order in which they became due."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = monotonic
    ) -> None:
        """Begin; `clock` tells the time in seconds."""
        self._loop = loop
        self._clock = clock
        self._due: deque[Callable[[], object]] = deque()
        self._is_scheduled = False

    def add(self, call: Callable[[], object]) -> None:
        """Have a call made, in this turn of the loop or one that follows."""
        self._due.append(call)
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._is_scheduled = False
        until = self._clock() + _SLICE_S
        due = self._due
        try:
            while due:
                due.popleft()()
                if self._clock() >= until:
                    return
        finally:
            if due and not self._is_scheduled:
                self._is_scheduled = True
                self._loop.call_soon(self._go_on)

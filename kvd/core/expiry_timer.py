"""The timer of the next expiration."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kvd.core.clock import NEVER_NS, Clock
from kvd.storage.index.state import State

_WAIT_S_MAX = 3600.0


class ExpiryTimer:
    """Calls back when the first of the committed nodes ends.

    Attributes:
        armed_ns: The `due_ns` of the state for which it is set.
        overdue_at: When the clock's `raw_ns` reaches it, something has ended that is still there.
    """

    def __init__(
        self,
        state: State,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        on_due: Callable[[], None],
    ) -> None:
        self._state = state
        self._clock = clock
        self._loop = loop
        self._on_due = on_due
        self._handle: asyncio.TimerHandle | None = None
        self._is_stopped = False
        self.armed_ns = 0
        self.overdue_at = NEVER_NS

    @property
    def is_overdue(self) -> bool:
        """Whether something has ended: no timer runs while the machine is suspended."""
        return self._clock.raw_ns() >= self.overdue_at

    def arm(self) -> None:
        """Set it to the first expiration."""
        due_ns = self._state.due_ns
        if self._is_stopped or due_ns == self.armed_ns:
            return
        self._cancel()
        self.armed_ns = due_ns
        self.overdue_at = self._clock.raw_of(due_ns or NEVER_NS)
        if due_ns:
            wait_s = max(0.0, (self.overdue_at - self._clock.raw_ns()) / 1e9)
            self._handle = self._loop.call_later(min(wait_s, _WAIT_S_MAX), self._fire)

    def clock_moved(self) -> None:
        """Set it again: the clock's times belong to other raw ones than before."""
        self.armed_ns = -1
        self.arm()

    def stop(self) -> None:
        """Call back no more."""
        self._is_stopped = True
        self._cancel()

    def _cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self) -> None:
        self.armed_ns = -1  # to be set again
        self._handle = None
        self._on_due()

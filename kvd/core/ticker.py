"""Periodic calls while the server runs.

Invariant: an exception in one of the functions neither keeps the others from being called nor ends
the ticking. Without it connections would never time out again, and the Date of answers would stand.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from kvd.logs import SLOW_QUIET_S, RateLimit
from kvd.storage.index.errors import BROKEN

log = logging.getLogger(__name__)


class Ticker:
    """Calls functions in turn, at once and then every `period_s` seconds, until it is stopped.

    Damage to the index, which ends the process, goes to `on_damage`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        period_s: float,
        functions: dict[str, Callable[[], object]],
        on_damage: Callable[[BaseException], object],
    ) -> None:
        self._loop = loop
        self._period_s = period_s
        self._functions = functions
        self._on_damage = on_damage
        self._may_log = {name: RateLimit(SLOW_QUIET_S) for name in functions}
        self._timer: asyncio.TimerHandle | None = None
        self._tick()

    def stop(self) -> None:
        """Call nothing any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._period_s, self._tick)
        for name, function in self._functions.items():
            try:
                function()
            except BROKEN as damage:
                self._on_damage(damage)
            except Exception:
                # An edge of the process, like a request: the next tick tries again.
                may_log = self._may_log[name]
                if may_log.allow():
                    log.exception("the tick of the %s failed%s", name, may_log.suppressed())

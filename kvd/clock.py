"""The one clock: wall-clock time that never jumps and never goes back.

Expirations are shown to clients as wall-clock time, so the clock starts from it; from then on it
follows the time since the machine was booted, so that a step of the system's clock ends no lease
early and prolongs none; the time that a machine is suspended counts. Small drift (NTP slewing the
system's clock) is followed.
"""

from __future__ import annotations

import logging
import time
from functools import partial

log = logging.getLogger(__name__)

_STEP_NS = 1_000_000_000


class Clock:
    """Nanoseconds since the epoch, never below `floor_ns` (the last time that was logged)."""

    def __init__(self, floor_ns: int = 0) -> None:
        now_ns = time.time_ns()
        if floor_ns - now_ns > _STEP_NS:
            log.warning(
                "the system's clock is %.1f s behind the log: time goes on from the log's",
                (floor_ns - now_ns) / 1e9,
            )
        self.raw_ns = partial(time.clock_gettime_ns, getattr(time, "CLOCK_BOOTTIME", 1))
        """The time since the machine was booted: what is cheapest to ask for, and to compare."""
        self._last_ns = floor_ns
        self._offset_ns = max(now_ns, floor_ns) - self.raw_ns()
        # What has been said already at the start is not said again.
        self._warned = floor_ns - now_ns > _STEP_NS

    def now_ns(self) -> int:
        """Return the time; it never goes back."""
        self._last_ns = max(self._last_ns, self.raw_ns() + self._offset_ns)
        return self._last_ns

    def at(self, raw_ns: int) -> int:
        """Return the time at which the machine had been up for so long."""
        return raw_ns + self._offset_ns

    def raw_of(self, time_ns: int) -> int:
        """Return how long the machine will have been up at a time."""
        return time_ns - self._offset_ns

    def follow(self) -> None:
        """Follow the system's clock unless it has been stepped; call it now and then."""
        drift_ns = time.time_ns() - self.at(self.raw_ns())
        if abs(drift_ns) < _STEP_NS:
            self._offset_ns += drift_ns
            self._warned = False
        elif not self._warned:
            self._warned = True
            log.warning(
                "the system's clock was stepped by %.1f s: expirations go on as they were counted",
                drift_ns / 1e9,
            )

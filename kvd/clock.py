"""The one clock: wall-clock time that never jumps and never goes back.

Expirations are shown to clients as wall-clock time, so the clock starts from it; from then on it
follows the monotonic clock, so that a step of the system's clock ends no lease early and prolongs
none. Small drift (NTP slewing the system's clock) is followed.
"""

from __future__ import annotations

import logging
import time

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
        self._last_ns = floor_ns
        self._offset_ns = max(now_ns, floor_ns) - time.monotonic_ns()
        # What has been said already at the start is not said again.
        self._warned = floor_ns - now_ns > _STEP_NS

    def now_ns(self) -> int:
        """Return the time; it never goes back."""
        self._last_ns = max(self._last_ns, time.monotonic_ns() + self._offset_ns)
        return self._last_ns

    def follow(self) -> None:
        """Follow the system's clock unless it has been stepped; call it now and then."""
        drift_ns = time.time_ns() - (time.monotonic_ns() + self._offset_ns)
        if abs(drift_ns) < _STEP_NS:
            self._offset_ns += drift_ns
            self._warned = False
        elif not self._warned:
            self._warned = True
            log.warning(
                "the system's clock was stepped by %.1f s: expirations go on as they were counted",
                drift_ns / 1e9,
            )

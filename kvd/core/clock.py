"""The one clock: the store's own time, which never jumps and never goes back.

The store's time goes with the time since the machine was booted, suspended or not: a step of the
machine's clock (an operator's correction, NTP after a boot without a clock) ends no lease early and
prolongs none. What clients are shown is the store's time plus an offset, which is logged when it
changes (`ClockOffset` in storage/format/records.py): so expirations agree with the machine's clock
again soon after a step, and a start finds the store's time by the machine's clock, less the offset.
The offset of a store whose clock was never stepped is 0, and nothing is logged.

What happens to the machine's clock while nothing runs cannot be told from time that passed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

log = logging.getLogger(__name__)

# What differs by less is no step worth being logged: leases are off by no more after a restart.
STEP_NS = 100_000_000
NEVER_NS = 1 << 64
"""A time that never comes."""
# The two clocks are read one after the other: a reading that took longer says nothing.
_READING_NS_MAX = 10_000_000
_LOGGED_NS_MIN = 1_000_000_000


class Clock:
    """The store's time in nanoseconds, never below `floor_ns` (the last time that was logged).

    `offset_ns` is the logged one: the machine's clock less the store's time. `raw_ns` and `wall_ns`
    read the clocks of a machine that is not this one: those of a test.
    """

    def __init__(
        self,
        floor_ns: int = 0,
        offset_ns: int = 0,
        *,
        raw_ns: Callable[[], int] | None = None,
        wall_ns: Callable[[], int] | None = None,
    ) -> None:
        boot_ns = partial(time.clock_gettime_ns, getattr(time, "CLOCK_BOOTTIME", 1))
        self.raw_ns = raw_ns or boot_ns
        """The time since the machine was booted: what is cheapest to ask for, and to compare."""
        self._wall_ns = wall_ns or time.time_ns
        self._start_ns = self._wall_ns() - offset_ns - self.raw_ns()
        self.raise_floor(floor_ns)

    def raise_floor(self, floor_ns: int) -> bool:
        """Go on from a time of the log, unless that has passed; return whether it has not.

        What `at` and `raw_of` have returned before is not right any more then, and the offset to be
        logged is another one.
        """
        now_ns = self.now_ns()
        if floor_ns <= now_ns:
            return False
        if floor_ns - now_ns > _LOGGED_NS_MIN:
            log.warning(
                "the system's clock is %.1f s behind the log: time goes on from the log's",
                (floor_ns - now_ns) / 1e9,
            )
        self._start_ns += floor_ns - now_ns
        return True

    def now_ns(self) -> int:
        """Return the time; it never goes back."""
        return self.raw_ns() + self._start_ns

    def at(self, raw_ns: int) -> int:
        """Return the time at which the machine had been up for so long."""
        return raw_ns + self._start_ns

    def raw_of(self, time_ns: int) -> int:
        """Return how long the machine will have been up at a time."""
        return time_ns - self._start_ns

    def stepped_to(self, offset_ns: int) -> int | None:
        """Return the offset that is right now, if the machine's clock was stepped; else None.

        Args:
            offset_ns: the one that is logged.
        """
        before_ns = self.raw_ns()
        wall_ns = self._wall_ns()
        if self.raw_ns() - before_ns > _READING_NS_MAX:
            return None
        found_ns = wall_ns - self.at(before_ns)
        return found_ns if abs(found_ns - offset_ns) >= STEP_NS else None


class ClockSteps:
    """Steps of the machine's clock, from when they are found until they are logged.

    Attributes:
        offset_ns: The offset to be logged; None without a step.
    """

    def __init__(self, clock: Clock, logged_ns: int) -> None:
        self.offset_ns: int | None = None
        self._clock = clock
        self._known_ns = logged_ns

    def look(self, logged_ns: int) -> None:
        """Compare the machine's clock with the offset that is logged."""
        if logged_ns != self._known_ns:
            log.warning(
                "the system's clock was stepped by %.1f s: keys live as long as before, their "
                "expirations are shown by the new time",
                (logged_ns - self._known_ns) / 1e9,
            )
            self._known_ns = logged_ns
        self.offset_ns = self._clock.stepped_to(logged_ns)

    def take(self, logged_ns: int) -> int | None:
        """Return the offset to be logged, if any: none, if that was done since it was found."""
        offset_ns, self.offset_ns = self.offset_ns, None
        if offset_ns is None or abs(offset_ns - logged_ns) < STEP_NS:
            return None
        return offset_ns

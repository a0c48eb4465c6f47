"""The clocks of a machine that a test sets: they can be frozen, jump, and show any date."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from kvd.core.clock import Clock

_FIRST, _LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
_TIMES_NS = range((_LAST - _FIRST) // timedelta(microseconds=1) * 1000)
"""Dates, and times since the boot, that fit into what the store writes, with the longest TTL."""
_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class ClockSetting(NamedTuple):
    """The difference of a machine's clocks from those of this one, in nanoseconds.

    `frozen_ns` is this machine's time since the boot at which they are frozen, None while they go;
    `boot_date_ns` is the date of the boot.
    """

    frozen_ns: int | None
    ahead_ns: int
    boot_date_ns: int


class MachineTime:
    """Two clocks, as those of a machine: the time since it was booted, and the date.

    They outlive the servers that go by them, as a machine's do. The time since the boot never goes
    back; the date may be set to anything, which a server takes for a step of the system's clock.
    """

    def __init__(self) -> None:
        self.setting = ClockSetting(None, 0, time.time_ns() - time.clock_gettime_ns(_BOOT))

    def raw_ns(self) -> int:
        """Return the time since the boot."""
        frozen_ns, ahead_ns, _ = self.setting
        return (time.clock_gettime_ns(_BOOT) if frozen_ns is None else frozen_ns) + ahead_ns

    def date_ns(self) -> int:
        """Return the date, since 1970."""
        return self.raw_ns() + self.setting.boot_date_ns

    def clock(self, floor_ns: int, offset_ns: int) -> Clock:
        """Return the clock of a store on this machine; see `KvdServer`."""
        return Clock(floor_ns, offset_ns, raw_ns=self.raw_ns, wall_ns=self.date_ns)

    def freeze(self, at: datetime | None = None) -> None:
        """Freeze both; set the date first, if one is given (UTC if it has no zone).

        Raises:
            ValueError: the date is not from 1970 to 2199.
        """
        date_ns = None if at is None else _require_date(_since_1970_ns(at))
        if self.setting.frozen_ns is None:
            self.setting = self.setting._replace(frozen_ns=time.clock_gettime_ns(_BOOT))
        if date_ns is not None:
            self.setting = self.setting._replace(boot_date_ns=date_ns - self.raw_ns())

    def thaw(self) -> None:
        """Let both go on."""
        frozen_ns, ahead_ns, boot_date_ns = self.setting
        if frozen_ns is not None:
            passed_ns = time.clock_gettime_ns(_BOOT) - frozen_ns
            self.setting = ClockSetting(None, ahead_ns - passed_ns, boot_date_ns)

    def advance(self, by_ns: int) -> None:
        """Put both ahead.

        Raises:
            ValueError: the date would be later than 2199.
        """
        _require_date(max(self.raw_ns(), self.date_ns()) + by_ns)
        self.setting = self.setting._replace(ahead_ns=self.setting.ahead_ns + by_ns)


def _require_date(date_ns: int) -> int:
    if date_ns not in _TIMES_NS:
        raise ValueError("expected a date from 1970 to 2199")
    return date_ns


def _since_1970_ns(at: datetime) -> int:
    if not isinstance(at, datetime):
        raise TypeError(f"expected a datetime, got {at!r}")
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return (at - _FIRST) // timedelta(microseconds=1) * 1000

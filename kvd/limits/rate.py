"""Rate at which a client sends or reads; slow clients are cut while memory is short."""

from __future__ import annotations

RATE_MIN = 512 << 10
"""Minimum of bytes per second that a client has to send or read while others wait for room."""


class Rate:
    """Bytes of one client so far, and its latest rate.

    Attributes:
        is_slow: the latest rate is known and below `RATE_MIN`.
    """

    __slots__ = ("_done_bytes", "_rate", "_since", "_window_s", "is_slow")

    def __init__(self, done_bytes: int, now: float, window_s: float) -> None:
        """Start to measure; a rate is known after `window_s` seconds."""
        self._window_s = window_s
        self.restart(done_bytes, now)

    def restart(self, done_bytes: int, now: float) -> None:
        """Forget what was measured."""
        self._done_bytes = done_bytes
        self._since = now
        self._rate: float | None = None
        self.is_slow = False

    def measure(self, done_bytes: int, now: float) -> None:
        """Measure the rate, unless the last measurement is within the window."""
        if self.is_due(now):
            self._rate = (done_bytes - self._done_bytes) / (now - self._since)
            self.is_slow = self._rate < RATE_MIN
            self._done_bytes, self._since = done_bytes, now

    def is_due(self, now: float) -> bool:
        """Return whether `measure` would measure."""
        return now - self._since >= self._window_s

    @property
    def is_fast(self) -> bool:
        """Whether the latest rate is known and sufficient."""
        return self._rate is not None and not self.is_slow

    @property
    def order(self) -> tuple[int, float]:
        """Sort key of cutting: slow clients first, then unknown rates (the oldest first)."""
        if self._rate is None:
            return 1, self._since
        return (0 if self.is_slow else 2), self._rate

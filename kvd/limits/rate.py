"""How fast a client sends or reads, measured to give up the slow ones where memory is short."""

from __future__ import annotations

RATE_MIN = 512 << 10
"""Bytes a second that a client has to send, or to read, while others wait for room."""


class Rate:
    """The bytes of one client so far, and how many a second there were lately.

    Attributes:
        is_slow: The last rate is known, and less than `RATE_MIN`.
    """

    __slots__ = ("_done_bytes", "_rate", "_since", "_window_s", "is_slow")

    def __init__(self, done_bytes: int, now: float, window_s: float) -> None:
        """Measure from now on; a rate is known after `window_s` seconds."""
        self._window_s = window_s
        self.restart(done_bytes, now)

    def restart(self, done_bytes: int, now: float) -> None:
        """Forget what was measured."""
        self._done_bytes = done_bytes
        self._since = now
        self._rate: float | None = None
        self.is_slow = False

    def measure(self, done_bytes: int, now: float) -> None:
        """Measure the rate, unless that was done within the window."""
        if self.is_due(now):
            self._rate = (done_bytes - self._done_bytes) / (now - self._since)
            self.is_slow = self._rate < RATE_MIN
            self._done_bytes, self._since = done_bytes, now

    def is_due(self, now: float) -> bool:
        """Return whether `measure` would measure."""
        return now - self._since >= self._window_s

    @property
    def is_fast(self) -> bool:
        """Whether the last rate is known, and enough."""
        return self._rate is not None and not self.is_slow

    @property
    def order(self) -> tuple[int, float]:
        """The order of giving up: slow ones first, then unknown ones (the oldest first)."""
        if self._rate is None:
            return 1, self._since
        return (0 if self.is_slow else 2), self._rate

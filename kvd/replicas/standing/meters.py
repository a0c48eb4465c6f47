"""Meters of a replica: frames by the second, and how soon followers have what was appended."""

import math
from collections import deque
from collections.abc import Callable

from kvd.core.standing import Latency, Traffic

KEPT = 200
"""As many frames make a rate, as in etcd."""
_RECENT_S = 1.0
UNANSWERED_MAX = 1000
"""Frames whose end is remembered: a follower further behind than that has no latency."""


class TrafficMeter:
    """Counts frames, and keeps the last ones for their rate."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._frames = 0
        self._last: deque[tuple[float, int]] = deque(maxlen=KEPT)

    def note(self, size: int) -> None:
        """Count a frame of so many bytes."""
        self._frames += 1
        self._last.append((self._now(), size))

    def traffic(self) -> Traffic:
        """Return the count, and the rates if a frame came in the last second."""
        last = self._last
        if len(last) < 2 or self._now() - last[-1][0] > _RECENT_S:
            return Traffic(self._frames)
        elapsed_s = last[-1][0] - last[0][0]
        if elapsed_s <= 0:
            return Traffic(self._frames)
        size = sum(size for _, size in last)
        return Traffic(self._frames, len(last) / elapsed_s, size / elapsed_s)


class LatencyMeter:
    """Durations by their count, mean, spread and bounds; Welford's method, so that none is kept."""

    def __init__(self) -> None:
        self.count = 0
        self._current = 0.0
        self._mean = 0.0
        self._squares = 0.0
        self._minimum = math.inf
        self._maximum = 0.0

    def note(self, duration_s: float) -> None:
        """Count a duration."""
        self.count += 1
        off = duration_s - self._mean
        self._current = duration_s
        self._mean += off / self.count
        self._squares += off * (duration_s - self._mean)
        self._minimum = min(self._minimum, duration_s)
        self._maximum = max(self._maximum, duration_s)

    def latency(self) -> Latency | None:
        """Return the figures; None before the first."""
        if not self.count:
            return None
        spread = math.sqrt(self._squares / self.count)
        return Latency(self._current, self._mean, spread, self._minimum, self._maximum)


class Ends:
    """When the last appends of this leader ended, by their frames."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._ended: dict[int, float] = {}

    def note(self, seq: int) -> None:
        """The append of a frame has ended."""
        self._ended[seq] = self._now()
        if len(self._ended) > UNANSWERED_MAX:
            del self._ended[next(iter(self._ended))]

    def since(self, seq: int) -> float | None:
        """Return how long ago that was; None if it is not known."""
        ended = self._ended.get(seq)
        return None if ended is None else max(0.0, self._now() - ended)

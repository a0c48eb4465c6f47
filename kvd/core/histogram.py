"""Counting durations and sizes in buckets, at the price of a search in a short list.

(prometheus_client's own histograms take a lock for each observation, which costs five times as
much (measured). kvd/monitoring/metrics.py shows these in its format.)
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

DURATIONS_S = tuple(0.000125 * 2**k for k in range(17))
"""From an eighth of a millisecond to eight seconds, doubling: a superset of etcd's buckets."""
SNAPSHOTS_S = tuple(0.001 * 2**k for k in range(21))
"""From a millisecond to a quarter of an hour, doubling."""


class Histogram:
    """Counts of observed values up to each of some bounds, and their sum.

    Attributes:
        counts: How many values are above the bound before and not above this one, the last without.
        total: Their sum.
    """

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = DURATIONS_S) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, or several that are the same."""
        self.counts[bisect_left(self._bounds, value)] += times
        self.total += value * times

    def take(self, values: list[float]) -> None:
        """Count all values of a list, and empty it: at a small part of what each would cost."""
        values.sort()
        self.total += sum(values)
        before = 0
        for place, bound in enumerate(self._bounds):
            below = bisect_right(values, bound)
            self.counts[place] += below - before
            before = below
        self.counts[-1] += len(values) - before
        values.clear()

    def cumulative(
        self, lowest: float = 0.0, highest: float = float("inf")
    ) -> list[tuple[str, int]]:
        """Return pairs of a bound, as text, and how many values are not above it, `+Inf` last.

        Bounds outside of `lowest` to `highest` are left out, values beyond them are not.
        """
        pairs, below = [], 0
        for bound, count in zip(self._bounds, self.counts, strict=False):
            below += count
            if lowest <= bound <= highest:
                pairs.append((f"{bound:.12g}", below))
        return [*pairs, ("+Inf", below + self.counts[-1])]


class Noted(Histogram):
    """A histogram whose values are counted later, many at once.

    Attributes:
        note: Notes a value. It only adds to a list, so from any thread, and at the price of that.
    """

    __slots__ = ("_values", "note")

    def __init__(self, bounds: Sequence[float] = DURATIONS_S) -> None:
        super().__init__(bounds)
        self._values: list[float] = []
        self.note = self._values.append

    def fold(self) -> None:
        """Count what was noted; to be called now and then, so that the list stays short."""
        values = self._values[:]
        del self._values[: len(values)]
        self.take(values)

    def cumulative(
        self, lowest: float = 0.0, highest: float = float("inf")
    ) -> list[tuple[str, int]]:
        """As that of any histogram; what was noted is counted by it, in `total` too."""
        self.fold()
        return super().cumulative(lowest, highest)

"""How long batches took, and the successful writes in them, by method.

A write on a connection of its own is a batch of its own, so this is on the way of each: the
histograms are filled in place, and one search serves those that share their bounds and the value.
"""

from __future__ import annotations

from bisect import bisect_left

from kvd.histogram import DURATIONS_S, Histogram
from kvd.stats import StoreStats


class BatchTimes:
    """The batches of one committer.

    Attributes:
        batch_s: From the queueing of a batch's first command to its answers.
        commit_s: What the index took to commit.
        records: How many records the batches had that went to the log.
        writes_s: How long successful writes took at most, by method: as long as their batch.
    """

    def __init__(self, stats: StoreStats) -> None:
        self.batch_s = Histogram()
        self.commit_s = Histogram()
        self.records = Histogram(tuple(2**k for k in range(11)))
        self.writes_s = {method: Histogram() for method in ("PUT", "POST", "DELETE")}
        self._put_s, self._post_s, self._delete_s = self.writes_s.values()
        self._written = stats.writes
        self._put = self._post = self._delete = 0

    def note(self, batch_s: float, commit_s: float, records: int) -> None:
        """Note a batch whose commands have just been counted; `records` is 0 if none was logged."""
        place = bisect_left(DURATIONS_S, batch_s)
        batches = self.batch_s
        batches.counts[place] += 1
        batches.total += batch_s
        if records:
            self.commit_s.observe(commit_s)
            sizes = self.records
            # Their bounds are powers of two.
            sizes.counts[(records - 1).bit_length()] += 1
            sizes.total += records
        put, create, update, swap, post, delete, compare = self._written
        if new := put[0] + create[0] + update[0] + swap[0] - self._put:
            self._put += new
            self._put_s.counts[place] += new
            self._put_s.total += batch_s * new
        if new := post[0] - self._post:
            self._post += new
            self._post_s.counts[place] += new
            self._post_s.total += batch_s * new
        if new := delete[0] + compare[0] - self._delete:
            self._delete += new
            self._delete_s.counts[place] += new
            self._delete_s.total += batch_s * new

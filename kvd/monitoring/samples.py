"""The last quarter of an hour in figures, one sample every two seconds, for the page `/ui`.

The plots of the page are full when it opens, and many open pages cost no more than one. Rates and
quantiles are those of the time since the sample before alone. Sizes of files come from a thread,
which looks every ten seconds.
"""

from __future__ import annotations

import asyncio
import resource
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from kvd.core.histogram import DURATIONS_S
from kvd.monitoring.disk_usage import DiskMeter, DiskUsage, measure
from kvd.monitoring.prometheus import Parts

EVERY_S = 2.0
KEPT = 450
_DISK_EVERY_S = 10.0
FIELDS = (
    *("t", "index", "reads", "writes", "fsync50", "fsync99", "watchers", "connections", "rss"),
    *("log", "indexBytes", "snapshot", "free", "snapshotAge", "stall"),
)
"""What a sample consists of: the time in seconds since the epoch, the etcd index, operations and
commands per second, quantiles of the syncs in seconds, counts, bytes, seconds."""

Sample = tuple[float | None, ...]


class Samples:
    """Samples of a server that serves.

    Attributes:
        kept: The samples, oldest first.
        parts: What is sampled.
    """

    def __init__(self, parts: Parts) -> None:
        self.kept: deque[Sample] = deque(maxlen=KEPT)
        self.parts = parts
        self._disk = DiskMeter(partial(measure, parts.store))
        self._usage: DiskUsage | None = None
        self._usage_s = float("-inf")
        self._measuring: asyncio.Task[None] | None = None
        self._before = self._counts()
        self._began_s = self._at_s = asyncio.get_running_loop().time()

    @property
    def now_s(self) -> float:
        """Seconds since the epoch, as the store counts them."""
        parts = self.parts
        return (parts.clock.now_ns() + parts.store.applied.clock_offset_ns) / 1e9

    @property
    def uptime_s(self) -> float:
        """Seconds since the store was recovered."""
        return asyncio.get_running_loop().time() - self._began_s

    def tick(self) -> None:
        """Take a sample if one is due; called every second."""
        now = asyncio.get_running_loop().time()
        # A tick that is a little early is not skipped.
        if now - self._at_s < EVERY_S - 0.5:
            return
        self.kept.append(self._sample(now - self._at_s))
        self._at_s = now
        if now - max(self._usage_s, self._began_s) >= _DISK_EVERY_S and self._measuring is None:
            self._measuring = asyncio.ensure_future(self.measure_disk())

    def stop(self) -> None:
        """Measure nothing any more."""
        if self._measuring is not None:
            self._measuring.cancel()

    async def measure_disk(self) -> None:
        """Look up the sizes of the files, unless that was done lately."""
        now = asyncio.get_running_loop().time()
        if now - self._usage_s < _DISK_EVERY_S:
            return
        try:
            # A disk that does not say leaves what it said before.
            with suppress(OSError):
                await self._disk.refresh()
                self._usage = self._disk.last
            self._usage_s = now
        finally:
            self._measuring = None

    def since(self, time_s: float) -> list[Sample]:
        """Return the samples that are younger than a time."""
        return [sample for sample in self.kept if (sample[0] or 0.0) > time_s]

    def latest(self) -> Sample:
        """Return the figures of this moment; rates are those since the last sample."""
        elapsed_s = asyncio.get_running_loop().time() - self._at_s
        before = self._before
        sample = self._sample(max(elapsed_s, 0.001))
        self._before = before
        return sample

    def _counts(self) -> tuple[int, int, list[int]]:
        stats, syncs = self.parts.stats, self.parts.syncs
        received = stats.received()
        reads = received["GET"] + received["HEAD"]
        syncs.cumulative()  # counts what was noted, too
        return reads, sum(received.values()) - reads, list(syncs.counts)

    def _sample(self, elapsed_s: float) -> Sample:
        parts, disk = self.parts, self._usage
        reads, writes, syncs = self._counts()
        reads_before, writes_before, syncs_before = self._before
        self._before = reads, writes, syncs
        fresh = [now - then for now, then in zip(syncs, syncs_before, strict=True)]
        age_s = None
        if disk is not None and disk.snapshot_ns is not None:
            age_s = round(max(0.0, self.now_s - disk.snapshot_ns / 1e9), 1)
        return (
            round(self.now_s, 3),
            parts.store.applied.index,
            round((reads - reads_before) / elapsed_s, 1),
            round((writes - writes_before) / elapsed_s, 1),
            _quantile(fresh, 0.5),
            _quantile(fresh, 0.99),
            parts.hub.waiting,
            len(parts.http.connections),
            _resident_bytes(),
            None if disk is None else disk.log,
            None if disk is None else disk.index_allocated,
            None if disk is None else disk.snapshots,
            None if disk is None else disk.free,
            age_s,
            round(parts.stall_s(), 6),
        )


def _quantile(counts: Sequence[int], share: float) -> float | None:
    """Return the value that a share of some values does not exceed, by the counts in buckets.

    Within its bucket a value may be anywhere: it is taken to lie where an even spread has it. The
    last bucket has no end; there its beginning is taken. None: there are no values.
    """
    total = sum(counts)
    rank = share * total
    below = 0
    for place, count in enumerate(counts):
        if count and below + count >= rank:
            low: float = DURATIONS_S[place - 1] if place else 0.0
            high: float = DURATIONS_S[min(place, len(DURATIONS_S) - 1)]
            return round(low + (high - low) * (rank - below) / count, 7)
        below += count
    return None


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

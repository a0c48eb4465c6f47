"""In-memory index of recent events, so that a resuming watch skips those of other keys.

A long poll resumes after each event, from the index behind it. In between thousands of events of
other keys may have happened, and to read one from history costs five microseconds; each of
thousands of watches would read all of them.

Two generations of events are kept. When the younger is full it replaces the elder, which is
discarded as a whole.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections import defaultdict

from kvd.storage.format.records import REMOVALS, Change
from kvd.v2.paths import is_below

# Watches that resume late, because the server is busy, must not cost it more for that: with a
# history (`--event-history-limit`) much longer than this, each of them reads it from the index.
GENERATION_MAX = 16_384
# Total length of the keys of a generation.
_KEY_BYTES_MAX = 2 << 20
# With more directories a search would take more than a fraction of a millisecond.
_DIRECTORIES_MAX = 1000


class _Generation:
    """Indexes of events, ascending: by key, by the key's directory; and directories removed."""

    __slots__ = ("begins", "by_directory", "by_key", "count", "key_bytes", "removals")

    def __init__(self, begins: int) -> None:
        self.begins = begins
        self.by_key: defaultdict[bytes, list[int]] = defaultdict(list)
        self.by_directory: defaultdict[bytes, list[int]] = defaultdict(list)
        self.removals: list[tuple[int, bytes]] = []
        self.count = 0
        self.key_bytes = 0

    def first(self, index: int, key: bytes, *, recursive: bool) -> int | None:
        """Return the index of the first event, not before an index, that is for a watcher.

        Or an earlier one, where there are so many directories that to look at them takes long.
        """
        lists = [self.by_key.get(key, [])]
        if recursive:
            if len(self.by_directory) > _DIRECTORIES_MAX:
                return max(index, self.begins)
            below = key.rstrip(b"/") + b"/"
            lists += [
                indexes
                for directory, indexes in self.by_directory.items()
                if (directory + b"/").startswith(below)
            ]
        found = [
            indexes[bisect_left(indexes, index)]
            for indexes in lists
            if indexes and indexes[-1] >= index
        ]
        found += [at for at, removed in self.removals if at >= index and is_below(key, removed)]
        return min(found, default=None)


class RecentEvents:
    """Index of the last events of a store."""

    def __init__(self, generation_max: int = GENERATION_MAX) -> None:
        self._generation_max = generation_max
        self._elder = self._younger = _Generation(sys.maxsize)

    def begin(self, index: int) -> None:
        """Start recording at an index; refreshes, which match no watch, are not recorded."""
        self._elder = self._younger = _Generation(index)

    def add(self, change: Change) -> None:
        """Record an event."""
        index, key = change.index, change.key
        generation = self._younger
        if generation.count >= self._generation_max or generation.key_bytes > _KEY_BYTES_MAX:
            self._elder, self._younger = generation, _Generation(index)
            generation = self._younger
        generation.count += 1
        generation.key_bytes += len(key)
        generation.by_key[key].append(index)
        generation.by_directory[key.rpartition(b"/")[0]].append(index)
        if change.dir and change.kind in REMOVALS:
            generation.removals.append((index, key))

    def next_index(self, index: int, key: bytes, *, recursive: bool) -> int | None:
        """Return the index of the first event, not before an index, for a watcher of a key.

        By the rules of history: hidden names are not looked at, and the removal of a directory is
        for every key below it.

        Returns:
            A number beyond every index if there is none yet; None if the index is too old.
        """
        if index < self._elder.begins:
            return None
        first = self._elder.first(index, key, recursive=recursive)
        if first is None and self._younger is not self._elder:
            first = self._younger.first(index, key, recursive=recursive)
        return sys.maxsize if first is None else first

"""Proof that the events of an index follow one another without a gap, up to the newest one."""

from __future__ import annotations

from kvd.storage.format.applied import Applied
from kvd.storage.format.event import MARK_KEY, event_key, named_by
from kvd.storage.format.node import CorruptIndex

# An event of index 1 does not exist: that is the empty store's.
_FIRST_EVENT = 2


class EventRows:
    """The rows of the history, in order: its events, and before them what these name."""

    def __init__(self, applied: Applied) -> None:
        self._expected = range(max(applied.oldest_event, _FIRST_EVENT), applied.index + 1)
        self._first = event_key(self._expected.start)
        self._events: list[bytes] = []
        self._before: set[bytes] = set()
        self._named: set[bytes] = set()

    def add(self, key: bytes, row: bytes | memoryview) -> bool:
        """Take a row; return whether it is an event of the history, not one kept for another."""
        if key < self._first:
            if key != MARK_KEY:
                self._before.add(key)
            return False
        self._events.append(key)
        index = named_by(row)
        if index and (named := event_key(index)) < self._first:
            self._named.add(named)
        return True

    def compare(self) -> None:
        """Compare them with those that there must be.

        Raises:
            CorruptIndex: they are others.
        """
        found, expected = self._events, self._expected
        if len(found) != len(expected) or found != list(map(event_key, expected)):
            raise CorruptIndex(
                f"the history has {len(found)} events, expected {len(expected)}, "
                f"{expected.start} to {expected.stop - 1}"
            )
        if self._before != self._named:
            raise CorruptIndex(
                f"the history keeps {len(self._before)} rows that its events name, expected "
                f"{len(self._named)}"
            )

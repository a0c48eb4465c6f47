"""Watched paths below removed directories: their watches get an event, if a node was there."""

from __future__ import annotations

from kvd.core.watch.hub import Hub
from kvd.storage.format.event import Event
from kvd.storage.format.records import REMOVALS, Change
from kvd.storage.index.pending import Pending
from kvd.storage.index.state import State
from kvd.v2.paths import is_below


class Removals:
    """The watched paths that the removals of one batch take along.

    Attributes:
        found: By the index of each removal, the watched paths that led to a node.
    """

    def __init__(self, pending: Pending, hub: Hub) -> None:
        self.found: dict[int, list[bytes]] = {}
        self._pending = pending
        self._hub = hub
        self._checked: dict[int, set[bytes]] = {}

    def note(self, change: Change) -> None:
        """Look up the watched paths below a directory, before it is removed."""
        paths = self._hub.removable(change.key)
        self.found[change.index] = [path for path in paths if self._pending.find(path) is not None]
        self._checked[change.index] = set(paths)

    def note_late(self, state: State) -> None:
        """Add the paths that are watched only since the removal was decided.

        Args:
            state: the committed state before the batch.
        """
        events = [event for event, _ in self._pending.events]
        for place, event in enumerate(events):
            index = event.change.index
            checked = self._checked.get(index)
            if checked is not None:
                late = [p for p in self._hub.removable(event.change.key) if p not in checked]
                self.found[index] += [p for p in late if _existed(state, p, events[:place])]
                checked.update(late)


def _existed(state: State, path: bytes, events: list[Event]) -> bool:
    """Return whether a path led to a node after some events on a state."""
    existed = state.find(path) is not None
    for event in events:
        key = event.change.key
        if event.change.kind in REMOVALS:
            existed = existed and key != path and not is_below(path, key)
        else:
            existed = existed or key == path or is_below(key, path)
    return existed

"""Registered watchers, by the path that they watch.

An event on key K is for a watcher on path W when

    W is K; or
    W is recursive, K lies below it, and no component of K behind W begins with `_`; or
    the event removes K, and W existed below it (whatever its names): it receives the event of K.

Sections 8.3 and 8.4 of the recorded behaviour; the real server's match of a mere string prefix
(`/pd` for `/pdx`) is not copied.

The watchers of one path that receive the same events are a group: ten thousand of them are matched
in one step. A long poll leaves its group with its event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Protocol

from kvd.storage.format.event import Event
from kvd.v2.commands import Watch

# So many may have left a group whose order still has them.
_LEFT_MAX = 16


class WatchSink(Protocol):
    """Sink of the events of one watcher: its connection."""

    def begin(self, index: int) -> None:
        """Send the head of the response: the watch began at this etcd index."""

    def deliver(self, body: bytes) -> None:
        """Send one event; a stream goes on, any other watch ends with it."""

    def deliver_large(self, event: Event) -> None:
        """Send one event whose values are large, as `deliver` does."""

    def ready(self, resume: Callable[[], object]) -> bool:
        """Return whether it can take more; if not, `resume` is called once it can."""

    def has_room(self, event: Event, resume: Callable[[], object]) -> bool:
        """Return whether there is memory for such an event; if not, `resume` is called later."""

    def close(self) -> None:
        """End a stream that cannot go on: too slow, or its history is gone."""

    def end(self) -> None:
        """End the watch without a (further) event: the server stops."""


class Filter(Protocol):
    """Filter of the events of a watcher: `kvd.v2.extras.watch.Filter`."""

    @property
    def hidden(self) -> bool:
        """Whether events below hidden names pass."""

    @property
    def refreshes(self) -> bool:
        """Whether refreshes pass."""

    def passes(self, event: Event) -> bool:
        """Return whether an event that concerns the watcher's key is for it."""


class Watcher:
    """One watch.

    Attributes:
        next_index: The lowest index that it may receive, as long as it is not registered.
        was_live: Whether it was live before it fell behind.
        rights: Rights that it began with; None where authentication was off.
        filter: Selects among the events of its key; None for the usual ones.
    """

    __slots__ = (
        *("filter", "key", "next_index", "recursive", "rights", "sink", "stream", "was_live"),
    )

    def __init__(
        self, watch: Watch, sink: WatchSink, next_index: int, filter_: Filter | None = None
    ) -> None:
        self.key = watch.key
        self.recursive = watch.recursive
        self.stream = watch.stream
        self.sink = sink
        self.next_index = next_index
        self.was_live = False
        self.rights: object = None
        self.filter = filter_


class _Group:
    """Watchers of a path, all recursive or none of them.

    Attributes:
        polls: Watchers that receive the next event.
        streams: Watchers that receive every event.
        later: Watchers that wait for a later index.
    """

    __slots__ = ("_listed", "_order", "_place", "later", "polls", "streams")

    def __init__(self) -> None:
        self.polls: dict[Watcher, None] = {}
        self.streams: dict[Watcher, None] = {}
        self.later: dict[Watcher, None] = {}
        # Those by index, so that an event looks at no more of them than it is for; and some that
        # have left meanwhile.
        self._order: list[tuple[int, int, Watcher]] = []
        self._place = count()
        self._listed: list[Watcher] = []

    def __len__(self) -> int:
        return len(self.polls) + len(self.streams) + len(self.later)

    def __iter__(self) -> Iterator[Watcher]:
        yield from self.polls
        yield from self.streams
        yield from self.later

    def add(self, watcher: Watcher, *, now: bool) -> None:
        """Add a watcher that receives every event from now on, or waits for its index."""
        if not now:
            self.later[watcher] = None
            heappush(self._order, (watcher.next_index, next(self._place), watcher))
        elif watcher.stream or watcher.filter is not None:
            # A long poll with a filter leaves only with an event that passes.
            self.streams[watcher] = None
            self._listed = []
        else:
            self.polls[watcher] = None

    def discard(self, watcher: Watcher) -> bool:
        """Remove a watcher; return whether it was there."""
        for watchers in (self.polls, self.streams, self.later):
            if watcher in watchers:
                del watchers[watcher]
                if watchers is self.streams:
                    self._listed = []
                elif watchers is self.later:
                    self._tidy()
                return True
        return False

    def _tidy(self) -> None:
        """Drop from the order those that have left, once they are most of it."""
        if len(self._order) > 2 * len(self.later) + _LEFT_MAX:
            self._order = [entry for entry in self._order if entry[2] in self.later]
            heapify(self._order)

    def take(self, index: int) -> list[list[Watcher]]:
        """Return the watchers that receive an event; long polls leave with it.

        The streams are the same list as for the event before, unless that group has changed.
        """
        while self._order and self._order[0][0] <= index:
            watcher = heappop(self._order)[2]
            if watcher in self.later:
                del self.later[watcher]
                self.add(watcher, now=True)
        matching = []
        if self.polls:
            matching.append(list(self.polls))
            self.polls = {}
        if self.streams:
            self._listed = self._listed or list(self.streams)
            matching.append(self._listed)
        return matching


class Watchers:
    """All registered watchers of one kind.

    Attributes:
        count: Their number.
    """

    def __init__(self, *, hidden: bool = False) -> None:
        """With `hidden` events below hidden names are for them, too."""
        self.count = 0
        self._hidden = hidden
        self._exact: dict[bytes, _Group] = {}
        self._recursive: dict[bytes, _Group] = {}

    def __iter__(self) -> Iterator[Watcher]:
        for groups in (self._exact, self._recursive):
            for group in groups.values():
                yield from group

    def count_of(self, key: bytes) -> int:
        """Return how many watch a key."""
        return sum(len(groups.get(key, ())) for groups in (self._exact, self._recursive))

    def below(self, key: bytes) -> list[bytes]:
        """Return the watched paths below a directory."""
        prefix = key + b"/"
        paths = [path for path in self._exact if path.startswith(prefix)]
        paths += [
            path for path in self._recursive if path.startswith(prefix) and path not in self._exact
        ]
        return paths

    def register(self, watcher: Watcher, following: int) -> None:
        """Add a watcher; `following` is the index of the next event that will come."""
        groups = self._groups(watcher)
        group = groups.get(watcher.key)
        if group is None:
            group = groups[watcher.key] = _Group()
        group.add(watcher, now=watcher.next_index <= following)
        self.count += 1

    def unregister(self, watcher: Watcher) -> None:
        """Remove a watcher, if it is registered."""
        groups = self._groups(watcher)
        group = groups.get(watcher.key)
        if group is not None and group.discard(watcher):
            self.count -= 1
            if not group:
                del groups[watcher.key]

    def matching(self, key: bytes, index: int, removed: list[bytes]) -> list[list[Watcher]]:
        """Return the watchers of an event, in groups; see `_Group.take`.

        Args:
            key: the key of the event.
            index: its index.
            removed: the watched paths that it has removed below the key.
        """
        exact, recursive = self._exact, self._recursive
        matching: list[list[Watcher]] = []
        for path in (*removed, key):
            if path in exact:
                matching += self._take(exact, path, index)
            if path in recursive:
                matching += self._take(recursive, path, index)
        path = key
        while recursive and path != b"/":
            parent, _, name = path.rpartition(b"/")
            if name.startswith(b"_") and not self._hidden:
                break
            path = parent or b"/"
            if path in recursive:
                matching += self._take(recursive, path, index)
        return matching

    def _groups(self, watcher: Watcher) -> dict[bytes, _Group]:
        return self._recursive if watcher.recursive else self._exact

    def _take(self, groups: dict[bytes, _Group], path: bytes, index: int) -> list[list[Watcher]]:
        group = groups[path]
        before = len(group)
        matching = group.take(index)
        left = len(group)
        self.count += left - before
        if not left:
            del groups[path]
        return matching

"""Replays: watches that read their events from history before they are live.

Invariants:

- History is read in slices of some milliseconds, no faster than the client reads; the last slice
  and the registration as a live watch are one step without a pause, so no event is missed between.
- A replay whose next event has been trimmed from history is closed: a gap must not go unseen.

In history the hidden names are not looked at, and a removal of K is for every W below it: what
existed then is not known any more. A refresh is for no watch without a filter.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

from kvd.core.watch.recent_events import RecentEvents
from kvd.core.watch.watchers import Watcher, WatchSink
from kvd.storage.format.event import Event
from kvd.storage.format.records import REMOVALS, Change
from kvd.storage.store import Store
from kvd.v2.paths import is_below
from kvd.v2.response import event_body

# How long one turn of the loop may read history.
_SLICE_S = 0.005
# A watch that reads history for longer than this when it begins makes the next ones wait.
_SHORT_SLICE_S = 0.001

FIRST_INDEX = 2
"""The first index that an event can have; see `Applied.index`."""


class Replays:
    """All watches that read history, in turns.

    Attributes:
        running: The generator of each; a dict, because it keeps order and forgets in one step.
    """

    def __init__(
        self,
        store: Store,
        loop: asyncio.AbstractEventLoop,
        recent: RecentEvents,
        register: Callable[[Watcher, int], None],
    ) -> None:
        """With `register` a watch becomes live; it gets the index of the next event."""
        self.running: dict[Watcher, Iterator[bool]] = {}
        self._store = store
        self._loop = loop
        self._recent = recent
        self._register = register
        self._due: deque[Watcher] = deque()
        self._is_reading = False
        self._read_until = 0.0

    def begin(self, watcher: Watcher) -> None:
        """Begin a replay; run its first slice at once, unless other replays are due already."""
        self.add(watcher)
        if self._is_reading:
            self._due.append(watcher)
            return
        began = time.monotonic()
        self._read_until = began + _SLICE_S
        self._continue(watcher)
        if time.monotonic() - began > _SHORT_SLICE_S:
            self._read_soon()

    def add(self, watcher: Watcher) -> None:
        """Add a replay, which waits for `go_on`."""
        self.running[watcher] = self._replay(watcher)

    def forget(self, watcher: Watcher) -> None:
        """End a replay, if it runs."""
        self.running.pop(watcher, None)

    def go_on(self, watcher: Watcher) -> None:
        """Run the next slice of a replay in its turn."""
        self._due.append(watcher)
        self._read_soon()

    def skip(self, watcher: Watcher, last_index: int) -> None:
        """Move a watcher past the recent events that are known not to be for it."""
        if watcher.filter is not None and watcher.filter.refreshes:
            return  # refreshes are not among the recent events
        following = self._recent.next_index(
            watcher.next_index, watcher.key, recursive=watcher.recursive
        )
        if following is not None:
            watcher.next_index = min(following, last_index + 1)

    def _read_soon(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        """Continue replays, for some milliseconds in all."""
        self._is_reading = False
        self._read_until = time.monotonic() + _SLICE_S
        try:
            for _ in range(len(self._due)):
                self._continue(self._due.popleft())
                if time.monotonic() > self._read_until:
                    break
        finally:
            if self._due:
                self._read_soon()

    def _continue(self, watcher: Watcher) -> None:
        """Run one slice of a replay, and schedule the next."""
        slices = self.running.get(watcher)
        if slices is not None:
            try:
                waits = next(slices, False)
            except BaseException:
                del self.running[watcher]
                watcher.sink.close()
                raise
            if not waits and watcher in self.running and self._ready(watcher):
                self.go_on(watcher)

    def _ready(self, watcher: Watcher) -> bool:
        """Return whether a replay can continue; if not, it resumes once the client has read."""
        return watcher.sink.ready(partial(self.go_on, watcher))

    def _has_room(self, watcher: Watcher, event: Event) -> bool:
        """Return whether there is memory for an event; if not, the replay resumes once there is."""
        return watcher.sink.has_room(event, partial(self._resume, watcher))

    def _body(self, event: Event) -> bytes | None:
        return event_body(event, self._store.applied.clock_offset_ns)

    def _resume(self, watcher: Watcher) -> None:
        self._read_until = time.monotonic() + _SLICE_S
        self._continue(watcher)

    def _replay(self, watcher: Watcher) -> Iterator[bool]:
        """Deliver the matching events of history, pausing between slices; register at the end.

        A pause is True where it lasts until there is memory for the next event.
        """
        while True:
            waits = False
            applied = self._store.applied
            if watcher.next_index < applied.oldest_event > FIRST_INDEX:
                # History was trimmed past a slow reader: close it, so that no gap goes unseen.
                del self.running[watcher]
                watcher.sink.close()
                return
            if watcher.next_index <= applied.index:
                self.skip(watcher, applied.index)
            for event in self._store.view.events(watcher.next_index):
                if matches_history(event, watcher):
                    body = (self._body(event) if watcher.filter is None else None) or event
                    if isinstance(body, Event) and not self._has_room(watcher, body):
                        waits = True
                        break
                    if not watcher.stream:
                        del self.running[watcher]
                        _deliver(watcher.sink, body)
                        return
                    watcher.next_index = event.change.index + 1
                    _deliver(watcher.sink, body)
                    if not self._ready(watcher):
                        break
                watcher.next_index = event.change.index + 1
                if time.monotonic() > self._read_until:
                    break
            else:
                watcher.next_index = max(watcher.next_index, applied.index + 1)
                del self.running[watcher]
                self._register(watcher, applied.index + 1)
                return
            yield waits


def _deliver(sink: WatchSink, event: bytes | Event) -> None:
    if isinstance(event, bytes):
        sink.deliver(event)
    else:
        sink.deliver_large(event)


def matches_history(event: Event, watcher: Watcher) -> bool:
    """Return whether an event of history is for a watcher."""
    filter_ = watcher.filter
    if filter_ is None:
        return not event.change.refresh and _concerns(event.change, watcher, hidden=False)
    return _concerns(event.change, watcher, hidden=filter_.hidden) and filter_.passes(event)


def _concerns(change: Change, watcher: Watcher, *, hidden: bool) -> bool:
    if change.key == watcher.key:
        return True
    if watcher.recursive and is_below(change.key, watcher.key):
        return hidden or not (watcher.was_live and _is_hidden(change.key, watcher.key))
    return change.kind in REMOVALS and change.dir and is_below(watcher.key, change.key)


def _is_hidden(path: bytes, ancestor: bytes) -> bool:
    """Return whether a component of a path behind its ancestor is hidden."""
    return b"/_" in path[len(ancestor.rstrip(b"/")) :]

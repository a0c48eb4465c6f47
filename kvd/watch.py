"""Who waits for what: matching events to watchers, live and from history, and telling them.

Invariants:

- Events are matched in the step that commits them, and told in later turns of the loop, some
  hundreds at a time, in order: nobody else waits while 10,000 watchers are told.
- A watcher carries the next index it may see (`next_index`), so nothing is told twice, and what
  it registers too late to find in history it gets live.
- History is read in slices, no faster than the client reads; the last slice and the registration
  are one step without a pause.

An event on key K is for a watcher on path W (live) when its index is not below `next_index` and

    W is K; or
    W is recursive, K lies below it, and no component of K behind W begins with `_`; or
    the event removes K, and W existed below it (whatever its names): it is told the event of K.

In history the hidden names are not looked at, and a removal of K is for every W below it: what
existed then is not known any more. A refresh is for nobody. Sections 8.3 and 8.4 of the recorded
behaviour; the real server's match of a mere string prefix (`/pd` for `/pdx`) is not copied.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol

from kvd.commands import Watch
from kvd.errors import EVENT_INDEX_CLEARED, ApiError
from kvd.recent import Recent, is_below
from kvd.response import event_body
from storage.change import REMOVALS
from storage.event import Event
from storage.store import Store

log = logging.getLogger(__name__)

# How many watchers are told in one turn of the loop, and how long a turn may read history.
_TOLD_PER_TURN = 256
# To tell what is longer by this counts as telling one more.
_LONG_BYTES = 16 << 10
_SLICE_S = 0.005

# The first index that an event can have; see `Applied.index`.
_FIRST_INDEX = 2


class Listener(Protocol):
    """Where the events of one watcher go: its connection."""

    def begin(self, index: int) -> None:
        """Send the head of the answer: the watch began at this etcd index."""

    def tell(self, body: bytes) -> None:
        """Send one event; a stream goes on, any other watch ends with it."""

    def tell_large(self, event: Event) -> None:
        """Send one event whose values are large, as `tell` does."""

    def ready(self, resume: Callable[[], object]) -> bool:
        """Return whether it can be told more; if not, `resume` is called once it can."""

    def has_room(self, event: Event, resume: Callable[[], object]) -> bool:
        """Return whether there is memory for such an event; if not, `resume` is called later."""

    def close(self) -> None:
        """End a stream that cannot go on: too slow, or its history is gone."""

    def end(self) -> None:
        """End the watch without a (further) event: the server stops."""


class Watcher:
    """One watch. `next_index` is the lowest index that it may still be told.

    `rights` are those that it began with; None where users were not asked for.
    """

    __slots__ = ("key", "listener", "next_index", "recursive", "rights", "stream")

    def __init__(self, watch: Watch, listener: Listener, next_index: int) -> None:
        self.key = watch.key
        self.recursive = watch.recursive
        self.stream = watch.stream
        self.listener = listener
        self.next_index = next_index
        self.rights: object = None


class Hub:
    """All watchers of a store."""

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._loop = loop
        self._by_path: dict[bytes, dict[Watcher, None]] = {}
        # Those that read history in turns; a dict, because it keeps order and forgets in one step.
        self._replaying: dict[Watcher, Iterator[bool]] = {}
        self._to_tell: deque[tuple[Iterator[Watcher], bytes, Event | None]] = deque()
        self._telling = False
        self._recent = Recent()
        self.count = 0
        """Registered watchers: the gauge of the statistics."""
        self.requests = 0
        """How many watches were asked for."""

    @property
    def waiting(self) -> int:
        """How many watches are open, registered or still reading history."""
        return self.count + len(self._replaying)

    def count_of(self, key: bytes) -> int:
        """Return how many watchers of a key are registered."""
        return len(self._by_path.get(key, ()))

    def watch(self, watch: Watch, listener: Listener) -> Watcher:
        """Start a watch: from history as far as that goes, then live.

        Raises:
            ApiError: 401, the history from `wait_index` on has been cleared.
        """
        self.requests += 1
        applied = self._store.applied
        wanted = watch.wait_index
        # Nothing has been dropped while the history still begins with the first event of all.
        if 0 < wanted < applied.oldest_event and applied.oldest_event > _FIRST_INDEX:
            cause = b"the requested history has been cleared [%d/%d]"
            raise ApiError(
                EVENT_INDEX_CLEARED, cause % (applied.oldest_event, wanted), applied.index
            )
        watcher = Watcher(watch, listener, wanted or applied.index + 1)
        listener.begin(applied.index)
        if self.requests == 1:
            self._recent.begin(applied.index + 1)
        if watcher.next_index <= applied.index:
            self._skip(watcher, applied.index)
        if watcher.next_index > applied.index:
            self._register(watcher)
        else:
            self._replaying[watcher] = self._replay(watcher)
            self._continue(watcher)
        return watcher

    def forget(self, watcher: Watcher) -> None:
        """Drop a watch whose client has gone; it may have ended already."""
        self._replaying.pop(watcher, None)
        self._unregister(watcher)

    def removable(self, key: bytes) -> list[bytes]:
        """Return the watched paths below a directory that is about to be removed."""
        prefix = key + b"/"
        return [path for path in self._by_path if path.startswith(prefix)]

    def publish(self, events: Iterable[tuple[Event, list[bytes]]]) -> None:
        """Match committed events, each with the watched paths that it removed below its key."""
        if not self.requests:
            return
        for event, removed in events:
            if not event.change.refresh:
                self._recent.add(event.change)
                if self._by_path and (watchers := self._matching(event, removed)):
                    body = self._body(event)
                    large = event if body is None else None
                    self._to_tell.append((iter(watchers), body or b"", large))
        if self._to_tell and not self._telling:
            self._telling = True
            self._loop.call_soon(self._tell)

    def end_all(self) -> None:
        """End every watch without an event."""
        while self._to_tell:
            self._tell()
        self.end(lambda _: True)

    def end(self, ends: Callable[[Watcher], bool]) -> None:
        """End some of the watches without an event."""
        paths = list(self._by_path.values())
        for watcher in [*self._replaying, *(w for watchers in paths for w in watchers)]:
            if ends(watcher):
                self.forget(watcher)
                watcher.listener.end()

    def _matching(self, event: Event, removed: list[bytes]) -> list[Watcher]:
        """Return those that an event is for, unregistered already if they are told but once."""
        index, key = event.change.index, event.change.key
        matching = [w for path in removed for w in self._by_path.get(path, ())]
        matching += self._by_path.get(key, ())
        path = key
        while path != b"/":
            parent, _, name = path.rpartition(b"/")
            if name.startswith(b"_"):
                break
            path = parent or b"/"
            matching += [w for w in self._by_path.get(path, ()) if w.recursive]
        matching = [w for w in matching if index >= w.next_index]
        for watcher in matching:
            watcher.next_index = index + 1
            if not watcher.stream:
                self._unregister(watcher)
        return matching

    def _body(self, event: Event) -> bytes | None:
        return event_body(event, self._store.applied.clock_offset_ns)

    def _tell(self) -> None:
        told = 0
        while self._to_tell and told < _TOLD_PER_TURN:
            watchers, body, large = self._to_tell[0]
            # What is large is not copied for each of them.
            weight = 1 + len(body) // _LONG_BYTES
            for watcher in watchers:
                if large is None:
                    watcher.listener.tell(body)
                else:
                    watcher.listener.tell_large(large)
                told += weight
                if told >= _TOLD_PER_TURN:
                    break
            else:
                self._to_tell.popleft()
        self._telling = bool(self._to_tell)
        if self._telling:
            self._loop.call_soon(self._tell)

    def _register(self, watcher: Watcher) -> None:
        self._by_path.setdefault(watcher.key, {})[watcher] = None
        self.count += 1

    def _unregister(self, watcher: Watcher) -> None:
        watchers = self._by_path.get(watcher.key)
        if watchers is None or watcher not in watchers:
            return
        del watchers[watcher]
        self.count -= 1
        if not watchers:
            del self._by_path[watcher.key]

    def _continue(self, watcher: Watcher) -> None:
        """Run one slice of a replay, and see to the next."""
        slices = self._replaying.get(watcher)
        if slices is not None:
            waits = next(slices, False)
            if not waits and watcher in self._replaying and self._ready(watcher):
                self._loop.call_soon(self._continue, watcher)

    def _skip(self, watcher: Watcher, last_index: int) -> None:
        """Move a watcher on past the events that are known not to be for it."""
        following = self._recent.following(
            watcher.next_index, watcher.key, recursive=watcher.recursive
        )
        if following is not None:
            watcher.next_index = min(following, last_index + 1)

    def _ready(self, watcher: Watcher) -> bool:
        """Return whether a replay can go on; if not, it will by itself once the client has read."""
        return watcher.listener.ready(partial(self._loop.call_soon, self._continue, watcher))

    def _has_room(self, watcher: Watcher, event: Event) -> bool:
        """Return whether there is memory for an event; if not, the replay goes on once there is."""
        return watcher.listener.has_room(event, partial(self._continue, watcher))

    def _replay(self, watcher: Watcher) -> Iterator[bool]:
        """Tell what matches from history, pausing between slices; register at its end.

        A pause is True where it lasts until there is memory for the next event.
        """
        while True:
            until = time.monotonic() + _SLICE_S
            waits = False
            applied = self._store.applied
            if watcher.next_index < applied.oldest_event > _FIRST_INDEX:
                # Trimmed past a reader that was too slow: a gap must not go unseen.
                del self._replaying[watcher]
                watcher.listener.close()
                return
            if watcher.next_index <= applied.index:
                self._skip(watcher, applied.index)
            for event in self._store.view.events(watcher.next_index):
                if _matches_history(event, watcher):
                    body = self._body(event) or event
                    if isinstance(body, Event) and not self._has_room(watcher, body):
                        waits = True
                        break
                    if not watcher.stream:
                        del self._replaying[watcher]
                        _tell(watcher.listener, body)
                        return
                    watcher.next_index = event.change.index + 1
                    _tell(watcher.listener, body)
                    if not self._ready(watcher):
                        break
                watcher.next_index = event.change.index + 1
                if time.monotonic() > until:
                    break
            else:
                watcher.next_index = max(watcher.next_index, applied.index + 1)
                del self._replaying[watcher]
                self._register(watcher)
                return
            yield waits


def _tell(listener: Listener, told: bytes | Event) -> None:
    if isinstance(told, bytes):
        listener.tell(told)
    else:
        listener.tell_large(told)


def _matches_history(event: Event, watcher: Watcher) -> bool:
    change = event.change
    if change.refresh:
        return False
    if change.key == watcher.key:
        return True
    if watcher.recursive and is_below(change.key, watcher.key):
        return True
    return change.kind in REMOVALS and change.dir and is_below(watcher.key, change.key)

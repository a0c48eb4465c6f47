"""Watches: matching events to watchers, live and from history, and telling them.

Invariants:

- Events are matched in the step that commits them, and told in later turns of the loop, some
  hundreds at a time, in order: nobody else waits while 10,000 watchers are told.
- What waits to be told is bounded. Beyond that, those that an event is for read it, and what
  follows, from history, once they have been told what they were told before.
- A watcher that is not registered carries the next index it may see (`next_index`), so nothing is
  told twice, and what it registers too late to find in history it gets live.
- History is read in slices, no faster than the client reads; the last slice and the registration
  are one step without a pause.

Which events are for whom is in `kvd.core.watch.watchers`. In history the hidden names are not
looked at, and a removal of K is for every W below it: what existed then is not known any more. A
refresh is for nobody.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain

from kvd.core.watch.recent_events import Recent
from kvd.core.watch.watchers import Filter, Listener, Watcher, Watchers
from kvd.storage.format.event import Event
from kvd.storage.format.records import REMOVALS, Change
from kvd.storage.store import Store
from kvd.v2.commands import Watch
from kvd.v2.errors import EVENT_INDEX_CLEARED, ApiError
from kvd.v2.paths import is_below
from kvd.v2.response import event_body

log = logging.getLogger(__name__)

# How many watchers are told in one turn of the loop, and how long a turn may read history.
_TOLD_PER_TURN = 256
# To tell what is longer by this counts as telling one more.
_LONG_BYTES = 16 << 10
_SLICE_S = 0.005
# A watch that reads history for longer than this when it begins makes the next ones wait.
_SHORT_SLICE_S = 0.001

BACKLOG_BYTES_MAX = 16 << 20
"""How much may wait to be told, events and lists of watchers: else they read it from history."""
_REFERENCE_BYTES = 8
# An event beside its values.
_EVENT_BYTES = 400

# The first index that an event can have; see `Applied.index`.
_FIRST_INDEX = 2


class _Telling:
    """An event on its way to watchers, or, with neither body nor event, to go on from history.

    Attributes:
        told: How many of them have been told.
        size: What it counts for in the backlog.
    """

    __slots__ = ("body", "event", "size", "told", "watchers")

    def __init__(
        self, watchers: list[Watcher], body: bytes | None, event: Event | None, size: int
    ) -> None:
        self.watchers = watchers
        self.body = body
        self.event = event
        self.size = size
        self.told = 0


class Hub:
    """All watches of a store.

    Attributes:
        tell_all: Tells an event to many watchers.
        requests: How many watches were asked for.
        backlog_bytes: How much waits to be told.
    """

    def __init__(self, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._loop = loop
        self._registered = Watchers()
        # Those with filters; of them those that are told of hidden names are kept apart.
        self._filtered = Watchers(), Watchers(hidden=True)
        # Those that read history in turns; a dict, because it keeps order and forgets in one step.
        self._replaying: dict[Watcher, Iterator[bool]] = {}
        self._due: deque[Watcher] = deque()
        self._is_reading = False
        self._read_until = 0.0
        self._to_tell: deque[_Telling] = deque()
        self.backlog_bytes = 0
        self._telling = False
        self._recent = Recent()
        self.tell_all: Callable[[Sequence[Watcher], bytes], None] = _tell_each
        self.requests = 0

    @property
    def count(self) -> int:
        """Registered watchers: the gauge of the statistics."""
        shown, hidden = self._filtered
        return self._registered.count + shown.count + hidden.count

    @property
    def index(self) -> int:
        """The index of the last event."""
        return self._store.applied.index

    @property
    def waiting(self) -> int:
        """How many watches are open, registered or still reading history."""
        # Not by `count`: that is a call for each watch.
        shown, hidden = self._filtered
        return self._registered.count + shown.count + hidden.count + len(self._replaying)

    def count_of(self, key: bytes) -> int:
        """Return how many watchers of a key are registered."""
        return sum(watchers.count_of(key) for watchers in (self._registered, *self._filtered))

    def is_replaying(self, watcher: Watcher) -> bool:
        """Return whether a watch still reads history."""
        return watcher in self._replaying

    def is_behind(self, watcher: Watcher) -> bool:
        """Return whether there may be events for a watch that it has not been told."""
        return watcher in self._replaying or bool(self._to_tell)

    def watch(self, watch: Watch, listener: Listener, filter_: Filter | None = None) -> Watcher:
        """Start a watch: from history as far as that goes, then live.

        With a filter the listener is told of events as of large ones, whatever their size.

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
        watcher = Watcher(watch, listener, wanted or applied.index + 1, filter_)
        listener.begin(applied.index)
        if self.requests == 1:
            self._recent.begin(applied.index + 1)
        if watcher.next_index <= applied.index and not _wants_refreshes(watcher):
            self._skip(watcher, applied.index)
        if watcher.next_index > applied.index:
            watchers = self._registered if filter_ is None else self._watchers(watcher)
            watchers.register(watcher, applied.index + 1)
        else:
            self._replaying[watcher] = self._replay(watcher)
            self._begin_replay(watcher)
        return watcher

    def forget(self, watcher: Watcher) -> None:
        """Drop a watch whose client has gone; it may have ended already."""
        self._replaying.pop(watcher, None)
        self._watchers(watcher).unregister(watcher)

    def removable(self, key: bytes) -> list[bytes]:
        """Return the watched paths below a directory that is about to be removed."""
        kinds = [kind for kind in (self._registered, *self._filtered) if kind.count]
        return list(dict.fromkeys(path for kind in kinds for path in kind.below(key)))

    def publish(self, events: Iterable[tuple[Event, list[bytes]]]) -> None:
        """Match committed events, each with the watched paths that it removed below its key."""
        if not self.requests:
            return
        for event, removed in events:
            change = event.change
            if not change.refresh:
                self._recent.add(change)
                if self._registered.count:
                    matching = self._registered.matching(change.key, change.index, removed)
                    if matching:
                        self._queue(event, self._body(event), matching)
            for watchers in self._filtered:
                if watchers.count:
                    self._publish_filtered(watchers, event, removed)
        if self._to_tell and not self._telling:
            self._telling = True
            self._loop.call_soon(self._tell)

    def _publish_filtered(self, watchers: Watchers, event: Event, removed: list[bytes]) -> None:
        """Match an event to watchers with filters, which are asked when it is their turn.

        Here all of them would be asked in one step, for each event of a batch.
        """
        matching = watchers.matching(event.change.key, event.change.index, removed)
        if matching:
            self._queue(event, None, matching)

    def _watchers(self, watcher: Watcher) -> Watchers:
        """Return where a watcher is registered."""
        filter_ = watcher.filter
        return self._registered if filter_ is None else self._filtered[filter_.hidden]

    def end_all(self) -> None:
        """End every watch without an event."""
        while self._to_tell:
            self._tell()
        self.end(lambda _: True)

    def end(self, ends: Callable[[Watcher], bool]) -> None:
        """End some of the watches without an event."""
        for watcher in [*self._replaying, *self._registered, *chain(*self._filtered)]:
            if ends(watcher):
                self.forget(watcher)
                watcher.listener.end()

    # Live

    def _queue(self, event: Event, body: bytes | None, matching: list[list[Watcher]]) -> None:
        """Let an event be told in the turns to come, or be read from history."""
        rest = len(body) if body is not None else _EVENT_BYTES + _large_bytes(event)
        for watchers in matching:
            last = self._to_tell[-1] if self._to_tell else None
            is_listed = last is not None and watchers is last.watchers
            size = rest + (0 if is_listed else _REFERENCE_BYTES * len(watchers))
            if last is None or self.backlog_bytes + size <= BACKLOG_BYTES_MAX:
                telling = _Telling(watchers, body, event if body is None else None, size)
                rest = 0  # another group is told the same bytes
            else:
                telling = self._defer(event.change.index, watchers)
            self._to_tell.append(telling)
            self.backlog_bytes += telling.size

    def _defer(self, index: int, watchers: list[Watcher]) -> _Telling:
        """Let watchers read from history, from an event on, once they have been told the others."""
        for watcher in watchers:
            self._watchers(watcher).unregister(watcher)
            watcher.next_index = index
            watcher.was_live = True
            self._replaying[watcher] = self._replay(watcher)
        return _Telling(watchers, None, None, _REFERENCE_BYTES * len(watchers))

    def _body(self, event: Event) -> bytes | None:
        return event_body(event, self._store.applied.clock_offset_ns)

    def _tell(self) -> None:
        left = _TOLD_PER_TURN
        try:
            while self._to_tell and left > 0:
                telling = self._to_tell[0]
                # What is large is not copied for each of them, unless they see it in other shapes.
                length = len(telling.body or b"")
                if telling.event is not None and telling.watchers[0].filter is not None:
                    length = _large_bytes(telling.event)
                weight = 1 + length // _LONG_BYTES
                first = telling.told
                telling.told += -(-left // weight)
                batch = telling.watchers[first : telling.told]
                if telling.told >= len(telling.watchers):
                    self._to_tell.popleft()
                    self.backlog_bytes -= telling.size
                left -= weight * len(batch)
                self._tell_batch(telling, batch)
        finally:
            self._telling = bool(self._to_tell)
            if self._telling:
                self._loop.call_soon(self._tell)

    def _tell_batch(self, telling: _Telling, batch: list[Watcher]) -> None:
        try:
            if telling.body is not None:
                self.tell_all(batch, telling.body)
            elif telling.event is not None:
                for watcher in batch:
                    if watcher.filter is None or watcher.filter.passes(telling.event):
                        watcher.listener.tell_large(telling.event)
            else:
                for watcher in batch:
                    self._go_on(watcher)
        except BaseException:
            # Some may have been told and others not: a gap must not go unseen.
            for watcher in batch:
                watcher.listener.close()
            raise

    # From history

    def _begin_replay(self, watcher: Watcher) -> None:
        """Run the first slice of a replay at once, unless others read already."""
        if self._is_reading:
            self._due.append(watcher)
            return
        began = time.monotonic()
        self._read_until = began + _SLICE_S
        self._continue(watcher)
        if time.monotonic() - began > _SHORT_SLICE_S:
            self._read_soon()

    def _go_on(self, watcher: Watcher) -> None:
        """Let a replay go on in its turn."""
        self._due.append(watcher)
        self._read_soon()

    def _read_soon(self) -> None:
        if not self._is_reading:
            self._is_reading = True
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        """Go on with replays, for some milliseconds in all."""
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
        """Run one slice of a replay, and see to the next."""
        slices = self._replaying.get(watcher)
        if slices is not None:
            try:
                waits = next(slices, False)
            except BaseException:
                del self._replaying[watcher]
                watcher.listener.close()
                raise
            if not waits and watcher in self._replaying and self._ready(watcher):
                self._go_on(watcher)

    def _skip(self, watcher: Watcher, last_index: int) -> None:
        """Move a watcher on past the events that are known not to be for it."""
        following = self._recent.following(
            watcher.next_index, watcher.key, recursive=watcher.recursive
        )
        if following is not None:
            watcher.next_index = min(following, last_index + 1)

    def _ready(self, watcher: Watcher) -> bool:
        """Return whether a replay can go on; if not, it will by itself once the client has read."""
        return watcher.listener.ready(partial(self._go_on, watcher))

    def _has_room(self, watcher: Watcher, event: Event) -> bool:
        """Return whether there is memory for an event; if not, the replay goes on once there is."""
        return watcher.listener.has_room(event, partial(self._resume, watcher))

    def _resume(self, watcher: Watcher) -> None:
        self._read_until = time.monotonic() + _SLICE_S
        self._continue(watcher)

    def _replay(self, watcher: Watcher) -> Iterator[bool]:
        """Tell what matches from history, pausing between slices; register at its end.

        A pause is True where it lasts until there is memory for the next event.
        """
        while True:
            waits = False
            applied = self._store.applied
            if watcher.next_index < applied.oldest_event > _FIRST_INDEX:
                # Trimmed past a reader that was too slow: a gap must not go unseen.
                del self._replaying[watcher]
                watcher.listener.close()
                return
            if watcher.next_index <= applied.index and not _wants_refreshes(watcher):
                self._skip(watcher, applied.index)
            for event in self._store.view.events(watcher.next_index):
                if _matches_history(event, watcher):
                    body = (self._body(event) if watcher.filter is None else None) or event
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
                if time.monotonic() > self._read_until:
                    break
            else:
                watcher.next_index = max(watcher.next_index, applied.index + 1)
                del self._replaying[watcher]
                self._watchers(watcher).register(watcher, applied.index + 1)
                return
            yield waits


def _tell_each(watchers: Sequence[Watcher], body: bytes) -> None:
    for watcher in watchers:
        watcher.listener.tell(body)


def _tell(listener: Listener, told: bytes | Event) -> None:
    if isinstance(told, bytes):
        listener.tell(told)
    else:
        listener.tell_large(told)


def _large_bytes(event: Event) -> int:
    """Return what the values of an event take in memory."""
    change, prev, _ = event
    return len(change.value or b"") + len((prev and prev.value) or b"")


def _wants_refreshes(watcher: Watcher) -> bool:
    """Return whether refreshes are for a watcher, which are not among the last events."""
    return watcher.filter is not None and watcher.filter.refreshes


def _matches_history(event: Event, watcher: Watcher) -> bool:
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

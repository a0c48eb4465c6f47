"""Watches: match events to watchers, live and from history, and deliver them.

Invariants:

- Events are matched in the step that commits them, and delivered in order in later turns of the
  loop, some hundreds a turn: no other client waits for 10,000 deliveries.
- The backlog of deliveries is bounded. Beyond the bound, the watchers of an event read it, and the
  following ones, from history, once their earlier events have been delivered.
- A watcher that is not registered carries the next index it may see (`next_index`), so no event
  is delivered twice, and an event that it misses in history is delivered live.

Which live events are for a watcher is decided in `kvd.core.watch.watchers`; events of history are
read in `kvd.core.watch.replay`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import chain

from kvd.core.watch.recent_events import RecentEvents
from kvd.core.watch.replay import FIRST_INDEX, Replays
from kvd.core.watch.watchers import Filter, Watcher, Watchers, WatchSink
from kvd.storage.format.event import Event
from kvd.storage.store import Store
from kvd.v2.commands import Watch
from kvd.v2.errors import EVENT_INDEX_CLEARED, ApiError
from kvd.v2.response import event_body

log = logging.getLogger(__name__)

# Deliveries in one turn of the loop.
_DELIVERIES_PER_TURN = 256
# A longer event counts as one delivery more for each of these.
_LONG_BYTES = 16 << 10

BACKLOG_BYTES_MAX = 16 << 20
"""Limit of the backlog, events and lists of watchers; beyond it watchers read from history."""
_REFERENCE_BYTES = 8
# An event without its values.
_EVENT_BYTES = 400


DeliverAll = Callable[[Sequence[Watcher], bytes], None]
"""Delivers the body of an event to many watchers."""


class _Delivery:
    """A pending delivery of an event; with neither body nor event, of a resumed replay.

    Attributes:
        delivered: Number of watchers that have received it.
        size: Its share of the backlog.
    """

    __slots__ = ("body", "delivered", "event", "size", "watchers")

    def __init__(
        self, watchers: list[Watcher], body: bytes | None, event: Event | None, size: int
    ) -> None:
        self.watchers = watchers
        self.body = body
        self.event = event
        self.size = size
        self.delivered = 0


class Hub:
    """All watches of a store.

    Attributes:
        requests: Number of watches requested since the start.
        backlog_bytes: Size of the pending deliveries.
    """

    def __init__(
        self, store: Store, loop: asyncio.AbstractEventLoop, deliver_all: DeliverAll | None = None
    ) -> None:
        self._store = store
        self._loop = loop
        self._registered = Watchers()
        # Watchers with filters; those that receive events of hidden names are kept apart.
        self._filtered = Watchers(), Watchers(hidden=True)
        self._backlog: deque[_Delivery] = deque()
        self.backlog_bytes = 0
        self._is_delivering = False
        self._recent = RecentEvents()
        self._replays = Replays(store, loop, self._recent, self._register)
        self._deliver_all = deliver_all or _deliver_each
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
        """Number of open watches, registered or still reading history."""
        # Not by `count`: that is a call for each watch.
        shown, hidden = self._filtered
        return self._registered.count + shown.count + hidden.count + len(self._replays.running)

    def count_of(self, key: bytes) -> int:
        """Return how many watchers of a key are registered."""
        return sum(watchers.count_of(key) for watchers in (self._registered, *self._filtered))

    def is_replaying(self, watcher: Watcher) -> bool:
        """Return whether a watch still reads history."""
        return watcher in self._replays.running

    def is_behind(self, watcher: Watcher) -> bool:
        """Return whether there may be events for a watch that are not delivered yet."""
        return watcher in self._replays.running or bool(self._backlog)

    def watch(self, watch: Watch, sink: WatchSink, filter_: Filter | None = None) -> Watcher:
        """Start a watch: from history as far as that goes, then live.

        With a filter the sink receives all events as large ones, whatever their size.

        Raises:
            ApiError: 401, the history from `wait_index` on has been cleared.
        """
        self.requests += 1
        applied = self._store.applied
        wanted = watch.wait_index
        # Nothing has been dropped while the history still begins with the first event of all.
        if 0 < wanted < applied.oldest_event and applied.oldest_event > FIRST_INDEX:
            cause = b"the requested history has been cleared [%d/%d]"
            raise ApiError(
                EVENT_INDEX_CLEARED, cause % (applied.oldest_event, wanted), applied.index
            )
        watcher = Watcher(watch, sink, wanted or applied.index + 1, filter_)
        sink.begin(applied.index)
        if self.requests == 1:
            self._recent.begin(applied.index + 1)
        if watcher.next_index <= applied.index:
            self._replays.skip(watcher, applied.index)
        if watcher.next_index > applied.index:
            watchers = self._registered if filter_ is None else self._watchers(watcher)
            watchers.register(watcher, applied.index + 1)
        else:
            self._replays.begin(watcher)
        return watcher

    def forget(self, watcher: Watcher) -> None:
        """Drop a watch whose client has gone; it may have ended already."""
        self._replays.forget(watcher)
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
        if self._backlog and not self._is_delivering:
            self._is_delivering = True
            self._loop.call_soon(self._deliver)

    def _publish_filtered(self, watchers: Watchers, event: Event, removed: list[bytes]) -> None:
        """Match an event to watchers with filters; the filters are applied on delivery.

        To apply all of them here would take one long step for each batch.
        """
        matching = watchers.matching(event.change.key, event.change.index, removed)
        if matching:
            self._queue(event, None, matching)

    def _watchers(self, watcher: Watcher) -> Watchers:
        """Return where a watcher is registered."""
        filter_ = watcher.filter
        return self._registered if filter_ is None else self._filtered[filter_.hidden]

    def _register(self, watcher: Watcher, following: int) -> None:
        self._watchers(watcher).register(watcher, following)

    def end_all(self) -> None:
        """End every watch without an event."""
        while self._backlog:
            self._deliver()
        self.end(lambda _: True)

    def end(self, ends: Callable[[Watcher], bool]) -> None:
        """End some of the watches without an event."""
        for watcher in [*self._replays.running, *self._registered, *chain(*self._filtered)]:
            if ends(watcher):
                self.forget(watcher)
                watcher.sink.end()

    # Live

    def _queue(self, event: Event, body: bytes | None, matching: list[list[Watcher]]) -> None:
        """Append an event to the backlog, or let its watchers read it from history."""
        rest = len(body) if body is not None else _EVENT_BYTES + _large_bytes(event)
        for watchers in matching:
            last = self._backlog[-1] if self._backlog else None
            is_listed = last is not None and watchers is last.watchers
            size = rest + (0 if is_listed else _REFERENCE_BYTES * len(watchers))
            if last is None or self.backlog_bytes + size <= BACKLOG_BYTES_MAX:
                delivery = _Delivery(watchers, body, event if body is None else None, size)
                rest = 0  # the next group shares the bytes
            else:
                delivery = self._defer(event.change.index, watchers)
            self._backlog.append(delivery)
            self.backlog_bytes += delivery.size

    def _defer(self, index: int, watchers: list[Watcher]) -> _Delivery:
        """Have watchers read from history, from an event on, after their pending deliveries."""
        for watcher in watchers:
            self._watchers(watcher).unregister(watcher)
            watcher.next_index = index
            watcher.was_live = True
            self._replays.add(watcher)
        return _Delivery(watchers, None, None, _REFERENCE_BYTES * len(watchers))

    def _body(self, event: Event) -> bytes | None:
        return event_body(event, self._store.applied.clock_offset_ns)

    def _deliver(self) -> None:
        left = _DELIVERIES_PER_TURN
        try:
            while self._backlog and left > 0:
                delivery = self._backlog[0]
                # A large event is not copied for each of them, unless they see it in other shapes.
                length = len(delivery.body or b"")
                if delivery.event is not None and delivery.watchers[0].filter is not None:
                    length = _large_bytes(delivery.event)
                weight = 1 + length // _LONG_BYTES
                first = delivery.delivered
                delivery.delivered += -(-left // weight)
                batch = delivery.watchers[first : delivery.delivered]
                if delivery.delivered >= len(delivery.watchers):
                    self._backlog.popleft()
                    self.backlog_bytes -= delivery.size
                left -= weight * len(batch)
                self._deliver_batch(delivery, batch)
        finally:
            self._is_delivering = bool(self._backlog)
            if self._is_delivering:
                self._loop.call_soon(self._deliver)

    def _deliver_batch(self, delivery: _Delivery, batch: list[Watcher]) -> None:
        try:
            if delivery.body is not None:
                self._deliver_all(batch, delivery.body)
            elif delivery.event is not None:
                for watcher in batch:
                    if watcher.filter is None or watcher.filter.passes(delivery.event):
                        watcher.sink.deliver_large(delivery.event)
            else:
                for watcher in batch:
                    self._replays.go_on(watcher)
        except BaseException:
            # Some may have received it and others not: close all, so that no gap goes unseen.
            for watcher in batch:
                watcher.sink.close()
            raise


def _deliver_each(watchers: Sequence[Watcher], body: bytes) -> None:
    for watcher in watchers:
        watcher.sink.deliver(body)


def _large_bytes(event: Event) -> int:
    """Return what the values of an event take in memory."""
    change, prev, _ = event
    return len(change.value or b"") + len((prev and prev.value) or b"")

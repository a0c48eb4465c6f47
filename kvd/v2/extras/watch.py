"""Extras of one watch: which events, in which shape, and for how long.

    waitTimeout=S    it ends after so long without an event
    progress=S       a stream sends its index, each time after so long without an event
    actions=a,b      only events of these actions
    level=N          only events at most N levels below the key, and what removes it
    hidden           live events below hidden names too; refreshes: those of a TTL alone
    keysOnly maxValue base64      how values are shown

A filter decides before an event counts: a long poll goes on until one passes.
"""

from __future__ import annotations

from typing import NamedTuple

from kvd.storage.format.event import Event
from kvd.v2.commands import Watch
from kvd.v2.errors import INVALID_FIELD, ApiError
from kvd.v2.extras.parameters import (
    EVENT_STREAM,
    LAST_EVENT_ID,
    Shape,
    check_max_value,
    refuse_pair,
    values_of,
)
from kvd.v2.paths import is_below
from kvd.v2.request import uint
from kvd.v2.response import ACTIONS

_OF_WATCHES = frozenset(
    (
        *(b"waitTimeout", b"progress", b"actions", b"level", b"hidden", b"refreshes"),
        *(b"keysOnly", b"maxValue", b"base64", EVENT_STREAM, LAST_EVENT_ID),
    )
)
_KINDS = {action: kind for kind, action in ACTIONS.items()}


class Filter(NamedTuple):
    """Which of the events of a watched key, and of what is below it, are for one watcher."""

    key: bytes
    kinds: frozenset[int] | None = None
    level: int | None = None
    hidden: bool = False
    refreshes: bool = False

    def passes(self, event: Event) -> bool:
        """Return whether an event that concerns the key is for the watcher."""
        change = event.change
        if change.refresh and not self.refreshes:
            return False
        if self.kinds is not None and change.kind not in self.kinds:
            return False
        if self.level is None or not is_below(change.key, self.key):
            return True
        return change.key.count(b"/", len(self.key.rstrip(b"/"))) <= self.level


class WatchExtras(NamedTuple):
    """The extras of one watch; times in seconds."""

    filter: Filter
    shape: Shape = Shape()
    wait_timeout_s: float | None = None
    progress_s: float | None = None
    as_events: bool = False
    """Whether it is answered with server-sent events."""


def watch_extras(watch: Watch, value_bytes_max: int, max_wait_s: float | None) -> WatchExtras:
    """Return what the extras of a watch ask for; no wait is longer than `max_wait_s`.

    Raises:
        ApiError: 209, the first thing wrong with them.
    """
    flags, numbers, texts = values_of(watch.extras)
    asked = {*flags, *numbers, *texts}
    for name, _ in watch.extras:
        if name in asked and name not in _OF_WATCHES:
            refuse_pair(name, b"wait")
    check_max_value(numbers, value_bytes_max)
    if b"keysOnly" in flags:
        for name in (b"maxValue", b"base64"):
            if name in asked:
                refuse_pair(name, b"keysOnly")
    if b"progress" in numbers and not watch.stream:
        raise ApiError(INVALID_FIELD, b'"progress" needs stream=true')
    if b"level" in numbers and not watch.recursive:
        raise ApiError(INVALID_FIELD, b'"level" needs recursive=true')
    waits_s = [wait_s for wait_s in (numbers.get(b"waitTimeout"), max_wait_s) if wait_s is not None]
    kinds = None
    if b"actions" in texts:
        kinds = frozenset(_KINDS[action] for action in texts[b"actions"].split(b","))
    max_value, level = numbers.get(b"maxValue"), numbers.get(b"level")
    return WatchExtras(
        Filter(
            watch.key,
            kinds,
            None if level is None else int(level),
            b"hidden" in flags,
            b"refreshes" in flags,
        ),
        Shape(
            b"keysOnly" in flags, None if max_value is None else int(max_value), b"base64" in flags
        ),
        min(waits_s, default=None),
        numbers.get(b"progress"),
        EVENT_STREAM in texts,
    )


def as_event_stream(watch: Watch, last_event_id: bytes) -> Watch:
    """Return a watch that is answered with server-sent events, behind the last one that came.

    Raises:
        ApiError: 209, that is none.
    """
    wait_index = watch.wait_index
    if last_event_id:
        index = uint(last_event_id)
        if index is None:
            raise ApiError(INVALID_FIELD, b'invalid value for "%b"' % LAST_EVENT_ID)
        wait_index = index + 1
    extras = (*watch.extras, (EVENT_STREAM, b""))
    return watch._replace(stream=True, wait_index=wait_index, extras=extras)

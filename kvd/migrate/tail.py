"""The events of a source that is read over the API, one poll after the other.

Each poll ends within a second, so that in between the end can be looked for. Events of hidden keys
and refreshes are not among them (live.py).
"""

from __future__ import annotations

import json
from time import monotonic, sleep
from typing import Any

from kvd.client.errors import HistoryLost, TransportError
from kvd.migrate.content import without_gaps
from kvd.migrate.etcd.nodes import event, time_of
from kvd.migrate.live import Source
from kvd.storage.format.event import Event

POLL_S = 1.0
"""The longest wait for an event."""
Told = dict[str, Any]


class Tail:
    """Events of all keys, from an index on.

    Attributes:
        index: The index of the last event.
        lag: How many indexes the source was ahead when it last answered.
    """

    def __init__(self, source: Source, index: int) -> None:
        """Begin behind an index."""
        self.index = index
        self.lag = 0
        self._source = source

    def next(self, timeout: float = POLL_S) -> Told | None:
        """Return the next event, None if none comes in time.

        Raises:
            HistoryLost: the source no longer has it.
        """
        caller = self._source.caller
        query: dict[str, str | int | bool | None] = {
            "wait": True,
            "recursive": True,
            "waitIndex": self.index + 1,
        }
        if "hidden" in self._source.extras:
            query |= {"hidden": True, "base64": True}
        begun = monotonic()
        try:
            reply = caller.call("GET", caller.path("/"), query=query, timeout=timeout)
            told: Told = json.loads(reply.body)
        except (TransportError, ValueError):  # etcd ends a long poll with an empty response
            # A server that is gone refuses at once.
            sleep(max(begun + timeout - monotonic(), 0))
            self.lag = 0
            return None
        self.index = int(told["node"]["modifiedIndex"])
        self.lag = max(reply.index - self.index, 0)
        return told


def history(source: Source, index: int) -> list[Event]:
    """Return the events up to an index that a source still has, without gaps."""
    tail = Tail(source, 0)
    found: list[Event] = []
    time_ns = 0
    while tail.index < index:
        try:
            told = tail.next()
        except HistoryLost as lost:
            if lost.first <= tail.index + 1:
                break
            tail.index, found = lost.first - 1, []
            continue
        if told is None:
            break
        time_ns = time_of(told) or time_ns
        found.append(event(told, time_ns))
    return without_gaps(found, index)

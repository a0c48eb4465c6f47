"""The events of a source that is read over the API, one poll after the other.

Each poll ends within a second, so that in between the end can be looked for. Refreshes are not
among them (live.py), and of hidden keys only those that had happened before the poll.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic, sleep
from typing import Any

from kvd.client.errors import HistoryLost, Timeout, TransportError
from kvd.migrate.content import without_gaps
from kvd.migrate.deep_json import loads
from kvd.migrate.errors import Refused
from kvd.migrate.etcd.nodes import event, time_of
from kvd.migrate.live import Source
from kvd.storage.format.event import Event

POLL_S = 1.0
"""The longest wait for an event."""
EventDocument = dict[str, Any]


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

    def next(self, timeout: float = POLL_S) -> EventDocument | None:
        """Return the next event, None if none comes in time, or the server is gone.

        Raises:
            HistoryLost: the source no longer has it.
        """
        begun = monotonic()
        try:
            return self.poll(timeout)
        except TransportError:
            # A server that is gone refuses at once.
            sleep(max(begun + timeout - monotonic(), 0))
            return None

    def poll(self, timeout: float = POLL_S) -> EventDocument | None:
        """Return the next event, None if none comes in time.

        Raises:
            HistoryLost: the source no longer has it.
            TransportError: the server is gone.
            Refused: the response is not one of a store.
        """
        caller = self._source.caller
        query: dict[str, str | int | bool | None] = {
            "wait": True,
            "recursive": True,
            "waitIndex": self.index + 1,
        }
        if "hidden" in self._source.extras:
            query |= {"hidden": True, "base64": True}
        try:
            reply = caller.call("GET", caller.path("/"), query=query, timeout=timeout)
        except Timeout:
            self.lag = 0
            return None
        if not reply.body.strip():  # etcd ends a long poll so
            return None
        try:
            document: EventDocument = loads(reply.body)
            self.index = int(document["node"]["modifiedIndex"])
        except (KeyError, TypeError, ValueError):
            raise Refused(f"the server is no store of the v2 API: {reply.body[:80]!r}") from None
        self.lag = max(reply.index - self.index, 0)
        return document


def history(
    source: Source,
    index: int,
    known: Sequence[Event] = (),
    report: Callable[[Tail], None] = lambda _: None,
) -> list[Event]:
    """Return the events up to an index that a source still has, without gaps.

    Each is a request: an etcd that checks passwords takes 70 ms for it.

    Args:
        source: the source.
        index: the index.
        known: what an earlier call has returned.
        report: called after each request.

    Raises:
        KvdError: it cannot be read.
    """
    found = list(known)
    tail = Tail(source, found[-1].change.index if found else 0)
    time_ns = found[-1].time_ns if found else 0
    while tail.index < index:
        try:
            document = tail.poll()
        except HistoryLost as lost:
            if lost.first <= tail.index + 1:
                break
            tail.index, found = lost.first - 1, []
            continue
        if document is None:
            break
        time_ns = time_of(document) or time_ns
        found.append(event(document, time_ns))
        report(tail)
    return without_gaps(found, index)

r"""Responses to watches with extras: filtered, in other shapes, with a time limit, for web pages.

A stream sends lines of JSON, as without extras; with `progress` also

    {"action":"progress","index":1301}        all its events up to this index have been sent

With `Accept: text/event-stream` it is a stream of server-sent events (section 9.2 of the HTML
standard):

    retry: 1000\n\n
    id: 1301\nevent: set\ndata: {"action":"set","node":{...}}\n\n
    id: 1301\nevent: progress\ndata: {"index":1301}\n\n
    id: 1301\nevent: lost\ndata: {"errorCode":401,...}\n\n     the history begins later
    : quiet\n\n                                               after each 15 s of silence
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from http import HTTPStatus
from itertools import groupby

from kvd.core.watch.hub import Hub
from kvd.core.watch.watchers import Watcher
from kvd.handlers.extras.reading.nodes import shown_parts
from kvd.handlers.keys.large_listings import NO_ROOM
from kvd.handlers.keys.parts import KeyParts
from kvd.handlers.keys.watch import WatchAnswer, WatchAnswers
from kvd.http.connection import LARGE_BYTES, Connection
from kvd.http.stage import STREAMING
from kvd.json_text import LargeValue, escape
from kvd.limits.due_calls import DueCalls
from kvd.limits.memory_budget import Piece
from kvd.storage.format.event import Event
from kvd.storage.format.node import Node
from kvd.storage.format.records import REMOVALS
from kvd.v2.commands import Watch
from kvd.v2.errors import ApiError
from kvd.v2.extras.watch import WatchExtras
from kvd.v2.response import ACTIONS, error_body, removed_object

_QUIET_S = 15.0
# While a watch reads history it is not quiet; it is looked at again after so long.
_BEHIND_S = 0.05
Part = bytes | LargeValue | Piece

_EVENTS = b"Content-Type: text/event-stream\r\nCache-Control: no-store\r\n"


class ExtraWatches:
    """Answers the watches with extras of one key space."""

    def __init__(self, parts: KeyParts, hub: Hub, answers: WatchAnswers) -> None:
        """Answer watches; `answers` is what the answers to all watches share."""
        self.hub = hub
        self.answers = answers
        self.head = parts.responder.head
        self.values = parts.values
        self.memory = parts.memory
        self.event_lines = _EVENTS + parts.responder.cluster_line
        self.on_no_room = partial(parts.responder.count, NO_ROOM)
        self.due = DueCalls(asyncio.get_running_loop())
        """Ends, and what else is said of itself: of many watches a few in each turn of the loop."""
        self._state = parts.store.state
        self._latest: tuple[Event, WatchExtras, list[Piece]] | None = None

    def watch(
        self, connection: Connection, watch: Watch, extras: WatchExtras, rights: object
    ) -> None:
        """Begin to answer a watch, for a client with some rights.

        Raises:
            ApiError: 401, the history from its index on has been cleared, and it is no page's.
        """
        answer = _Answer(self, connection, watch, extras)
        try:
            watcher = self.hub.watch(watch, answer, extras.filter)
        except ApiError as refusal:
            if not extras.as_events:
                raise
            # A page's EventSource never comes back after an error. So it does, behind this index.
            answer.begin(refusal.index)
            answer.lose(refusal)
            return
        watcher.rights = rights
        answer.watcher = watcher
        if answer.has_ended:
            self.hub.forget(watcher)
        elif connection.stage is STREAMING or connection.gone:
            connection.on_close = answer.leave

    def pieces(self, event: Event, extras: WatchExtras) -> list[Piece]:
        """Return an event as it is sent, cached for the next watcher of the same shape."""
        if self._latest is not None:
            latest, shaped, pieces = self._latest
            if latest is event and (shaped.shape, shaped.as_events) == (
                extras.shape,
                extras.as_events,
            ):
                return pieces
        parts = self._parts(event, extras)
        if extras.as_events:
            change = event.change
            head = b"id: %d\nevent: %b\ndata: " % (change.index, ACTIONS[change.kind])
            parts = [head, *parts, b"\n"]
        pieces = [
            part if isinstance(part, Piece) else self.values.pieces([part])[0]
            for part in _merged(parts)
        ]
        self._latest = event, extras, pieces
        return pieces

    def forget(self) -> None:
        """Discard the cached event, which may be large."""
        self._latest = None

    def _parts(self, event: Event, extras: WatchExtras) -> list[Part]:
        change, prev, time_ns = event
        kind, index, key, value, is_dir, created, expiration_ns, refresh = change
        show = partial(
            shown_parts,
            shape=extras.shape,
            now_ns=time_ns,
            offset_ns=self._state.applied.clock_offset_ns,
            make=self.values.make,
        )
        shown = escape(key)
        parts: list[Part] = [b'{"action":"%b"' % ACTIONS[kind]]
        if refresh:
            parts.append(b',"refresh":true')
        parts.append(b',"node":')
        if kind in REMOVALS:
            parts.append(removed_object(shown, change))
        else:
            node = Node(value, created, index, expiration_ns, int(is_dir))
            parts += show(shown, node)
        if prev is not None:
            parts.append(b',"prevNode":')
            parts += show(shown, prev)
        return [*parts, b"}\n"]


def _merged(parts: Iterable[Part]) -> list[Part]:
    """Return parts with adjacent bytes joined."""
    merged: list[Part] = []
    for is_bytes, run in groupby(parts, key=lambda part: isinstance(part, bytes)):
        same = list(run)
        merged += [b"".join(same)] if is_bytes else same  # type: ignore[arg-type]
    return merged


class _Answer(WatchAnswer):
    """The answer to one watch."""

    __slots__ = (
        *("_extras", "_loop", "_quiet_since", "_said_since"),
        *("_timer", "_watch", "_watches", "watcher"),
    )

    def __init__(
        self, watches: ExtraWatches, connection: Connection, watch: Watch, extras: WatchExtras
    ) -> None:
        super().__init__(connection, watches.answers, stream=watch.stream)
        self._watches = watches
        self._watch = watch
        self._extras = extras
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._quiet_since = self._said_since = 0.0
        self.watcher: Watcher | None = None

    def begin(self, index: int) -> None:
        connection, extras = self.connection, self._extras
        if extras.as_events:
            head = self._watches.head(index, self._watches.event_lines)
            connection.begin_stream(HTTPStatus.OK, head)
            self._say(b"retry: 1000\n\n")
        else:
            super().begin(index)
        self._quiet_since = self._said_since = self._loop.time()
        self._set_timer()

    def deliver_large(self, event: Event) -> None:
        if not self.may_receive():
            return
        pieces = self._watches.pieces(event, self._extras)
        is_last = not self._watch.stream
        self._quiet_since = self._said_since = self._loop.time()
        # Of a value in shapes of their own each of them is sent another copy.
        size = sum(len(piece.data) for piece in pieces if not piece.is_held)
        if size > LARGE_BYTES and not self._watches.memory.fits(size):
            self._watches.on_no_room()
            self.leave()
            self.connection.abort()
            return
        if is_last:
            self.leave()
        if len(pieces) == 1 and not pieces[0].escapes:
            frame = self._watches.answers.frame(pieces[0].data, self.form)
            self.connection.send_event(frame, last=is_last)
        else:
            self.connection.send_large_event(pieces, last=is_last)

    def lose(self, refusal: ApiError) -> None:
        """Say that the history does not go back so far, and end."""
        error = error_body(refusal)
        self._say(b"id: %d\nevent: lost\ndata: %b\n" % (refusal.index, error))
        self.end()

    def end(self) -> None:
        self.leave()
        super().end()

    def close(self) -> None:
        self.cancel()
        super().close()

    def cancel(self) -> None:
        """The client has gone, or the watch ends: no timer is needed any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def leave(self) -> None:
        """Wait no more: it has ended, or the client has gone."""
        self.cancel()
        self.has_ended = True
        if self.watcher is not None:
            self._watches.hub.forget(self.watcher)

    def _set_timer(self, delay_s: float | None = None) -> None:
        """Set the timer to what comes first: the end, or that something is to be said."""
        extras = self._extras
        due = []
        if extras.wait_timeout_s is not None:
            due.append(self._quiet_since + extras.wait_timeout_s)
        if (says_s := self._says_s) is not None:
            due.append(self._said_since + says_s)
        if due:
            loop = self._loop
            at = min(due) if delay_s is None else loop.time() + delay_s
            self._timer = loop.call_at(at, self._watches.due.add, self._look)

    @property
    def _says_s(self) -> float | None:
        """After how many seconds without anything else something is said, if at all."""
        extras = self._extras
        if extras.progress_s is not None:
            return extras.progress_s
        return _QUIET_S if extras.as_events else None

    def _look(self) -> None:
        self._timer = None
        if self.has_ended or self.connection.gone:
            return
        now, extras, says_s = self._loop.time(), self._extras, self._says_s
        if self.watcher is None or self._watches.hub.is_behind(self.watcher):
            # The time counts from the delivery of the pending events.
            if self.watcher is None or self._watches.hub.is_replaying(self.watcher):
                self._quiet_since = now
            self._set_timer(_BEHIND_S)
            return
        if extras.wait_timeout_s is not None and now >= self._quiet_since + extras.wait_timeout_s:
            self.end()
            return
        if says_s is not None and now >= self._said_since + says_s:
            self._said_since = now
            index = self._watches.hub.index
            if extras.progress_s is None:
                self._say(b": quiet\n\n")
            elif extras.as_events:
                self._say(b'id: %d\nevent: progress\ndata: {"index":%d}\n\n' % (index, index))
            else:
                self._say(b'{"action":"progress","index":%d}\n' % index)
        if not self.has_ended:
            self._set_timer()

    def _say(self, text: bytes) -> None:
        """Send what is no event, unless the client does not read."""
        if self.connection.flows:
            frame = self._watches.answers.frame(text, self.form)
            self.connection.send_event(frame, last=False)

"""Responses to watches: frame events, and send them to one client or to many at once.

An event is framed once for all its clients. To many clients it is sent by one system call
(`kvd.http.sending.socket_batch`), past the event loop. That is for clients without unsent data, so
that the order of their events is kept. What a socket does not take, and every event of the other
clients, is sent by `Connection.send`, which knows TLS, the access log and clients that read slowly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import cast

from kvd.core.watch.watchers import Watcher
from kvd.handlers.keys.responder import STREAM_NOT_READ, Responder
from kvd.http.connection import LARGE_BYTES, Connection
from kvd.http.sending.socket_batch import SOCKETS_MAX, SocketPair
from kvd.limits.memory_budget import MemoryBudget, NoRoom, Piece, Values
from kvd.storage.format.event import Event
from kvd.storage.store import Store
from kvd.v2.response import event_parts

log = logging.getLogger(__name__)

# For fewer of them a system call for each costs no more.
_BATCH_MIN = 8

# How an event is framed: as a chunk or as it is, and as the last of its answer or not.
_CHUNKED, _LAST = 2, 1


class WatchAnswer:
    """The answer to one watch: `kvd.core.watch.watchers.WatchSink` on a connection."""

    __slots__ = ("_answers", "connection", "form", "has_ended")

    def __init__(self, connection: Connection, answers: WatchAnswers, *, stream: bool) -> None:
        self._answers = answers
        self.connection = connection
        self.form = (0 if connection.http10 else _CHUNKED) | (0 if stream else _LAST)
        self.has_ended = False
        """The connection may be another request's by now."""

    def begin(self, index: int) -> None:
        """Send the head of the answer at once."""
        # Clients wait for the head with a time-out of a second or two: it goes out at once.
        self.connection.begin_stream(HTTPStatus.OK, self._answers.head(index))

    def deliver(self, body: bytes) -> None:
        """Send an event."""
        if self.may_receive():
            frame = self._answers.frame(body, self.form)
            self.connection.send_event(frame, last=bool(self.form & _LAST))

    def deliver_large(self, event: Event) -> None:
        """Send an event whose values are large."""
        if self.may_receive():
            pieces = self._answers.large_frame(event)
            self.connection.send_large_event(pieces, last=bool(self.form & _LAST))

    def may_receive(self) -> bool:
        """Return whether it can be sent an event; a client that leaves too much unread is cut."""
        if self.has_ended:
            return False
        connection = self.connection
        return connection.flows or bool(self.form & _LAST) or not self._answers.cut(connection)

    def ready(self, resume: Callable[[], object]) -> bool:
        """Return whether the client reads; if not, `resume` is called once it does."""
        return self.connection.ready(resume)

    def has_room(self, event: Event, resume: Callable[[], object]) -> bool:
        """Return whether there is memory for an event; if not, `resume` is called later."""
        return self._answers.has_room(self.connection, event, resume)

    def close(self) -> None:
        """Cut the connection."""
        if not self.has_ended:
            self.connection.abort()

    def end(self) -> None:
        """End the answer without a further event."""
        self.has_ended = True
        self.connection.end_stream()


class WatchAnswers:
    """Shared state of the responses to all watches: the last event, framed.

    Attributes:
        head: Returns the header lines of a success at an index.
    """

    def __init__(
        self,
        store: Store,
        memory: MemoryBudget,
        values: Values,
        responder: Responder,
        *,
        stream_bytes_max: int,
    ) -> None:
        """Answer watches of one store.

        A stream that leaves `stream_bytes_max` unread when its next event comes is cut.
        """
        self.head = responder.head
        self._store = store
        self._memory = memory
        self._values = values
        self._stream_bytes_max = stream_bytes_max
        self._responder = responder
        self._framed: bytes | Event = b""
        self._frames: dict[int, Piece] = {}
        self._parts: list[Piece] = []
        self._batch: SocketPair | None = None
        self._has_batch = True

    def begin(self, connection: Connection, *, stream: bool) -> WatchAnswer:
        """Return the answer to a watch."""
        return WatchAnswer(connection, self, stream=stream)

    def deliver_all(self, watchers: Sequence[Watcher], body: bytes) -> None:
        """Deliver an event to many."""
        batch = self._socket_batch() if len(watchers) >= _BATCH_MIN else None
        if batch is None or len(body) > LARGE_BYTES >> 1:
            for watcher in watchers:
                watcher.sink.deliver(body)
            return
        answers = cast(list[WatchAnswer], [watcher.sink for watcher in watchers])
        while answers:
            answers = self._deliver_form(batch, answers, body)

    def _deliver_form(
        self, batch: SocketPair, answers: Sequence[WatchAnswer], body: bytes
    ) -> list[WatchAnswer]:
        """Deliver to those that are sent it in the same form as the first; return the others."""
        form = answers[0].form
        others: list[WatchAnswer] = []
        files: list[int] = []
        receivers: list[Connection] = []
        for answer in answers:
            connection = answer.connection
            if answer.form != form:
                others.append(answer)
            elif (
                connection.writable
                and connection.file
                and not answer.has_ended
                and not connection.pending()
            ):
                files.append(connection.file)
                receivers.append(connection)
            else:
                answer.deliver(body)
        self._send(batch, self.frame(body, form).data, files, receivers)
        if form & _LAST:
            for connection in receivers:
                connection.done()
        return others

    def _send(
        self, batch: SocketPair, data: bytes, files: Sequence[int], receivers: Sequence[Connection]
    ) -> None:
        """Send data on the sockets of connections; what one does not take, the usual way."""
        for first in range(0, len(files), SOCKETS_MAX):
            last = first + SOCKETS_MAX
            try:
                unsent = batch.send(data, files[first:last])
            except OSError as error:
                log.error("watches are cut, it is not known what they were sent: %s", error)  # noqa: TRY400
                self.close()
                for connection in receivers[first:]:
                    connection.abort()
                return
            for place, sent_bytes in unsent:
                receivers[first + place].send(data[sent_bytes:])

    def _socket_batch(self) -> SocketPair | None:
        """Return the batch of sockets, made on first use; None where it is not available."""
        if self._batch is None and self._has_batch:
            try:
                self._batch = SocketPair()
            except OSError as error:
                self._has_batch = False
                log.debug(
                    "no batches of sockets, events are sent by one system call for each watch: %s",
                    error,
                )
        return self._batch

    def frame(self, body: bytes, form: int) -> Piece:
        """Return the frame of an event: a chunk, perhaps the last of its answer, or as it is."""
        if body is not self._framed:
            self._forget(body)
        piece = self._frames.get(form)
        if piece is None:
            end = b"\r\n0\r\n\r\n" if form & _LAST else b"\r\n"
            data = b"%x\r\n%b%b" % (len(body), body, end) if form & _CHUNKED else body
            piece = self._frames[form] = Piece(data, self._memory)
        return piece

    def large_frame(self, event: Event) -> list[Piece]:
        """Return an event whose values are large in parts, not framed."""
        if event is not self._framed:
            self._forget(event)
            parts = event_parts(event, self._store.applied.clock_offset_ns)
            self._parts = self._values.pieces(parts)
        return self._parts

    def cut(self, connection: Connection) -> bool:
        """Cut a stream whose client leaves too much unread; return whether it was."""
        if connection.unsent_bytes <= self._stream_bytes_max:
            return False
        self._responder.count(STREAM_NOT_READ)
        connection.abort()
        return True

    def has_room(self, connection: Connection, event: Event, resume: Callable[[], object]) -> bool:
        """Return whether there is memory for an event; if not, `resume` is called later."""
        # Beside what others are sent already.
        size = self._values.missing_bytes(event_parts(event))
        if self._memory.fits(size):
            return True
        self._responder.start(connection, self._resume(connection, size, resume))
        return False

    async def _resume(
        self, connection: Connection, size: int, resume: Callable[[], object]
    ) -> None:
        with suppress(NoRoom):  # it will wait again: its head has been sent
            await self._memory.room(size)
        if not connection.gone:
            resume()

    def tick(self) -> None:
        """Discard the frames of the last event, which may be large; called every second."""
        self._forget()

    def close(self) -> None:
        """Send to many at once no more."""
        self._has_batch = False
        batch, self._batch = self._batch, None
        if batch is not None:
            batch.close()

    def _forget(self, framed: bytes | Event = b"") -> None:
        self._framed = framed
        self._frames = {}
        self._parts = []

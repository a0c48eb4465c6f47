"""HTTP/1.1 connections: bytes to requests, answers to bytes.

Tornado's handlers, routing and errors stay; the connection is ours, behind Tornado's documented
interfaces (`HTTPServerConnectionDelegate`, `HTTPMessageDelegate`, `HTTPConnection`), because
Tornado's own costs ten times everything else that a request needs (measured: 0.13 of etcd's reads
per second on it, 1.2 and more on this).

A head is the request line, which is read here, and the header block, which is not: llhttp parses
each block that has not been seen lately, and decides what framing it means. Clients repeat
themselves, so nearly every block is found in a cache, by its bytes.

Invariants:

- One request at a time on a connection: the next is not looked at before this one is answered.
- While a connection is at rest nothing stands between it and the next request: that may be served
  from where it was read. Whatever happens to it beside plain requests ends that first.
- What waits to be parsed, and what waits to be sent, is bounded; beyond that nothing is read.
- An answer for a connection that has gone is dropped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from http import HTTPStatus
from math import inf
from typing import cast

from tornado import httputil

from kvd.http.parsing.request_parser import SPOKE_TLS, Refusal, Request, RequestParser
from kvd.http.peer import Peer, peer_of, shown_address, unacknowledged_bytes
from kvd.http.receiving import SMALL_BYTES
from kvd.http.sending.outbox import Outbox
from kvd.http.server import REASONS, TOO_MANY, TOO_MUCH, HttpServer
from kvd.limits.crowd import BODY, BUSY, CLOSING, HEAD, IDLE, SILENT, UNREAD, State
from kvd.limits.memory import Memory, Payload
from kvd.limits.turns import LONG_WAY, MANY_CHUNKS, UNIT_BYTES_LOG2, UNIT_S, Lane

log = logging.getLogger(__name__)

# What may wait behind the request that is being served before the connection is not read any more.
_AHEAD_BYTES_MAX = 16 << 10
# What a client may have begun to ask without being counted.
_UNCOUNTED_BYTES_MAX = 4 << 10
# What an event loop keeps of an answer for a client that reads slowly, before it is told to wait.
_WRITE_BUFFER_BYTES = 32 << 10
# A larger answer is counted, and sent in slices.
LARGE_BYTES = 64 << 10
# After a refusal: how much more is read and dropped, and how long, so that the client gets to read
# the answer before its connection is reset. The largest body is less.
_DROPPED_BYTES_MAX = 16 << 20
_LINGER_S = 2.0
_HEAD_SIZED_BYTES_MAX = 2048
# How long a connection beyond the limit of connections is heard.
_RESERVE_S = 2.0
_RESERVED_TARGETS = ("/health", "/readyz", "/livez", "/metrics")
# Receives what is left of such a body.
_SKIPPED = httputil.HTTPMessageDelegate()

_NOT_SERVED = "a request of %s could not be served"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# The stages of a connection: the second bit is set while a request is being answered, the first if
# anything else may be due before the next one or with the answer. Where it is not set, no other
# state has to be looked at.
_AT_REST, _OPEN, ANSWERING, _BUSY = range(4)
_LOOK = 1
_LAST_CHUNK = b"0\r\n\r\n"

ServeWhole = Callable[["Connection", bytes], bytes | None]


class Connection(asyncio.BufferedProtocol, httputil.HTTPConnection):
    """One client connection; also the `HTTPConnection` that Tornado's handlers answer to."""

    __slots__ = (
        "_after_outbox", "_ahead", "_close_callback", "_dropped",
        "_ended", "_head_deadline", "_held", "_message",
        "_on_writable", "_outbox", "_parser", "_parsing", "_paused", "_queued", "_reserved",
        "_server", "_transport", "_written_chunked",
        "content_type", "context", "deadline", "extra_headers", "file", "flows", "http10",
        "is_plain", "keep_alive", "pending", "stage", "streaming", "was_wrong", "writable",
    )  # fmt: skip

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._parser = RequestParser(server.blocks, server.limits.header_bytes_max)
        self.stage = _OPEN
        # It waits for its turn (kvd.limits.turns) with what it has read; so it is parsing, too.
        self._queued = False
        self._parsing = False
        self._paused = False
        # What is counted of what has been read: not looked at yet; the present request's body.
        self._ahead = self._held = 0
        self.flows = True
        """The client reads what it is sent: what the event loop keeps for it is not much."""
        self.writable = True
        """And nothing waits in the outbox either."""
        self._outbox: Outbox | None = None
        self._after_outbox: Callable[[], object] | None = None
        self._message: httputil.HTTPMessageDelegate | None = None
        self._dropped: int | None = None
        self._ended = False
        # It is beyond the limit: only `_RESERVED_TARGETS` are served.
        self._reserved = False
        self._close_callback: Callable[[], object] | None = None
        self._on_writable: Callable[[], object] | None = None
        self._written_chunked = False
        self.deadline = inf
        # The deadline that was set for the head which has begun to come; older ones are over.
        self._head_deadline = inf
        self.http10 = False
        self.keep_alive = False
        """The connection stays open after the present request; False before the first one."""
        self.is_plain = False
        """The present request may be answered by `reply`."""
        self.streaming = False
        """The answer may take for ever: a client that stops sending is taken to have gone."""
        self.file = 0
        """The socket of a streaming answer that may be sent past the transport, else 0."""
        self.pending: Callable[[], int] = _nothing
        """Returns how much the transport of such an answer has still to send."""
        self.context = Peer()
        self.content_type = ""
        """The Content-Type of the present request."""
        self.was_wrong = False
        """A password that came on it was."""
        self.extra_headers = b""
        """Header lines that every answer to the present request carries."""

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to serve, unless there are too many."""
        server = self._server
        self._transport = cast(asyncio.Transport, transport)
        self.context = peer_of(transport)
        server.connections.add(self)
        server.accepted += 1
        server.crowd.enters(self.address)
        self._transport.set_write_buffer_limits(_WRITE_BUFFER_BYTES)
        # Clients connect ahead of need: before its first byte a connection is merely idle.
        self.deadline = server.now + server.limits.idle_timeout_s
        if not server.has_room(self):
            self._enter_reserve()

    def _enter_reserve(self) -> None:
        server = self._server
        self._reserved = True
        # The short way does not look at that.
        self._parser.decline_whole()
        self.deadline = server.loop.time() + _RESERVE_S
        server.hear_beyond_limit(self)

    @property
    def address(self) -> str:
        """Where the client is, by which shares are told apart."""
        return self.context.network

    @property
    def memory(self) -> Memory:
        """What responses take together."""
        return self._server.memory

    @property
    def state(self) -> State:
        """What the client lets the server wait for, and since when."""
        limits = self._server.limits
        if self._dropped is not None:
            return CLOSING, 0.0
        if not self.flows and self._transport is not None:
            return UNREAD, self._server.sending.stalled_since(self)
        if self._transport is None or self._is_held_up() or self._reserved:
            return BUSY
        if self._message is not None:
            return BODY, self.deadline - limits.body_timeout_s
        if self._parser.buffer:
            return HEAD, self.deadline - limits.header_timeout_s
        # Between requests it is kept alive, before the first one it is not yet.
        return IDLE if self.keep_alive else SILENT, self.deadline - limits.idle_timeout_s

    def get_buffer(self, sizehint: int) -> memoryview:
        """Lend the buffer that all connections share: what is read is taken before the next is."""
        return self._server.turns.lent

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes; serve what they complete."""
        server = self._server
        data = server.buffer[:nbytes].tobytes()
        if not self.stage and server.turns.left > 0:
            try:
                answer = server.delegate.serve_whole(self, data)
                if answer is not None:
                    if answer:
                        self._transport.write(answer)  # type: ignore[union-attr]  # it is at rest
                        self.deadline = server.idle_deadline
                        server.turns.left -= 1
                    return
            except Exception:
                # The process edge of a request: a bug in serving one client is not the others' end.
                log.exception(_NOT_SERVED, self.context.remote_ip)
                self.abort()
                return
        self._take(data)

    def _take(self, data: bytes) -> None:
        """Take bytes the long way: they may be a part of a request, or several."""
        self.stage |= _LOOK
        if self._dropped is not None:
            self._dropped += len(data)
            if self._dropped > _DROPPED_BYTES_MAX:
                self.abort()
            return
        if self._ahead:
            self._release_ahead()
        parser = self._parser
        parser.feed(data)
        # An unfinished head does not wait for a turn to be found so: clients that send head after
        # head byte by byte would fill the lane of those that have asked for something.
        if not self._parsing and not (
            self.deadline == self._head_deadline and parser.is_head_unfinished
        ):
            self._parse()
        if len(parser.buffer) > _UNCOUNTED_BYTES_MAX:
            self._count_ahead()

    def _count_ahead(self) -> None:
        """Count what has been read and cannot be served yet, and read no more for the moment."""
        if self._transport is None or self._dropped is not None:
            return
        held_up = self._is_held_up()
        if held_up and len(self._parser.buffer) <= _AHEAD_BYTES_MAX:
            return
        self._ahead = len(self._parser.buffer)
        has_room = self._server.receiving.take(self, self._ahead)
        if held_up:
            if not has_room and not self._parser.body_left:
                # The answer to what it has sent ahead of its turn would come out of turn.
                self._server.rejected[TOO_MUCH] += 1
                self.abort()
            elif not self._paused:
                self._paused = True
                self._transport.pause_reading()
        elif not has_room:
            self.give_up()

    def _release_ahead(self) -> None:
        ahead, self._ahead = self._ahead, 0
        if ahead:
            if not self._held:
                self._server.receiving.forget(self)
            self._server.receiving.give_back(ahead)

    def hold(self, size: int) -> bool:
        """Count what is kept until the request is answered; return whether there is room for it."""
        self._held += size
        return self._server.receiving.take(self, size)

    def hold_piece(self, size: int) -> bool:
        """Count a piece of a body likewise; without room, the next piece waits for it.

        Returns:
            Whether the piece may be kept.
        """
        if self.hold(size):
            return True
        if self._parser.body_left:
            self.wait()
            self._server.receiving.wait(self)
            return True
        # What was let in so far is not refused for its last piece.
        return self._held > SMALL_BYTES

    def _release(self) -> None:
        """What was kept of a request is not any more."""
        held, self._held = self._held, 0
        if held:
            self._server.receiving.forget(self)
            self._server.receiving.give_back(held)

    @property
    def held_bytes(self) -> int:
        """What is kept of a request."""
        return self._held + self._ahead

    @property
    def is_receiving(self) -> bool:
        """Whether a part of a request has come, and another has not."""
        is_begun = self._message is not None or bool(self._parser.buffer)
        return is_begun and self._dropped is None and not self._is_held_up()

    def go_on(self) -> None:
        """Take the rest of a body that had to wait for room."""
        if self._message is not None:
            self.proceed(self._message)

    def give_up(self) -> None:
        """Refuse what has come of a request: there is no room for it."""
        message = self._message
        self.stage = _OPEN
        self._refuse(TOO_MUCH, HTTPStatus.SERVICE_UNAVAILABLE, "too much is sent at once")
        self._release()
        if message is not None:
            message.on_connection_close()

    def eof_received(self) -> bool:
        """Keep the connection for the answers that are due; a watch ends with its client."""
        self._ended = True
        self.stage |= _LOOK
        if self._dropped is not None or self.streaming:
            return False
        if not self._parsing:
            self._parse()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop everything; whoever still answers, answers nobody."""
        self._transport = None
        self.file = 0
        self.stage |= _LOOK
        self._parser.clear()
        self.deadline = inf
        self._server.connections.discard(self)
        self._server.reserve.pop(self, None)
        self._server.crowd.leaves(self.address)
        self._server.sending.reads(self)
        self._release_ahead()
        self._release()
        self._clear_outbox()
        self._after_outbox = self._on_writable = None
        callback, self._close_callback = self._close_callback, None
        message, self._message = self._message, None
        if message is not None:
            message.on_connection_close()
        if callback is not None:
            callback()

    def pause_writing(self) -> None:
        """Stop serving a client that does not read."""
        self.flows = self.writable = False
        self.stage |= _LOOK
        # By the clock itself: the last tick's time would end a client's patience a tick early.
        self._server.sending.stalls(self, self._server.loop.time())

    def resume_writing(self) -> None:
        """Go on serving, in a step of its own: asyncio cannot bear to be closed in this one."""
        self.flows = True
        self._server.sending.reads(self)
        if self._outbox:
            self._server.sending.soon(self)
        else:
            self.writable = True
            self._server.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if (self._parser.buffer or self._ended) and not self._parsing:
            self._parse()
        callback, self._on_writable = self._on_writable, None
        if callback is not None:
            callback()

    # httputil.HTTPConnection, for Tornado's handlers

    def set_close_callback(self, callback: Callable[[], object] | None) -> None:
        """Call `callback` when the client goes before it is answered."""
        self._close_callback = callback

    def write_headers(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
        chunk: bytes | None = None,
    ) -> asyncio.Future[None]:
        """Send the head of an answer, with the beginning of its body."""
        assert isinstance(start_line, httputil.ResponseStartLine)
        lines = [f"HTTP/1.{0 if self.http10 else 1} {start_line.code} {start_line.reason}"]
        lines += [f"{name}: {value}" for name, value in headers.get_all()]
        bodiless = start_line.code in (204, 304)
        framed = "Content-Length" in headers or bodiless
        self._written_chunked = not framed and not self.http10
        if self._written_chunked:
            lines.append("Transfer-Encoding: chunked")
        elif not framed:
            self.keep_alive = False
        head = (
            "\r\n".join(lines).encode("latin-1")
            + b"\r\n"
            + self._connection_header()
            + self.extra_headers
        )
        self._write(head + b"\r\n" + (self._framed(chunk) if chunk else b""))
        return self._written()

    def write(self, chunk: bytes) -> asyncio.Future[None]:
        """Send more of the body."""
        self._write(self._framed(chunk))
        return self._written()

    def _write(self, data: bytes) -> None:
        if len(data) > LARGE_BYTES:
            self.send_large([Payload(data, self._server.memory)], None)
        else:
            self.send(data)

    def finish(self) -> None:
        """End the answer."""
        if self._written_chunked:
            self._written_chunked = False
            self.send(_LAST_CHUNK)
        self._done_when_sent()

    # For message delegates that render their answers themselves

    @property
    def gone(self) -> bool:
        """Whether the client has gone."""
        return self._transport is None

    def ready(self, resume: Callable[[], object]) -> bool:
        """Return whether the client keeps reading; if not, `resume` is called once it has."""
        if not self.writable:
            self._on_writable = resume
        return self.writable

    @property
    def unsent_bytes(self) -> int:
        """What the client has not read yet, beyond what the kernel holds for it."""
        return self.kept_bytes + (self._outbox.unsent_bytes if self._outbox is not None else 0)

    @property
    def unread_bytes(self) -> int:
        """What the client has not read yet, as far as can be told: with what the kernel holds.

        The kernel lets go of a megabyte at once, which a slow client takes long to read.
        """
        held = unacknowledged_bytes(self._transport) if self._transport else 0
        return self.unsent_bytes + held

    @property
    def kept_bytes(self) -> int:
        """What the event loop keeps for the client."""
        return self._transport.get_write_buffer_size() if self._transport else 0

    @property
    def outbox_sent_bytes(self) -> int:
        """How much the outbox has sent since the connection was made."""
        return 0 if self._outbox is None else self._outbox.sent_bytes

    @property
    def read_bytes(self) -> int:
        """What the client has read of all that the outbox has sent, as far as can be told."""
        if self._outbox is None or self._transport is None:
            return 0
        held = self.kept_bytes + unacknowledged_bytes(self._transport)
        return max(0, self._outbox.sent_bytes - held)

    def spend(self, seconds: float) -> None:
        """Count time that the present request has taken, far more than others do, for the turn."""
        self._server.turns.left -= int(seconds / UNIT_S)

    def __call__(self, outcome: object) -> None:
        """Answer the present request by its outcome, which the delegate understands."""
        self._server.delegate.answer(self, outcome)

    def reply(self, answer: bytes) -> bool:
        """Send a whole answer and be at rest, if nothing but that is due; else do nothing.

        Returns:
            Whether it was sent. If not, `respond` sends it, or whatever else is due.
        """
        if self.stage != ANSWERING:
            return False
        # First: to write may end it.
        self.stage = _AT_REST
        self._transport.write(answer)  # type: ignore[union-attr]  # it is there
        self.deadline = self._server.idle_deadline
        return True

    def _write_whole(self, answer: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(answer)
        self.deadline = self._server.idle_deadline

    def begin(self) -> None:
        """Begin a request that `serve_whole` does not answer by itself, nor by `reply`."""
        self.stage = _BUSY
        self.deadline = inf
        self._server.turns.left -= 1

    def is_write(self) -> None:
        """Let the present request count as a write, which has its own bound in a turn."""
        self._server.turns.left += 1

    def respond(self, status: int, headers: bytes, body: bytes, *, head_only: bool = False) -> None:
        """Send a whole answer; `headers` are complete lines. With `head_only`, omit the body."""
        start = self._server.start(status, http10=self.http10)
        self._server.turns.left -= len(body) >> UNIT_BYTES_LOG2
        head = start + self.extra_headers + headers + self._connection_header()
        # net/http does not know the length of what a HEAD is not sent, unless it is short.
        if not head_only or 0 < len(body) <= _HEAD_SIZED_BYTES_MAX:
            head += b"Content-Length: %d\r\n" % len(body)
        if len(body) > LARGE_BYTES and not head_only:
            self.send(head + b"\r\n")
            self.send_large([Payload(body, self._server.memory)], self.done)
            return
        self.send(head + b"\r\n" if head_only else head + b"\r\n" + body)
        self.done()

    def respond_head(self, status: int, headers: bytes) -> None:
        """Send the answer to a HEAD of what is not short, which has no length in net/http."""
        self._begin(status, headers)
        self.done()

    def respond_in_pieces(self, status: int, headers: bytes, payloads: Sequence[Payload]) -> None:
        """Send a whole answer of many pieces, no faster than the client reads it.

        How long what is escaped as it is sent will be is not known: it comes in chunks.
        """
        chunked = False
        if not any(payload.escapes for payload in payloads):
            length = sum(len(payload.data) for payload in payloads)
            headers += b"Content-Length: %d\r\n" % length
        elif self.http10:
            self.keep_alive = False
        else:
            headers += b"Transfer-Encoding: chunked\r\n"
            chunked = True
        self._begin(status, headers)
        self.send_large(payloads, self.done, chunked=chunked, last=True)

    def send_large(
        self,
        payloads: Iterable[Payload],
        then: Callable[[], object] | None,
        *,
        chunked: bool = False,
        last: bool = False,
    ) -> None:
        """Send payloads in slices, as the client reads them; when all are sent call `then`.

        With `chunked` each slice is framed as a chunk, with `last` the last chunk follows them.
        """
        if self._transport is None:
            return
        if self._held and not self._parser.body_left:
            # What the request held is not kept any more, or counted as a part of the answer.
            self._release()
        outbox = self._outbox
        if outbox is None:
            outbox = self._outbox = Outbox()
        if not outbox:
            self._server.sending.begins(self)
        for payload in payloads:
            outbox.add(payload, chunked=chunked)
        if chunked and last:
            outbox.add(Payload(_LAST_CHUNK, self._server.memory))
        self._after_outbox = then
        self.writable = False
        if self.flows:
            self._server.sending.soon(self)

    def send_some(self) -> int:
        """Send something of what waits, if the client reads; return how many bytes."""
        outbox, transport = self._outbox, self._transport
        if not outbox or transport is None or transport.is_closing():
            return 0
        before = outbox.sent_bytes
        for piece in outbox.slices():
            transport.write(piece)
            if not self.flows or transport.is_closing():
                break
        sent = outbox.sent_bytes - before
        if transport.is_closing():
            return sent
        if not outbox:
            self._outbox_is_empty()
        elif self.flows:
            self._server.sending.soon(self)
        return sent

    def _clear_outbox(self) -> None:
        if self._outbox is not None:
            self._outbox.clear()
            self._server.sending.ends(self)

    def _outbox_is_empty(self) -> None:
        self._server.sending.ends(self)
        self.writable = self.flows
        after, self._after_outbox = self._after_outbox, None
        if after is not None:
            after()
        elif self.writable:
            self._go_on()

    def begin_stream(self, status: int, headers: bytes) -> None:
        """Send the head of an answer that comes in chunks, and may take for ever."""
        if self.http10:
            self.keep_alive = False
        else:
            headers += b"Transfer-Encoding: chunked\r\n"
        self.streaming = True
        if not self.file:
            self._find_file()
        self._begin(status, headers)
        if self._ended:
            # The client has said its last word long ago: it would never be heard to leave.
            self._server.loop.call_soon(self.abort)

    def _find_file(self) -> None:
        """Note the socket, if what is written to it reaches the client as it is."""
        transport = self._transport
        if transport is not None and self.context.protocol == "http":
            self.file = transport.get_extra_info("socket").fileno()
            self.pending = transport.get_write_buffer_size

    def send_event(self, payload: Payload, *, last: bool) -> None:
        """Send a framed piece of such an answer, which others may be sent too; or also its end."""
        then = self.done if last else None
        if len(payload.data) > LARGE_BYTES:
            self.send_large([payload], then)
            return
        self.send(payload.data)
        if last:
            self.done()

    def send_large_event(self, payloads: Sequence[Payload], *, last: bool) -> None:
        """Send an event whose values are large, as `send_event` does.

        It is one chunk, unless its length is not known: what is escaped comes in many.
        """
        then = self.done if last else None
        escapes = any(payload.escapes for payload in payloads)
        if self.http10 or escapes:
            self.send_large(payloads, then, chunked=not self.http10, last=last)
            return
        memory = self._server.memory
        start = Payload(b"%x\r\n" % sum(len(payload.data) for payload in payloads), memory)
        end = Payload(b"\r\n" + (_LAST_CHUNK if last else b""), memory)
        self.send_large([start, *payloads, end], then)

    def end_stream(self) -> None:
        """End such an answer without a further piece."""
        if not self.http10:
            self.send(_LAST_CHUNK)
        self._done_when_sent()

    def _done_when_sent(self) -> None:
        if self._outbox:
            self._after_outbox = self.done
        else:
            self.done()

    def _begin(self, status: int, headers: bytes) -> None:
        start = self._server.start(status, http10=self.http10)
        self.send(start + self.extra_headers + headers + self._connection_header() + b"\r\n")

    def _connection_header(self) -> bytes:
        if self._server.stopping or (self._parser.body_left and not self._parser.is_rest_short):
            self.keep_alive = False
        if not self.keep_alive:
            return b"Connection: close\r\n"
        return b"Connection: keep-alive\r\n" if self.http10 else b""

    def send(self, data: bytes) -> None:
        """Send bytes of an answer, behind what waits to be sent."""
        if self._outbox:
            self._outbox.add(Payload(data, self._server.memory))
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def done(self) -> None:
        """The answer is complete: go on with the next request, or close."""
        if self._held:
            self._release()
        self.stage = _OPEN
        self.streaming = False
        self._message = None
        self._close_callback = None
        self._on_writable = None
        if self._transport is None:
            return
        if self._parser.body_left:
            # Answered before its end: what is left of the request is nobody's.
            self._skip_rest()
        elif not self.keep_alive:
            self._close()
        else:
            self.deadline = self._server.idle_deadline
            if not self._parser.buffer and not self._ended:
                self._rest()
            elif not self._parsing:
                self._parse()

    def _skip_rest(self) -> None:
        if not self.keep_alive:
            self.linger()
            return
        self._message = _SKIPPED
        if not self._parsing:
            self._parse()

    def _close(self) -> None:
        """Send what is to be sent, and close; what still comes is nobody's."""
        self.stage |= _LOOK
        if self._server.stopping:
            # The client was not told in time: what it has sent meanwhile must not reset it.
            self.linger()
            return
        self._parser.clear()
        self._dropped = 0
        # Closing waits until the client has read, which it may never do.
        self.deadline = self._server.now + self._server.limits.write_timeout_s
        if self._transport is not None:
            self._transport.close()

    def linger(self) -> None:
        """Close, but not before the client has had a chance to read what was sent."""
        if self._transport is None:
            return
        self.stage |= _LOOK
        self._parser.clear()
        self._release_ahead()
        self._message = None
        self._dropped = 0
        self.deadline = self._server.loop.time() + _LINGER_S
        if self._transport.can_write_eof():
            with suppress(OSError):  # asyncio lets it through where the client has reset this
                self._transport.write_eof()
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    def reject(self, status: HTTPStatus, detail: str = "") -> None:
        """Answer a request that HTTP itself refuses, and close."""
        self._refuse(REASONS[status], status, detail)

    def _refuse(self, reason: str, status: HTTPStatus, detail: str) -> None:
        self._server.rejected[reason] += 1
        text = f"{status.value} {status.phrase}" + (f": {detail}" if detail else "")
        start = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\n"
            "Content-Type: text/plain; charset=utf-8\r\n"
        )
        end = f"Connection: close\r\n\r\n{text}"
        self.send(start.encode() + self._server.delegate.refusal_headers + end.encode())
        self.linger()

    def turn_away(self) -> None:
        """Say that there are too many connections; of a few it is awaited that they read it."""
        server = self._server
        server.reserve.pop(self, None)
        if server.may_warn():
            log.warning(
                "too many connections: %d are open, further ones are turned away%s",
                server.limits.connections_max,
                server.may_warn.kept_back(),
            )
        self._refuse(TOO_MANY, HTTPStatus.SERVICE_UNAVAILABLE, "too many connections")
        if server.excess > server.limits.lingering_max and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Drop the connection at once; what is still sent goes nowhere."""
        self.stage |= _LOOK
        self._server.connections.discard(self)
        transport, self._transport = self._transport, None
        self.file = 0
        self._clear_outbox()
        if transport is not None:
            transport.abort()

    @property
    def is_asked(self) -> bool:
        """Whether a request has begun to come and is not answered, and its client would read that.

        Watches are no such request.
        """
        waits = self._busy or self._message is not None or bool(self._parser.buffer)
        return waits and self.writable and not self.streaming and self._dropped is None

    def answer_no_more(self) -> None:
        """Let the present answer, or the next one, be the last."""
        self.keep_alive = self.is_plain = False
        self.stage |= _LOOK

    def stop(self) -> None:
        """Ask the client to leave now; if it is being answered, after that."""
        if self._dropped is not None or self._busy:
            return
        if self._message is _SKIPPED or (self._message is None and not self._parser.buffer):
            self.linger()
        else:
            self.reject(HTTPStatus.SERVICE_UNAVAILABLE, "stopping")

    def expire(self) -> None:
        """The client has taken too long."""
        if self._dropped is not None or self._message is _SKIPPED:
            self.abort()
        elif self._busy:
            return  # no time is set for the answer: this is that of the request before
        elif self._reserved:
            self.turn_away()
        elif self._parser.buffer or self._message:
            self.reject(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self._server.idle_closed += 1
            self.abort()

    # Parsing

    def _parse(self, requests: int = 0) -> None:
        """Serve what has been read, as far as this turn goes: so many requests, or a visit's."""
        turns = self._server.turns
        self._parsing = True
        try:
            while self._transport is not None and self._dropped is None and self._parser.buffer:
                if self._busy or not self.writable or (turns.left <= 0 and self._waits_for_turn()):
                    break
                turns.left -= 1
                if not (self._read_body() if self._message is not None else self._read_head()):
                    break
                if self._parser.buffer:
                    requests = (requests or turns.visit) - 1
                    if not requests and not self._busy:
                        self._queue(None if self._asks_to_write() else Lane.AHEAD)
                        break
        except Exception:
            log.exception(_NOT_SERVED, self.context.remote_ip)
            self.abort()
        finally:
            self._parsing = self._queued
        if self._ended and self._dropped is None and not self._is_held_up():
            # All that the client has asked is answered; the rest of a request will not come.
            self._close()
        elif self._paused and self._transport is not None:
            self._read_on()
        else:
            self._rest()

    @property
    def _busy(self) -> bool:
        """Whether a request is being answered."""
        return self.stage >= ANSWERING

    def _rest(self) -> None:
        """Be at rest, if nothing stands between the connection and its next request."""
        if (
            self.stage == _OPEN
            and self.keep_alive
            and self.writable
            and not (self._parser.buffer or self._ended or self._reserved or self._server.stopping)
            and self._message is None
            and self._dropped is None
            and self._transport is not None
        ):
            self.stage = _AT_REST
            self.is_plain = True
            self.http10 = False

    def _is_held_up(self) -> bool:
        """Whether something else has to happen before the next request is looked at."""
        return self._busy or self._queued or not self.writable

    def _read_on(self) -> None:
        """Read again, if what has been read is little or the rest of a request is missing."""
        held_up = self._is_held_up()
        if self._transport is None or (held_up and len(self._parser.buffer) > _AHEAD_BYTES_MAX):
            return
        self._paused = False
        self._release_ahead()
        self._transport.resume_reading()
        if len(self._parser.buffer) > _UNCOUNTED_BYTES_MAX:
            self._count_ahead()

    def _waits_for_turn(self) -> bool:
        """Wait for another turn, unless this one takes a write besides; return whether it waits.

        What is not a request yet waits for its rest instead, not for a turn.
        """
        turns = self._server.turns
        if self._message is None and not self._find_head():
            return True
        if self._asks_to_write() and turns.takes_write():
            return False
        self._queue()
        return True

    def _asks_to_write(self) -> bool:
        return self._message is None and self._parser.is_write

    def _queue(self, lane: Lane | None = None) -> None:
        """Wait for a turn, in the lane of what has been read unless another is named."""
        if lane is None:
            lane = Lane.READS if self._message is None else Lane.BODIES
            if self._asks_to_write():
                lane = Lane.WRITES
        self._queued = True
        self._server.turns.wait(self, lane)

    def take_turn(self) -> None:
        """Serve one request, or one piece of a body."""
        self._queued = False
        self._parse(1)

    def _read_head(self) -> bool:
        """Serve one request that has come whole, or read a head; return whether to go on."""
        server, parser = self._server, self._parser
        before = parser.buffer
        request = parser.take_whole()
        if request is None:
            return self._read_any_head()
        self.is_plain = self.keep_alive = True
        self.http10 = False
        answer = server.delegate.serve_whole(self, request)
        if answer is None:
            parser.put_back(before)
            return self._read_any_head()
        if answer:
            self._write_whole(answer)
            return True
        # It counts otherwise: as a write, which has its own bound in a turn, or by `begin`.
        server.turns.left += 1
        if parser.buffer or self._ended:
            self.stage |= _LOOK
        return True

    def _read_any_head(self) -> bool:
        self.is_plain = False
        if not self._find_head():
            return False
        server, parser = self._server, self._parser
        if parser.is_costly and not server.turns.takes_slow():
            self._queue(Lane.SLOW)
            return False
        server.turns.left -= LONG_WAY
        request = parser.take_head()
        if isinstance(request, Refusal):
            self.reject(*request)
            return False
        return self._start(request)

    def _find_head(self) -> bool:
        """Return whether a head has come; refuse the client, or wait for the rest, if not."""
        found = self._parser.find_head()
        if isinstance(found, Refusal):
            if found is SPOKE_TLS:
                self._note_tls()
            self.reject(*found)
            return False
        if not found and self._parser.buffer and self.deadline != self._head_deadline:
            # Its first bytes: those that follow do not prolong the time.
            self.deadline = self._server.now + self._server.limits.header_timeout_s
            self._head_deadline = self.deadline
        return found

    def _note_tls(self) -> None:
        if self._server.refuses_tls():
            log.warning(
                "%s spoke TLS to %s, where http:// is served%s",
                shown_address(self._transport),
                shown_address(self._transport, "sockname"),
                self._server.refuses_tls.kept_back(),
            )

    def _start(self, request: Request) -> bool:
        """Serve a request whose head has come; return whether to go on."""
        server = self._server
        self.http10 = request.http10
        self.keep_alive = request.keep_alive
        if self._reserved:
            if request.target.partition("?")[0] not in _RESERVED_TARGETS:
                self.turn_away()
                return False
            server.reserve.pop(self, None)
            self.keep_alive = False
        if request.refusal is not None:
            self.reject(*request.refusal)
            return False
        message = self._message = server.delegate.start_request(self)
        self.content_type = request.block.content_type
        version = "HTTP/1.0" if request.http10 else "HTTP/1.1"
        line = httputil.RequestStartLine(request.method, request.target, version)
        message.headers_received(line, request.block.headers)
        if self._message is not message or self._busy or self._dropped is not None:
            return True
        return self._begin_body(message)

    def _begin_body(self, message: httputil.HTTPMessageDelegate) -> bool:
        """Take the body, now that the head has been accepted; return whether to go on."""
        parser = self._parser
        if not parser.body_left:
            self._complete(message)
            return True
        if parser.expects:
            parser.expects = False
            self.send(_CONTINUE)
        self.deadline = self._server.now + self._server.limits.body_timeout_s
        return not parser.buffer or self._read_body()

    def wait(self) -> None:
        """Leave the body of the present request unread until `proceed` is called."""
        self.stage = _BUSY
        self.deadline = inf

    def proceed(self, message: httputil.HTTPMessageDelegate) -> None:
        """Take the body of a request, unless that has been answered meanwhile."""
        if self._message is message and self._transport is not None:
            self.stage = _OPEN
            self._begin_body(message)
            if not self._parsing:
                self._parse()

    def _read_body(self) -> bool:
        """Hand on what there is of the body; return whether to go on."""
        message, parser, turns = self._message, self._parser, self._server.turns
        assert message is not None
        data = parser.read_body()
        if isinstance(data, Refusal):
            self.reject(*data)
            return False
        if parser.has_more:
            turns.left -= MANY_CHUNKS
        turns.left -= len(data) >> UNIT_BYTES_LOG2
        if data:
            message.data_received(data)
        if self._dropped is not None:
            return False
        if parser.body_left:
            return parser.has_more
        if message is _SKIPPED:
            self._message = None
            self.deadline = self._server.idle_deadline
        else:
            self._complete(message)
        return True

    def _complete(self, message: httputil.HTTPMessageDelegate) -> None:
        if self._message is not message:
            return
        self.stage = _BUSY
        self.deadline = inf
        message.finish()

    def _framed(self, chunk: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._written_chunked else chunk

    def _written(self) -> asyncio.Future[None]:
        done: asyncio.Future[None] = self._server.loop.create_future()
        done.set_result(None)
        return done


def _nothing() -> int:
    return 0

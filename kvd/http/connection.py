"""HTTP/1.1 connections: the life of one, from its transport's events to its requests.

A connection is one object of four layers, each of which knows those below it only:

    Connection      the transport's events, what is received ahead, time limits    (this module)
    RequestLoop     one request after another, by turns                            request_loop
    Closable        refusals and the end                                           closing
    ResponseWriter  responses, no faster than they are read                        sending

They are base classes because the calls between parts would cost more than the rest of a short
request. `stage` says where the connection is in its life, `kvd.http.stage` what may follow.

Invariants:

- One request at a time: the next one is not parsed before the response to this one is complete.
- While a connection is at rest nothing is due before its next request, which may be served from the
  read buffer. Any event but a plain request ends the rest first.
- Unparsed input and unsent output are bounded; beyond the bounds nothing is read.
- A response to a closed connection is dropped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus
from math import inf
from typing import cast

from kvd.http.peer import peer_of
from kvd.http.receiving import SMALL_BYTES
from kvd.http.request_loop import NOT_SERVED, SKIPPED, RequestLoop
from kvd.http.sending.response_writer import LARGE_BYTES
from kvd.http.server import TOO_MUCH, HttpServer
from kvd.http.stage import (
    ANSWERING,
    AT_REST,
    BUSY,
    CLOSED,
    CLOSING,
    DISTURBED,
    QUEUED,
    READING,
    STREAMING,
)
from kvd.limits import crowd
from kvd.limits.memory_budget import MemoryBudget
from kvd.limits.turns import UNIT_S

__all__ = ["ANSWERING", "LARGE_BYTES", "Connection", "ServeWhole"]

log = logging.getLogger(__name__)

# Limit of unparsed input behind the present request; beyond it reading pauses.
_AHEAD_BYTES_MAX = 16 << 10
# Unparsed input up to this size is not counted.
_UNCOUNTED_BYTES_MAX = 4 << 10
# Limit of unsent output in the event loop, per connection; beyond it `pause_writing` is called.
_WRITE_BUFFER_BYTES = 32 << 10
# Time for a connection beyond the limit of connections to send its request.
_RESERVE_S = 2.0

ServeWhole = Callable[["Connection", bytes], bytes | None]


class Connection(RequestLoop, asyncio.BufferedProtocol):
    """One client connection.

    Attributes:
        was_wrong: a password that came on the connection was wrong.
    """

    __slots__ = ("was_wrong",)

    def __init__(self, server: HttpServer) -> None:
        super().__init__(server)
        self.was_wrong = False

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to serve, unless there are too many connections."""
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
            self._reserved = True
            # The short way does not look at that.
            self._parser.decline_whole()
            self.deadline = server.loop.time() + _RESERVE_S
            server.hear_beyond_limit(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the read buffer of all connections: its content is taken before the next read."""
        return self._server.turns.lent

    def buffer_updated(self, nbytes: int) -> None:
        """Handle received bytes: serve the requests that they complete."""
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
                # The process edge of a request: a bug in serving one client must not end others.
                log.exception(NOT_SERVED, self.context.remote_ip)
                self.abort()
                return
        self._take(data)

    def _take(self, data: bytes) -> None:
        """Parse received bytes: a part of a request, or several."""
        if self.stage >= CLOSING:
            self._drop(data)
            return
        self.stage = DISTURBED[self.stage]
        if self._intake.ahead:
            self._release_ahead()
        parser = self._parser
        parser.feed(data)
        # Whether a head is complete is checked without waiting for a turn: clients that send heads
        # byte by byte would fill the lane of complete requests.
        if not (self.deadline == self._head_deadline and parser.is_head_unfinished):
            self.serve_received()
        if len(parser.buffer) > _UNCOUNTED_BYTES_MAX:
            self._count_ahead()

    def eof_received(self) -> bool:
        """Keep the connection open for pending responses, but not for a watch."""
        self._ended = True
        self.stage = DISTURBED[self.stage]
        if self.stage >= STREAMING:
            return False
        self.serve_received()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop everything: the connection is closed."""
        self.stage = CLOSED
        self._transport = None
        self.file = 0
        self.deadline = inf
        message, callback = self._message, self.on_close
        self._forget_received()
        self._leave()
        self._leave_reserve()
        self._server.crowd.leaves(self.address)
        self._server.sending.reads(self)
        self._release_request()
        self._clear_outbox()
        self._after_outbox = self._on_writable = self.on_close = None
        if message is not None:
            message.on_connection_close()
        if callback is not None:
            callback()

    def _leave(self) -> None:
        self._server.connections.discard(self)

    def _leave_reserve(self) -> None:
        self._server.reserve.pop(self, None)

    # For delegates that serve whole requests, and messages

    @property
    def memory(self) -> MemoryBudget:
        """The memory budget of requests and responses."""
        return self._server.memory

    def __call__(self, outcome: object) -> None:
        """Answer the present request with its outcome, which the delegate renders."""
        self._server.delegate.answer(self, outcome)

    def reply(self, answer: bytes) -> bool:
        """Send a whole response and be at rest, if nothing else is due; otherwise do nothing.

        Returns:
            Whether it was sent. If not, the caller uses `respond` or another method.
        """
        if self.stage is not ANSWERING:
            return False
        # Before the write, which may call `pause_writing`.
        self.stage = AT_REST
        self._transport.write(answer)  # type: ignore[union-attr]  # it is there
        self.deadline = self._server.idle_deadline
        return True

    def begin(self) -> None:
        """Begin a request that is answered neither by `serve_whole` nor by `reply`."""
        self.stage = BUSY
        self.deadline = inf
        self._server.turns.left -= 1

    def is_write(self) -> None:
        """Count the present request as a write, which has its own limit in a turn."""
        self._server.turns.left += 1

    def spend(self, seconds: float) -> None:
        """Charge the turn with the time of an expensive request."""
        self._server.turns.left -= int(seconds / UNIT_S)

    # Input: counted; reading pauses beyond the limit

    def _is_held_up(self) -> bool:
        """Whether the next request cannot be parsed yet."""
        return self.stage > READING or not self.writable

    def _count_ahead(self) -> None:
        """Count unparsed input, and pause reading if the next request cannot be parsed yet."""
        if self.stage >= CLOSING or self._transport is None:
            return
        size = len(self._parser.buffer)
        held_up = self._is_held_up()
        if held_up and size <= _AHEAD_BYTES_MAX:
            return
        has_room = self._intake.count_ahead(self, size)
        if held_up:
            if not has_room and not self._parser.body_left:
                # No refusal: it would precede the response to the present request.
                self._server.rejected[TOO_MUCH] += 1
                self.abort()
            elif not self._paused:
                self._paused = True
                self._transport.pause_reading()
        elif not has_room:
            self.give_up()

    def _read_on(self) -> None:
        too_much = self._is_held_up() and len(self._parser.buffer) > _AHEAD_BYTES_MAX
        if self._transport is None or too_much:
            return
        self._paused = False
        self._release_ahead()
        self._transport.resume_reading()
        if len(self._parser.buffer) > _UNCOUNTED_BYTES_MAX:
            self._count_ahead()

    def _release_ahead(self) -> None:
        self._intake.release_ahead(self)

    def _release_request(self) -> None:
        self._intake.release(self)

    def hold(self, size: int) -> bool:
        """Count bytes that are kept until the response; return whether there is room for them."""
        return self._intake.hold(self, size)

    def hold_piece(self, size: int) -> bool:
        """Count a piece of a body that is kept; without room, reading waits.

        Returns:
            Whether the piece may be kept.
        """
        if self.hold(size):
            return True
        if self._parser.body_left:
            self.wait()
            self._server.receiving.wait(self)
            return True
        # A large body is not refused for its last piece.
        return self._intake.held > SMALL_BYTES

    @property
    def held_bytes(self) -> int:
        """Counted bytes of the present request and behind it."""
        return self._intake.held + self._intake.ahead

    @property
    def is_receiving(self) -> bool:
        """Whether a request is incomplete."""
        is_begun = self._message is not None or bool(self._parser.buffer)
        return is_begun and not self._is_held_up()

    def go_on(self) -> None:
        """Read the rest of a body that has waited for room."""
        if self._message is not None:
            self.proceed(self._message)

    def give_up(self) -> None:
        """Refuse the present request: there is no room for it."""
        message = self._message
        if self.stage is BUSY:
            self.stage = READING
        self._refuse(TOO_MUCH, HTTPStatus.SERVICE_UNAVAILABLE, "too much is sent at once")
        self._release_request()
        if message is not None:
            message.on_connection_close()

    # Limits of time and number, and the end of the server

    @property
    def state(self) -> crowd.State:
        """State of the connection, for the choice of one to close, and since when."""
        limits = self._server.limits
        if self.stage is CLOSING:
            return crowd.CLOSING, 0.0
        if not self.flows and self._transport is not None:
            return crowd.UNREAD, self._server.sending.stalled_since(self)
        if self._is_held_up() or self._reserved:
            return crowd.BUSY
        if self._message is not None:
            return crowd.BODY, self.deadline - limits.body_timeout_s
        if self._parser.buffer:
            return crowd.HEAD, self.deadline - limits.header_timeout_s
        # `keep_alive` is false before the first request.
        kind = crowd.IDLE if self.keep_alive else crowd.SILENT
        return kind, self.deadline - limits.idle_timeout_s

    @property
    def is_asked(self) -> bool:
        """Whether a request is pending and its client reads; a watch does not count."""
        if not self.writable or self.stage >= STREAMING:
            return False
        return self.stage >= QUEUED or self._message is not None or bool(self._parser.buffer)

    def stop(self) -> None:
        """Close the connection, unless a request is being answered."""
        if self.stage > QUEUED:
            return
        if self._message is SKIPPED or (self._message is None and not self._parser.buffer):
            self.linger()
        else:
            self.reject(HTTPStatus.SERVICE_UNAVAILABLE, "stopping")

    def expire(self) -> None:
        """Close the connection, or refuse its request: the deadline has passed."""
        if self.stage is CLOSING or self._message is SKIPPED:
            self.abort()
        elif self.stage > QUEUED:
            return  # responses have no deadline; this is that of the request before
        elif self._reserved:
            self.turn_away()
        elif self._parser.buffer or self._message:
            self.reject(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self._server.idle_closed += 1
            self.abort()

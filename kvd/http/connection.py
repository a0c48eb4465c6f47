"""HTTP/1.1 connections: the life of one, from its transport's events to its requests.

A connection is one object of four layers, each of which knows those below it only:

    Connection      the transport's events, what is received ahead, time limits    (this module)
    RequestLoop     one request after another, by turns                            request_loop
    Closable        refusals and the end                                           closing
    ResponseWriter  responses, no faster than they are read                        sending

They are base classes because the calls between parts would cost more than the rest of a short
request. `stage` says where the connection is in its life, `kvd.http.stage` what may follow.

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

# What may wait behind the request that is being served before the connection is not read any more.
_AHEAD_BYTES_MAX = 16 << 10
# What a client may have begun to ask without being counted.
_UNCOUNTED_BYTES_MAX = 4 << 10
# What an event loop keeps of an answer for a client that reads slowly, before it is told to wait.
_WRITE_BUFFER_BYTES = 32 << 10
# How long a connection beyond the limit of connections is heard.
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
            self._reserved = True
            # The short way does not look at that.
            self._parser.decline_whole()
            self.deadline = server.loop.time() + _RESERVE_S
            server.hear_beyond_limit(self)

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
                log.exception(NOT_SERVED, self.context.remote_ip)
                self.abort()
                return
        self._take(data)

    def _take(self, data: bytes) -> None:
        """Take bytes the long way: they may be a part of a request, or several."""
        if self.stage >= CLOSING:
            self._drop(data)
            return
        self.stage = DISTURBED[self.stage]
        if self._intake.ahead:
            self._release_ahead()
        parser = self._parser
        parser.feed(data)
        # An unfinished head does not wait for a turn to be found so: clients that send head after
        # head byte by byte would fill the lane of those that have asked for something.
        if not (self.deadline == self._head_deadline and parser.is_head_unfinished):
            self.serve_received()
        if len(parser.buffer) > _UNCOUNTED_BYTES_MAX:
            self._count_ahead()

    def eof_received(self) -> bool:
        """Keep the connection for the answers that are due; a watch ends with its client."""
        self._ended = True
        self.stage = DISTURBED[self.stage]
        if self.stage >= STREAMING:
            return False
        self.serve_received()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop everything; whoever still answers, answers nobody."""
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
        """What responses take together."""
        return self._server.memory

    def __call__(self, outcome: object) -> None:
        """Answer the present request by its outcome, which the delegate understands."""
        self._server.delegate.answer(self, outcome)

    def reply(self, answer: bytes) -> bool:
        """Send a whole answer and be at rest, if nothing but that is due; else do nothing.

        Returns:
            Whether it was sent. If not, `respond` sends it, or whatever else is due.
        """
        if self.stage is not ANSWERING:
            return False
        # First: to write may end it.
        self.stage = AT_REST
        self._transport.write(answer)  # type: ignore[union-attr]  # it is there
        self.deadline = self._server.idle_deadline
        return True

    def begin(self) -> None:
        """Begin a request that `serve_whole` does not answer by itself, nor by `reply`."""
        self.stage = BUSY
        self.deadline = inf
        self._server.turns.left -= 1

    def is_write(self) -> None:
        """Let the present request count as a write, which has its own bound in a turn."""
        self._server.turns.left += 1

    def spend(self, seconds: float) -> None:
        """Count time that the present request has taken, far more than others do, for the turn."""
        self._server.turns.left -= int(seconds / UNIT_S)

    # What is received: counted, and not read any more where it is too much

    def _is_held_up(self) -> bool:
        """Whether something else has to happen before the next request is looked at."""
        return self.stage > READING or not self.writable

    def _count_ahead(self) -> None:
        """Count what has been read and cannot be served yet, and read no more for the moment."""
        if self.stage >= CLOSING or self._transport is None:
            return
        size = len(self._parser.buffer)
        held_up = self._is_held_up()
        if held_up and size <= _AHEAD_BYTES_MAX:
            return
        has_room = self._intake.count_ahead(self, size)
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
        """Count what is kept until the request is answered; return whether there is room for it."""
        return self._intake.hold(self, size)

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
        return self._intake.held > SMALL_BYTES

    @property
    def held_bytes(self) -> int:
        """What is kept of a request."""
        return self._intake.held + self._intake.ahead

    @property
    def is_receiving(self) -> bool:
        """Whether a part of a request has come, and another has not."""
        is_begun = self._message is not None or bool(self._parser.buffer)
        return is_begun and not self._is_held_up()

    def go_on(self) -> None:
        """Take the rest of a body that had to wait for room."""
        if self._message is not None:
            self.proceed(self._message)

    def give_up(self) -> None:
        """Refuse what has come of a request: there is no room for it."""
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
        """What the client lets the server wait for, and since when."""
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
        # Between requests it is kept alive, before the first one it is not yet.
        kind = crowd.IDLE if self.keep_alive else crowd.SILENT
        return kind, self.deadline - limits.idle_timeout_s

    @property
    def is_asked(self) -> bool:
        """Whether a request has begun to come and is not answered, and its client would read that.

        Watches are no such request.
        """
        if not self.writable or self.stage >= STREAMING:
            return False
        return self.stage >= QUEUED or self._message is not None or bool(self._parser.buffer)

    def stop(self) -> None:
        """Ask the client to leave now; if it is being answered, after that."""
        if self.stage > QUEUED:
            return
        if self._message is SKIPPED or (self._message is None and not self._parser.buffer):
            self.linger()
        else:
            self.reject(HTTPStatus.SERVICE_UNAVAILABLE, "stopping")

    def expire(self) -> None:
        """The client has taken too long."""
        if self.stage is CLOSING or self._message is SKIPPED:
            self.abort()
        elif self.stage > QUEUED:
            return  # no time is set for the answer: this is that of the request before
        elif self._reserved:
            self.turn_away()
        elif self._parser.buffer or self._message:
            self.reject(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self._server.idle_closed += 1
            self.abort()

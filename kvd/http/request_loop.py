"""Request loop of one connection: serves its requests one by one, in order, by turns.

A request goes the short way, if its bytes are whole and its header block is known for that: the
delegate is given the bytes. Any other goes the long way, by Tornado's interface: an
`HTTPMessageDelegate` is given the head, pieces of the body and the end.

Invariants:

- The next request is not parsed before the response to this one is complete.
- In a turn of the event loop a connection is served a bounded number of requests; with more it
  waits for its next turn (`kvd.limits.turns`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import inf

from tornado import httputil

from kvd.http.closing import Closable
from kvd.http.intake import Intake
from kvd.http.parsing.request_parser import SPOKE_TLS, Refusal, Request, RequestParser
from kvd.http.peer import shown_address
from kvd.http.server import HttpServer
from kvd.http.stage import AT_REST, BUSY, CLOSING, DISTURBED, QUEUED, READING
from kvd.limits.turns import LONG_WAY, MANY_CHUNKS, UNIT_BYTES_LOG2, Lane

log = logging.getLogger(__name__)

# Beyond the limit of connections only these are served.
_RESERVED_TARGETS = ("/health", "/readyz", "/livez", "/metrics")
# Receives the rest of a body whose request was answered before its end.
SKIPPED = httputil.HTTPMessageDelegate()
NOT_SERVED = "a request of %s could not be served"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class RequestLoop(Closable):
    """A connection that serves requests; `kvd.http.connection` is made of it.

    Attributes:
        content_type: the Content-Type of the present request.
        on_close: called when the client leaves before the present request is answered.
    """

    __slots__ = (
        "_head_deadline", "_intake", "_is_serving", "_message", "_parser", "_reserved",
        "content_type", "on_close",
    )  # fmt: skip

    def __init__(self, server: HttpServer) -> None:
        super().__init__(server)
        self._parser = RequestParser(server.header_cache, server.limits.header_bytes_max)
        self._intake = Intake(server.receiving)
        # What receives the present request, if it goes the long way.
        self._message: httputil.HTTPMessageDelegate | None = None
        # `serve_received` is being executed.
        self._is_serving = False
        # The connection is beyond the limit: only `_RESERVED_TARGETS` are served.
        self._reserved = False
        # The deadline that was set for the head which has begun to come; older ones are over.
        self._head_deadline = inf
        self.content_type = ""
        self.on_close: Callable[[], object] | None = None

    # The loop

    def serve_received(self, requests: int = 0) -> None:
        """Serve what was received, within this turn: at most `requests`, or a visit's number."""
        if self._is_serving or self.stage is not READING:
            return
        turns, parser = self._server.turns, self._parser
        self._is_serving = True
        try:
            while self.stage is READING and self.writable and parser.buffer:
                if turns.left <= 0 and self._waits_for_turn():
                    break
                turns.left -= 1
                if not (self._read_head() if self._message is None else self._read_body()):
                    break
                if parser.buffer:
                    requests = (requests or turns.visit) - 1
                    if not requests and self.stage is READING:
                        self._queue(None if self._asks_to_write() else Lane.AHEAD)
        except Exception:
            log.exception(NOT_SERVED, self.context.remote_ip)
            self.abort()
        finally:
            self._is_serving = False
        if self._ended and self.stage is READING and self.writable:
            # All complete requests are answered; the rest of an incomplete one will not come.
            self.close()
        elif self._paused:
            self._read_on()
        else:
            self._rest()

    def _rest(self) -> None:
        """Be at rest, if nothing is due before the next request."""
        if (
            self.stage is READING
            and self.keep_alive
            and self.writable
            and not (self._parser.buffer or self._ended)
            and self._message is None
        ):
            self.stage = AT_REST
            self.http10 = False

    # What the layer above does

    def _read_on(self) -> None:
        """Resume reading, if little input is unparsed or a request is incomplete."""
        raise NotImplementedError

    def _release_request(self) -> None:
        """Stop counting the present request: nothing of it is kept."""
        raise NotImplementedError

    def _release_ahead(self) -> None:
        """Stop counting unparsed input."""
        raise NotImplementedError

    # Turns

    def _waits_for_turn(self) -> bool:
        """Wait for another turn, unless this one takes one more write; return whether it waits.

        An incomplete head waits for its rest, not for a turn.
        """
        if self._message is None and not self._find_head():
            return True
        if self._asks_to_write() and self._server.turns.takes_write():
            return False
        self._queue()
        return True

    def _asks_to_write(self) -> bool:
        return self._message is None and self._parser.is_write

    def _queue(self, lane: Lane | None = None) -> None:
        """Wait for a turn, in the lane of what was received unless another is named."""
        if lane is None:
            lane = Lane.READS if self._message is None else Lane.BODIES
            if self._asks_to_write():
                lane = Lane.WRITES
        self.stage = QUEUED
        self._server.turns.wait(self, lane)

    @property
    def address(self) -> str:
        """The client's address: the key of fair shares."""
        return self.context.network

    def take_turn(self) -> None:
        """Serve one request, or one piece of a body."""
        if self.stage is QUEUED:
            self.stage = READING
            self.serve_received(1)

    # Heads

    def _read_head(self) -> bool:
        """Serve one complete request the short way, or read a head; return whether to go on."""
        server, parser = self._server, self._parser
        before = parser.buffer
        request = parser.take_whole()
        if request is None:
            return self._read_any_head()
        self.keep_alive = True
        self.http10 = False
        answer = server.delegate.serve_whole(self, request)
        if answer is None:
            parser.put_back(before)
            return self._read_any_head()
        if answer:
            self._write_whole(answer)
            return True
        # It is charged elsewhere: as a write, which has its own limit in a turn, or by `begin`.
        server.turns.left += 1
        if parser.buffer or self._ended:
            self.stage = DISTURBED[self.stage]
        return True

    def _write_whole(self, answer: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(answer)
        self.deadline = self._server.idle_deadline

    def _read_any_head(self) -> bool:
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
        """Return whether a head is complete; if not, refuse the client or wait for the rest."""
        found = self._parser.find_head()
        if isinstance(found, Refusal):
            if found is SPOKE_TLS:
                self._note_tls()
            self.reject(*found)
            return False
        if not found and self._parser.buffer and self.deadline != self._head_deadline:
            # Set by the first bytes of a head: those that follow do not prolong it.
            self.deadline = self._server.now + self._server.limits.header_timeout_s
            self._head_deadline = self.deadline
        return found

    def _note_tls(self) -> None:
        if self._server.tls_warnings.allow():
            log.warning(
                "%s spoke TLS to %s, where http:// is served%s",
                shown_address(self._transport),
                shown_address(self._transport, "sockname"),
                self._server.tls_warnings.suppressed(),
            )

    # The long way

    def _start(self, request: Request) -> bool:
        """Serve a request by its head; return whether to go on."""
        server = self._server
        self.http10 = request.http10
        self.keep_alive = request.keep_alive and not server.stopping
        if self._reserved:
            if request.target.partition("?")[0] not in _RESERVED_TARGETS:
                self.turn_away()
                return False
            self._leave_reserve()
            self.keep_alive = False
        if request.refusal is not None:
            self.reject(*request.refusal)
            return False
        message = self._message = server.delegate.start_request(self)
        self.content_type = request.block.content_type
        version = "HTTP/1.0" if request.http10 else "HTTP/1.1"
        line = httputil.RequestStartLine(request.method, request.target, version)
        message.headers_received(line, request.block.headers)
        if self._message is not message or self.stage is not READING:
            return True
        return self._begin_body(message)

    def _begin_body(self, message: httputil.HTTPMessageDelegate) -> bool:
        """Read the body, now that the head is accepted; return whether to go on."""
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
        if self.stage < CLOSING:
            self.stage = BUSY
        self.deadline = inf

    def proceed(self, message: httputil.HTTPMessageDelegate) -> None:
        """Read the body of a request, unless that has been answered meanwhile."""
        if self._message is message and self.stage < CLOSING:
            self.stage = READING
            self._begin_body(message)
            self.serve_received()
            if self._paused:
                self._read_on()

    def _read_body(self) -> bool:
        """Hand on the received part of the body; return whether to go on."""
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
        if self.stage >= CLOSING:
            return False
        if parser.body_left:
            return parser.has_more
        if message is SKIPPED:
            self._message = None
            self.deadline = self._server.idle_deadline
        else:
            self._complete(message)
        return True

    def _complete(self, message: httputil.HTTPMessageDelegate) -> None:
        if self._message is not message:
            return
        self.stage = BUSY
        self.deadline = inf
        message.finish()

    # After the response

    def connection_header(self) -> bytes:
        """Decide whether the connection stays open; return the header line that says so."""
        if self._parser.body_left and not self._parser.is_rest_short:
            self.keep_alive = False
        if not self.keep_alive:
            return b"Connection: close\r\n"
        return b"Connection: keep-alive\r\n" if self.http10 else b""

    def done(self) -> None:
        """Go on with the next request, or close: the response is complete."""
        if self._intake.held:
            self._release_request()
        self._message = None
        self.on_close = None
        self._on_writable = None
        if self.stage >= CLOSING:
            return
        self.stage = READING
        if self._parser.body_left:
            # Answered before its end: the rest of the body is dropped.
            self._skip_rest()
        elif not self.keep_alive:
            self.close()
        else:
            self.deadline = self._server.idle_deadline
            if not self._parser.buffer and not self._ended:
                if self._paused:
                    self._read_on()
                self._rest()
            elif not self._is_serving:
                self.serve_received()

    def _skip_rest(self) -> None:
        if not self.keep_alive:
            self.linger()
            return
        self._message = SKIPPED
        self.serve_received()

    def _forget_whole_request(self) -> None:
        if self._intake.held and not self._parser.body_left:
            self._release_request()

    def _forget_received(self) -> None:
        self._parser.clear()
        self._release_ahead()
        self._message = None

"""The end of a connection: refusals, lingering, closing, aborting.

A client that is refused may still be sending. If its connection were closed at once, the kernel
would reset it, and the client might never read the response. So the sending half is closed first,
and further input is read and dropped, up to a limit of size and time (lingering).
"""

from __future__ import annotations

import logging
from contextlib import suppress
from http import HTTPStatus
from math import inf

from kvd.http.sending.response_writer import ResponseWriter
from kvd.http.server import REASONS, TOO_MANY, HttpServer
from kvd.http.stage import CLOSED, CLOSING, DISTURBED

log = logging.getLogger(__name__)

# Limits of lingering. The largest body is smaller.
_DROPPED_BYTES_MAX = 16 << 20
_LINGER_S = 2.0


class Closable(ResponseWriter):
    """A connection that can be closed; `kvd.http.connection` is made of it.

    Attributes:
        deadline: when the client has taken too long, on the loop's clock.
    """

    __slots__ = ("_dropped_bytes", "_paused", "deadline")

    def __init__(self, server: HttpServer) -> None:
        super().__init__(server)
        self._dropped_bytes = 0
        # The transport does not read.
        self._paused = False
        self.deadline = inf

    # What the layers above do

    def _forget_received(self) -> None:
        """Drop unparsed input and the present request."""
        raise NotImplementedError

    def _leave_reserve(self) -> None:
        """Leave the reserve of connections beyond the limit."""
        raise NotImplementedError

    def _leave(self) -> None:
        """Leave the server's connections."""
        raise NotImplementedError

    # Ends

    def answer_no_more(self) -> None:
        """Make the present response, or the next one, the last."""
        self.keep_alive = False
        self.stage = DISTURBED[self.stage]

    def close(self) -> None:
        """Close once everything is sent; drop further input."""
        if self._server.stopping:
            # The last response did not announce the end: what the client has sent meanwhile must
            # not reset the connection.
            self.linger()
            return
        self.stage = CLOSING
        self._forget_received()
        # The transport waits until the client has read, which may never happen.
        self.deadline = self._server.now + self._server.limits.write_timeout_s
        if self._transport is not None:
            self._transport.close()

    def linger(self) -> None:
        """Close the sending half, and wait for the client to close."""
        if self._transport is None:
            return
        self.stage = CLOSING
        self._forget_received()
        self.deadline = self._server.loop.time() + _LINGER_S
        if self._transport.can_write_eof():
            with suppress(OSError):  # from asyncio, if the client has reset the connection
                self._transport.write_eof()
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    def _drop(self, data: bytes) -> None:
        """Drop input of a connection that is closing."""
        self._dropped_bytes += len(data)
        if self._dropped_bytes > _DROPPED_BYTES_MAX:
            self.abort()

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
        """Refuse to serve the client: there are too many connections.

        The client is given time to read that, if there are not too many of these as well.
        """
        server = self._server
        self._leave_reserve()
        if server.warnings.allow():
            log.warning(
                "too many connections: %d are open, further ones are turned away%s",
                server.limits.connections_max,
                server.warnings.suppressed(),
            )
        self._refuse(TOO_MANY, HTTPStatus.SERVICE_UNAVAILABLE, "too many connections")
        if server.excess > server.limits.lingering_max and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close the connection at once; drop unsent output."""
        self.stage = CLOSED
        self._leave()
        transport, self._transport = self._transport, None
        self.file = 0
        self._clear_outbox()
        if transport is not None:
            transport.abort()

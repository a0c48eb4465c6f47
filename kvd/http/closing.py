"""The end of a connection: refusals, lingering, closing, aborting.

A client that is refused may still be sending. If its connection was closed at once, the kernel
would reset it, and the client might never read why. So the sending half is closed first, and what
still comes is read and dropped, up to a size and for a time.
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

# How much is read and dropped after a refusal, and for how long. The largest body is less.
_DROPPED_BYTES_MAX = 16 << 20
_LINGER_S = 2.0


class Closable(ResponseWriter):
    """A connection, as far as its end goes.

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
        """Drop what was received and not served, and the present request."""
        raise NotImplementedError

    def _leave_reserve(self) -> None:
        """Be no longer one of the connections that are served beyond the limit."""
        raise NotImplementedError

    def _leave(self) -> None:
        """Be no longer one of the server's connections."""
        raise NotImplementedError

    # Ends

    def answer_no_more(self) -> None:
        """Make the present response, or the next one, the last."""
        self.keep_alive = False
        self.stage = DISTURBED[self.stage]

    def close(self) -> None:
        """Send what is to be sent, and close; what is still received is dropped."""
        if self._server.stopping:
            # The client was not told in time: what it has sent meanwhile must not reset it.
            self.linger()
            return
        self.stage = CLOSING
        self._forget_received()
        # Closing waits until the client has read, which it may never do.
        self.deadline = self._server.now + self._server.limits.write_timeout_s
        if self._transport is not None:
            self._transport.close()

    def linger(self) -> None:
        """Close, but not before the client has had a chance to read what was sent."""
        if self._transport is None:
            return
        self.stage = CLOSING
        self._forget_received()
        self.deadline = self._server.loop.time() + _LINGER_S
        if self._transport.can_write_eof():
            with suppress(OSError):  # asyncio lets it through where the client has reset this
                self._transport.write_eof()
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    def _drop(self, data: bytes) -> None:
        """Drop what a client sends that is to be gone."""
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
        """Drop the connection at once; what is still sent goes nowhere."""
        self.stage = CLOSED
        self._leave()
        transport, self._transport = self._transport, None
        self.file = 0
        self._clear_outbox()
        if transport is not None:
            transport.abort()

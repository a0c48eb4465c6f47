"""TLS connections: OpenSSL between a socket and an HTTP connection.

    socket  <-- bytes -->  asyncio transport  <-->  TlsConnection  <-- HTTP -->  Connection

A TlsConnection is the protocol of the socket's transport and the transport of the HTTP connection.
asyncio has such a layer, but when a handshake fails it drops the connection without the alert that
tells the client why, and logs nothing. Here the client gets the alert (or, if it spoke plain HTTP,
a response in plain HTTP), the log gets one line, and a port may serve both HTTP and HTTPS, as in
etcd. TLS itself is OpenSSL's work (`kvd.net.tls_session`).

Invariants:

- The connection inside is made when the handshake is done, and lost when the socket is.
- A bounded number of records is decrypted at once; a connection with more waits for its turn.
"""

from __future__ import annotations

import asyncio
import ssl
from http import HTTPStatus
from typing import cast

from kvd.http.peer import peer_of, shown_address
from kvd.http.server import TOO_MUCH
from kvd.limits.crowd import BUSY, SILENT, State
from kvd.limits.turns import Lane
from kvd.net.certificates import common_name, is_for
from kvd.net.handshakes import Handshakes
from kvd.net.tls import plain_reason
from kvd.net.tls_session import PLAIN_BYTES_MAX
from kvd.net.tls_transport import TlsTransport

_HANDSHAKE_RECORD = 0x16
# So many records are decrypted at once, and at a visit. Clients that send a kilobyte or more in
# each never wait; a record costs 2 us, however short it is.
_RECORDS = 64
_RECORDS_PER_VISIT = 16
_RECORDS_PER_UNIT_LOG2 = 3
# What has been received and not decrypted is not counted up to this size.
_UNCOUNTED_BYTES_MAX = 4 << 10
_PLAIN_ANSWER = (
    f"HTTP/1.0 {HTTPStatus.BAD_REQUEST.value} {HTTPStatus.BAD_REQUEST.phrase}\r\n"
    "Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
    "Client sent an HTTP request to an HTTPS server.\n"
).encode()


class TlsConnection(TlsTransport, asyncio.BufferedProtocol):
    """One connection with TLS.

    Attributes:
        address: the client's address, by which shares are told apart.
    """

    __slots__ = (
        "_counted", "_handshakes", "_is_first", "_keeps_open", "_server", "_since", "_timer",
        "address",
    )  # fmt: skip

    def __init__(self, handshakes: Handshakes) -> None:
        super().__init__()
        self._handshakes = handshakes
        self._server = handshakes.server
        # How much is counted of what was received and not decrypted.
        self._counted = 0
        # Ends a handshake that takes too long.
        self._timer: asyncio.TimerHandle | None = None
        self._since = 0.0
        # No byte has been received.
        self._is_first = True
        # The answer of the connection inside to the end of input; None before that.
        self._keeps_open: bool | None = None
        self.address = ""

    # asyncio.BufferedProtocol, for the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the handshake, unless there are too many."""
        self._raw = cast(asyncio.Transport, transport)
        self.address = peer_of(transport).network
        loop = self._server.loop
        self._since = loop.time()
        self._timer = loop.call_later(self._server.limits.header_timeout_s, self._give_up)
        self._handshakes.enter(self)
        if self._server.stopping:
            self.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer that all connections share."""
        return self._server.turns.lent

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes from the socket."""
        data = bytes(self._server.buffer[:nbytes])
        if self._is_first:
            self._is_first = False
            if data[0] != _HANDSHAKE_RECORD:
                self._take_plain(nbytes)
                return
        self._session.receive(data)
        if not self._queued:
            self._take(_RECORDS)

    def take_turn(self) -> None:
        """Decrypt some of the records that had to wait."""
        self._queued = False
        self._take(_RECORDS_PER_VISIT)
        if not (self._queued or self._paused or self._raw is None or self._closing):
            self._raw.resume_reading()

    @property
    def gone(self) -> bool:
        """Whether the connection is closed or closing."""
        return self._raw is None or self._raw.is_closing()

    def _take(self, records: int) -> None:
        """Process complete records, at most so many of them."""
        if self._inside is None and not self._closing and self._session.has_record:
            # A step of a handshake costs as much as fifty reads.
            if not self._server.turns.takes_slow():
                self._queue(Lane.SLOW)
            elif self._shake():
                self._handshake_is_done()
        if self._inside is not None:
            self._decrypt(records)
        self._count()

    def _queue(self, lane: Lane) -> None:
        assert self._raw is not None
        self._raw.pause_reading()
        self._queued = True
        self._server.turns.wait(self, lane)

    # kvd.http.receiving.Sender, and kvd.limits.crowd.Member, until the handshake is done

    def _count(self) -> None:
        """Count what was received and not decrypted, if it is much."""
        size = self._session.received_bytes
        counted = size if size > _UNCOUNTED_BYTES_MAX else 0
        more, self._counted = counted - self._counted, counted
        if more > 0:
            if not self._server.receiving.take(self, more):
                self.give_up()
        elif more:
            if not counted:
                self._server.receiving.forget(self)
            self._server.receiving.give_back(-more)

    @property
    def held_bytes(self) -> int:
        """Counted bytes that were received and not decrypted."""
        return self._counted

    @property
    def is_receiving(self) -> bool:
        """Whether a record is incomplete."""
        return self._counted > 0 and not self._queued

    def go_on(self) -> None:
        """Do nothing: nothing here waits for room."""

    def give_up(self) -> None:
        """Drop the connection and what it has sent: there is no room for that."""
        self._server.rejected[TOO_MUCH] += 1
        self._session.forget_received()
        self._count()
        self.abort()

    @property
    def state(self) -> State:
        """State of the handshake, and since when."""
        if self._closing or self in self._handshakes.beyond:
            return BUSY
        return SILENT, self._since

    def eof_received(self) -> bool:
        """Handle the end of input, with or without an alert in TLS."""
        return self._end_of_input()

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the connection inside: the socket is closed."""
        self._handshake_over()
        self._raw = None
        self._session.forget_received()
        self._count()
        inside, self._inside = self._inside, None
        if inside is not None:
            inside.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pause the connection inside: the client does not read."""
        if self._inside is not None:
            self._inside.pause_writing()

    def resume_writing(self) -> None:
        """Resume the connection inside: the client reads again."""
        if self._inside is not None:
            self._inside.resume_writing()

    # The handshake

    def _shake(self) -> bool:
        """Go on with the handshake; return whether it is done."""
        session = self._session
        if session.ssl_object is None:
            self._handshakes.begin(self)
            session.begin(self._handshakes.tls.current_context())
        is_done = False
        try:
            is_done = session.shake()
        except ssl.SSLError as error:
            self._send()  # the alert
            self._fail(_reason(error))
        finally:
            self._send()
        return is_done

    def _handshake_is_done(self) -> None:
        """Make the connection inside, if the client's certificate allows it."""
        shaken = self._session.ssl_object
        assert shaken is not None
        self._handshake_over()
        config = self._handshakes.tls.config
        if config.trusted_ca_file:
            certificate = shaken.getpeercert() or {}
            if config.allowed_hostname and not is_for(certificate, config.allowed_hostname):
                self._fail(f"the client's certificate is not for {config.allowed_hostname}")
                return
            if config.names_users:
                self._common_name = common_name(certificate)
        inside = self._inside = self._handshakes.connect()
        inside.connection_made(self)

    def _fail(self, reason: str) -> None:
        self._complain(reason)
        self._session.forget_received()
        self._closing = True
        if self._raw is not None:
            self._raw.close()

    def _complain(self, reason: str) -> None:
        self._handshakes.warn(shown_address(self._raw), reason)

    def _give_up(self) -> None:
        if self._raw is not None:
            self._complain(f"no handshake in {self._server.limits.header_timeout_s:g} s")
            self.abort()

    def _handshake_over(self) -> None:
        self._handshakes.leave(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _take_plain(self, nbytes: int) -> None:
        """Serve a client that does not speak TLS, or refuse it."""
        raw = self._raw
        if raw is None:
            return
        if self._handshakes.speaks_plain:
            self._handshake_over()
            inside = self._handshakes.connect()
            raw.set_protocol(inside)
            inside.connection_made(raw)
            inside.buffer_updated(nbytes)  # they are still in the buffer that all share
            self._raw = None
            return
        self._handshakes.warn_of_plain(shown_address(self._raw))
        raw.write(_PLAIN_ANSWER)
        self._closing = True
        raw.close()

    # What is sent and received

    def _decrypt(self, records: int) -> None:
        """Decrypt up to so many records and hand on their content."""
        assert self._raw is not None
        session, buffer, size, left = self._session, self._server.buffer, 0, records
        ends = False
        try:
            while left and session.feed():
                if size > len(buffer) - PLAIN_BYTES_MAX:
                    size = self._hand_on(size)
                size += session.read(buffer[size:])
                left -= 1
        except ssl.SSLZeroReturnError:
            ends = True
        except ssl.SSLError:
            self.abort()
        self._server.turns.left -= (records - left) >> _RECORDS_PER_UNIT_LOG2
        self._hand_on(size)
        if ends:
            self._session.forget_received()
            if not self._end_of_input():
                self.close()
        elif self._raw.is_closing():
            self._session.forget_received()
        elif session.has_record:
            self._queue(Lane.BODIES)
        self._send()

    def _hand_on(self, size: int) -> int:
        """Give the connection inside so much of the buffer; return 0, what is left of it."""
        if size and self._inside is not None:
            self._inside.buffer_updated(size)
        return 0

    def _end_of_input(self) -> bool:
        """Pass on the end of input, once; return whether responses may still be sent."""
        if self._keeps_open is None and self._inside is not None:
            self._keeps_open = bool(self._inside.eof_received())
        return bool(self._keeps_open)


def _reason(error: ssl.SSLError) -> str:
    """Return OpenSSL's reason in plain words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the client's certificate was refused: {error.verify_message}"
    return plain_reason(error)

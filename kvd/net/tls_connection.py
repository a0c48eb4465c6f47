"""TLS between a socket and a connection: OpenSSL on memory, as `ssl.MemoryBIO` is meant for.

    socket  <-- bytes -->  asyncio transport  <-->  TlsConnection  <-- HTTP -->  http1.Connection

It is the protocol of the one and the transport of the other. asyncio's own layer would do, were it
not for what happens when a handshake fails: it drops the connection without the alert that tells
the client why, and without a word to us. Here the client gets the alert (or, if it spoke plain
HTTP, an answer in plain HTTP), the log gets one line, and a port may speak both HTTP and HTTPS, as
etcd's may. Nothing of TLS itself is done here.

Invariants:

- The connection inside is made when the handshake is done, and lost when the socket is.
- OpenSSL gets whole records only (RFC 8446 section 5.1), and small pieces of them: what it is given
  at once it keeps the memory of, for as long as there is the connection.
- A number of records is decrypted at once; a connection with more waits for its turn.
- OpenSSL's memory for a connection is taken when a record has come, not when a client connects.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any, cast

from kvd.http.connection import Connection
from kvd.http.peer import peer_of, shown_address
from kvd.http.server import TOO_MUCH, HttpServer
from kvd.limits.crowd import BUSY, SILENT, State
from kvd.limits.turns import Lane
from kvd.logs import Rarely
from kvd.net.certificates import common_name, is_for
from kvd.net.listeners import Listener
from kvd.net.tls import Tls, plain_reason

log = logging.getLogger(__name__)

# A client that goes wrong does so again and again.
_QUIET_S = 10.0
# So many may shake hands beyond the limit of connections, to be told of it in HTTP.
_BEYOND_LIMIT = 64
# So many handshakes may have begun: OpenSSL takes 45 KB for each, and 16 KB once it is done.
_BEGUN_MAX = 1024
_HANDSHAKE_RECORD = 0x16
# Type and version of a record, and its length, which is in the last two of these bytes.
_HEADER_BYTES = 5
# The largest record that is allowed; OpenSSL refuses a larger one by its header.
_RECORD_BYTES_MAX = _HEADER_BYTES + (16 << 10) + 2048
# So many records are decrypted at once, and at a visit. Clients that send a kilobyte or more in
# each never wait; a record costs 2 us, however short it is.
_RECORDS = 64
_RECORDS_PER_VISIT = 16
_RECORDS_PER_UNIT_LOG2 = 3
# What is in a record at most.
_PLAIN_BYTES_MAX = 16 << 10
# Pieces that OpenSSL is given, of what is received and of what is sent.
_RECEIVED_PIECE_BYTES = 4 << 10
_SENT_PIECE_BYTES = 8 << 10
# What has been received and not decrypted is not counted up to this size.
_UNCOUNTED_BYTES_MAX = 4 << 10
_PLAIN_ANSWER = (
    f"HTTP/1.0 {HTTPStatus.BAD_REQUEST.value} {HTTPStatus.BAD_REQUEST.phrase}\r\n"
    "Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
    "Client sent an HTTP request to an HTTPS server.\n"
).encode()


class TlsListener:
    """What the connections of one listener share.

    Attributes:
        tls: certificates and settings.
        server: the connections, and what they share.
        connect: makes the connection inside.
        url: what a client should have used.
        speaks_plain: whether a client may also do without TLS.
        begun: the connections whose handshake has begun and is not done, the oldest first.
        beyond: those beyond the limit of connections, the oldest first.
    """

    def __init__(
        self,
        tls: Tls,
        server: HttpServer,
        connect: Callable[[], Connection],
        listener: Listener,
    ) -> None:
        self.tls = tls
        self.server = server
        self.connect = connect
        self.url = next(url for url in listener.urls if url.is_tls)
        self.speaks_plain = listener.speaks_plain
        self.begun: dict[TlsConnection, None] = {}
        self.beyond: dict[TlsConnection, None] = {}
        self._plain = Rarely(_QUIET_S)
        self._failed = Rarely(_QUIET_S)

    def __call__(self) -> TlsConnection:
        """Return the protocol of a new connection."""
        return TlsConnection(self)

    def stop(self) -> None:
        """Give up the handshakes that are not done."""
        for connection in list(self.server.shaking):
            connection.abort()

    def enters(self, connection: TlsConnection) -> None:
        """Let a new connection shake hands; the oldest beyond the limit is given up for it."""
        server = self.server
        server.shaking[connection] = None
        server.crowd.enters(connection.address)
        if not server.has_room(connection):
            _push(self.beyond, connection, _BEYOND_LIMIT)

    def begins(self, connection: TlsConnection) -> None:
        """Let a handshake begin; the oldest of too many is given up for it."""
        _push(self.begun, connection, _BEGUN_MAX)

    def leaves(self, connection: TlsConnection) -> None:
        """It is done, or will not be."""
        if connection in self.server.shaking:
            del self.server.shaking[connection]
            self.server.crowd.leaves(connection.address)
            self.beyond.pop(connection, None)
            self.begun.pop(connection, None)

    def complain_of_plain(self, peer: str) -> None:
        """Log that a client spoke no TLS."""
        if self._plain():
            log.warning("%s spoke no TLS to %s%s", peer, self.url, self._plain.kept_back())

    def complain(self, peer: str, reason: str) -> None:
        """Log that a handshake failed."""
        if self._failed():
            log.warning(
                "no TLS with %s at %s: %s%s", peer, self.url, reason, self._failed.kept_back()
            )


class TlsConnection(asyncio.BufferedProtocol, asyncio.Transport):
    """One connection that is secured."""

    __slots__ = (
        "_closing", "_common_name", "_counted", "_encrypted", "_fed", "_incoming", "_inside",
        "_is_first", "_keeps_open", "_listener", "_outgoing", "_paused", "_queued", "_raw",
        "_record_left", "_server", "_since", "_ssl", "_timer", "address",
    )  # fmt: skip

    def __init__(self, listener: TlsListener) -> None:
        super().__init__()
        self._listener = listener
        self._server = listener.server
        self._raw: asyncio.Transport | None = None
        self._inside: Connection | None = None
        self._ssl: ssl.SSLObject | None = None
        self._incoming: ssl.MemoryBIO
        self._outgoing: ssl.MemoryBIO
        # What has been received, what of it OpenSSL has been given, and what is left of the record
        # that is being given; and how much is counted.
        self._encrypted = b""
        self._fed = 0
        self._record_left = 0
        self._counted = 0
        self._timer: asyncio.TimerHandle | None = None
        self._since = 0.0
        self._is_first = True
        self._paused = False
        # It waits for its turn (kvd.limits.turns).
        self._queued = False
        self._closing = False
        self._keeps_open: bool | None = None
        """What the connection inside said to the end of what the client sends; None before."""
        self._common_name = ""
        self.address = ""
        """Where the client is, by which shares are told apart."""

    # asyncio.BufferedProtocol, for the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the handshake, unless there are too many already."""
        self._raw = cast(asyncio.Transport, transport)
        self.address = peer_of(transport).network
        loop = self._server.loop
        self._since = loop.time()
        self._timer = loop.call_later(self._server.limits.header_timeout_s, self._give_up)
        self._listener.enters(self)
        if self._server.stopping:
            self.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Lend the buffer that all connections share."""
        return self._server.turns.lent

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes from the socket."""
        data = bytes(self._server.buffer[:nbytes])
        if self._is_first:
            self._is_first = False
            if data[0] != _HANDSHAKE_RECORD:
                self._take_plain(nbytes)
                return
        self._encrypted = self._encrypted + data if self._encrypted else data
        if not self._queued:
            self._take(_RECORDS)

    def take_turn(self) -> None:
        """Go on with what had to wait."""
        self._queued = False
        self._take(_RECORDS_PER_VISIT)
        if not (self._queued or self._paused or self._raw is None or self._closing):
            self._raw.resume_reading()

    @property
    def gone(self) -> bool:
        """Whether the client has gone, or is let go."""
        return self._raw is None or self._raw.is_closing()

    def _take(self, records: int) -> None:
        """Take the records that have come whole, or so many of them."""
        if self._inside is None and not self._closing and self._next_bytes():
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
        """Count what has been received and not decrypted, if it is much."""
        size = len(self._encrypted)
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
        """What is counted of what has been received and not decrypted."""
        return self._counted

    @property
    def is_receiving(self) -> bool:
        """Whether the rest of a record has to come."""
        return self._counted > 0 and not self._queued

    def go_on(self) -> None:
        """Go on with what had to wait for room, which nothing here does."""

    def give_up(self) -> None:
        """Drop what has come, and the connection: there is no room for it."""
        self._server.rejected[TOO_MUCH] += 1
        self._forget_received()
        self._count()
        self.abort()

    @property
    def state(self) -> State:
        """What the client lets the server wait for, and since when."""
        if self._closing or self in self._listener.beyond:
            return BUSY
        return SILENT, self._since

    def eof_received(self) -> bool:
        """The client sends no more, whether it has said so in TLS or not."""
        return self._end_of_input()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone, and with it the connection inside."""
        self._handshake_over()
        self._raw = None
        self._forget_received()
        self._count()
        inside, self._inside = self._inside, None
        if inside is not None:
            inside.connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read."""
        if self._inside is not None:
            self._inside.pause_writing()

    def resume_writing(self) -> None:
        """It reads again."""
        if self._inside is not None:
            self._inside.resume_writing()

    # asyncio.Transport, for the connection inside

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what is known of the connection; `common_name` is that of a user, if any."""
        if name == "ssl_object":
            return self._ssl
        if name == "common_name":
            return self._common_name
        return default if self._raw is None else self._raw.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes, encrypted."""
        if self._raw is None or self._closing or self._ssl is None:
            return
        records: list[bytes] = []
        try:
            left = memoryview(data)
            while left:
                left = left[self._ssl.write(left[:_SENT_PIECE_BYTES]) :]
                records.append(self._outgoing.read())
        except ssl.SSLError:
            self.abort()
        else:
            self._raw.write(records[0] if len(records) == 1 else b"".join(records))

    def can_write_eof(self) -> bool:
        """Whether the end of what is sent can be told before the connection closes."""
        return self._raw is not None and self._raw.can_write_eof()

    def write_eof(self) -> None:
        """Tell the client that this was all."""
        self._say_goodbye()
        if self._raw is not None:
            self._raw.write_eof()

    def close(self) -> None:
        """Send what is to be sent, and close."""
        self._say_goodbye()
        if self._raw is not None:
            self._raw.close()

    def abort(self) -> None:
        """Drop the connection at once."""
        self._closing = True
        self._handshake_over()
        if self._raw is not None:
            self._raw.abort()

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._closing or self._raw is None or self._raw.is_closing()

    def pause_reading(self) -> None:
        """Take no more bytes from the socket; those that are here already are handed on."""
        self._paused = True
        if self._raw is not None:
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        """Take bytes again."""
        self._paused = False
        if self._raw is not None and not self._queued:
            self._raw.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Say how much is kept for a client that reads slowly."""
        if self._raw is not None:
            self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Return how many encrypted bytes wait to be sent."""
        return 0 if self._raw is None else self._raw.get_write_buffer_size()

    # The handshake

    def _shake(self) -> bool:
        """Go on with the handshake; return whether it is done."""
        if self._ssl is None:
            self._listener.begins(self)
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._ssl = self._listener.tls.current_context().wrap_bio(
                self._incoming, self._outgoing, server_side=True
            )
        try:
            while self._feed():
                with suppress(ssl.SSLWantReadError):
                    self._ssl.do_handshake()
                    return True
        except ssl.SSLError as error:
            self._send()  # the alert
            self._fail(_reason(error))
        finally:
            self._send()
        return False

    def _handshake_is_done(self) -> None:
        """Make the connection inside, if the client is let in."""
        assert self._ssl is not None
        self._handshake_over()
        config = self._listener.tls.config
        if config.trusted_ca_file:
            certificate = self._ssl.getpeercert() or {}
            if config.allowed_hostname and not is_for(certificate, config.allowed_hostname):
                self._fail(f"the client's certificate is not for {config.allowed_hostname}")
                return
            if config.names_users:
                self._common_name = common_name(certificate)
        inside = self._inside = self._listener.connect()
        inside.connection_made(self)

    def _fail(self, reason: str) -> None:
        self._complain(reason)
        self._forget_received()
        self._closing = True
        if self._raw is not None:
            self._raw.close()

    def _complain(self, reason: str) -> None:
        self._listener.complain(shown_address(self._raw), reason)

    def _give_up(self) -> None:
        if self._raw is not None:
            self._complain(f"no handshake in {self._server.limits.header_timeout_s:g} s")
            self.abort()

    def _handshake_over(self) -> None:
        self._listener.leaves(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _take_plain(self, nbytes: int) -> None:
        """Serve a client that does not speak TLS, or tell it so."""
        raw = self._raw
        if raw is None:
            return
        if self._listener.speaks_plain:
            self._handshake_over()
            inside = self._listener.connect()
            raw.set_protocol(inside)
            inside.connection_made(raw)
            inside.buffer_updated(nbytes)  # they are still in the buffer that all share
            self._raw = None
            return
        self._listener.complain_of_plain(shown_address(self._raw))
        raw.write(_PLAIN_ANSWER)
        self._closing = True
        raw.close()

    # What is sent and received

    def _decrypt(self, records: int) -> None:
        """Hand on what the client has sent, up to so many records of it."""
        assert self._ssl is not None
        assert self._raw is not None
        buffer, size, left = self._server.buffer, 0, records
        ends = False
        try:
            while left and self._feed():
                if size > len(buffer) - _PLAIN_BYTES_MAX:
                    size = self._hand_on(size)
                with suppress(ssl.SSLWantReadError):
                    # With a buffer it returns how many bytes it put there, which its type hides.
                    count = cast(int, self._ssl.read(_PLAIN_BYTES_MAX, buffer[size:]))
                    size += count
                left -= 1
        except ssl.SSLZeroReturnError:
            ends = True
        except ssl.SSLError:
            self.abort()
        self._server.turns.left -= (records - left) >> _RECORDS_PER_UNIT_LOG2
        self._hand_on(size)
        if ends:
            self._forget_received()
            if not self._end_of_input():
                self.close()
        elif self._raw.is_closing():
            self._forget_received()
        elif self._next_bytes():
            self._queue(Lane.BODIES)
        self._send()

    def _hand_on(self, size: int) -> int:
        """Give the connection inside so much of the buffer; return 0, what is left of it."""
        if size and self._inside is not None:
            self._inside.buffer_updated(size)
        return 0

    def _feed(self) -> bool:
        """Give OpenSSL a piece of a record that has come whole; return whether there was one."""
        size = min(self._next_bytes(), _RECEIVED_PIECE_BYTES)
        if size:
            self._incoming.write(self._encrypted[self._fed : self._fed + size])
            self._fed += size
            self._record_left -= size
        else:
            # The rest is kept until it is a record.
            self._encrypted, self._fed = self._encrypted[self._fed :], 0
        return size > 0

    def _next_bytes(self) -> int:
        """Return how much is left of the record at hand, if it has come whole."""
        if not self._record_left:
            self._record_left = _whole_record(self._encrypted, self._fed)
        return self._record_left

    def _forget_received(self) -> None:
        self._encrypted, self._fed, self._record_left = b"", 0, 0

    def _end_of_input(self) -> bool:
        """Pass on, once, that the client sends no more; return whether answers may still go."""
        if self._keeps_open is None and self._inside is not None:
            self._keeps_open = bool(self._inside.eof_received())
        return bool(self._keeps_open)

    def _send(self) -> None:
        if self._outgoing.pending and self._raw is not None:
            self._raw.write(self._outgoing.read())

    def _say_goodbye(self) -> None:
        if self._closing:
            return
        self._closing = True
        if self._inside is not None and self._ssl is not None:
            with suppress(ssl.SSLError):  # the client's own goodbye is not waited for
                self._ssl.unwrap()
            self._send()


def _reason(error: ssl.SSLError) -> str:
    """Return OpenSSL's reason in plain words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the client's certificate was refused: {error.verify_message}"
    return plain_reason(error)


def _push(waiting: dict[TlsConnection, None], connection: TlsConnection, count_max: int) -> None:
    """Add a connection; give up the oldest if there are too many."""
    waiting[connection] = None
    if len(waiting) > count_max:
        next(iter(waiting)).abort()


def _whole_record(data: bytes, start: int) -> int:
    """Return the size of the record that starts there, or 0 if it has not come whole."""
    if len(data) < start + _HEADER_BYTES:
        return 0
    size = _HEADER_BYTES + (data[start + 3] << 8 | data[start + 4])
    if size > _RECORD_BYTES_MAX:
        return len(data) - start
    return size if len(data) >= start + size else 0

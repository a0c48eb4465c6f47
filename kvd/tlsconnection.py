"""TLS between a socket and a connection: OpenSSL on memory, as `ssl.MemoryBIO` is meant for.

    socket  <-- bytes -->  asyncio transport  <-->  TlsConnection  <-- HTTP -->  http1.Connection

It is the protocol of the one and the transport of the other. asyncio's own layer would do, were it
not for what happens when a handshake fails: it drops the connection without the alert that tells
the client why, and without a word to us. Here the client gets the alert (or, if it spoke plain
HTTP, an answer in plain HTTP), the log gets one line, and a port may speak both HTTP and HTTPS, as
etcd's may. Nothing of TLS itself is done here.

Invariants: the connection inside is made when the handshake is done, and lost when the socket is.
What has been read from the socket is decrypted at once, unless reading is paused.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any, cast

from kvd.certificates import common_name, is_for
from kvd.http1 import Connection, Server
from kvd.listeners import Listener
from kvd.logs import Rarely
from kvd.peer import shown_address
from kvd.tls import Tls, plain_reason
from kvd.turns import Lane

log = logging.getLogger(__name__)

# A client that goes wrong does so again and again.
_QUIET_S = 10.0
# So many may shake hands beyond the limit of connections, to be told of it in HTTP.
_BEYOND_LIMIT = 16
_HANDSHAKE_RECORD = 0x16
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
        shaking: the connections whose handshake is not done, the oldest first.
    """

    def __init__(
        self,
        tls: Tls,
        server: Server,
        connect: Callable[[], Connection],
        listener: Listener,
    ) -> None:
        self.tls = tls
        self.server = server
        self.connect = connect
        self.url = next(url for url in listener.urls if url.is_tls)
        self.speaks_plain = listener.speaks_plain
        self.shaking: dict[TlsConnection, None] = {}
        self._plain = Rarely(_QUIET_S)
        self._failed = Rarely(_QUIET_S)

    def __call__(self) -> TlsConnection:
        """Return the protocol of a new connection."""
        return TlsConnection(self)

    def stop(self) -> None:
        """Give up the handshakes that are not done."""
        for connection in list(self.shaking):
            connection.abort()

    @property
    def is_full(self) -> bool:
        """Whether there are so many connections that the oldest handshake is given up."""
        limit = self.server.limits.connections_max + _BEYOND_LIMIT
        return len(self.shaking) + len(self.server.connections) > limit

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

    def __init__(self, listener: TlsListener) -> None:
        super().__init__()
        self._listener = listener
        self._server = listener.server
        self._raw: asyncio.Transport | None = None
        self._inside: asyncio.BufferedProtocol | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = listener.tls.current_context().wrap_bio(
            self._incoming, self._outgoing, server_side=True
        )
        self._timer: asyncio.TimerHandle | None = None
        self._is_first = True
        self._paused = False
        self._closing = False
        self._keeps_open: bool | None = None
        """What the connection inside said to the end of what the client sends; None before."""
        self._common_name = ""

    # asyncio.BufferedProtocol, for the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the handshake, unless there are too many already."""
        self._raw = cast(asyncio.Transport, transport)
        listener = self._listener
        listener.shaking[self] = None
        self._timer = self._server.loop.call_later(
            self._server.limits.header_timeout_s, self._give_up
        )
        if self._server.stopping:
            self.abort()
        elif listener.is_full:
            oldest = next(iter(listener.shaking))
            del listener.shaking[oldest]
            oldest.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Lend the buffer that all connections share."""
        return self._server.turns.lent

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes from the socket."""
        data = self._server.buffer[:nbytes]
        if self._is_first:
            self._is_first = False
            if data[0] != _HANDSHAKE_RECORD:
                self._take_plain(nbytes)
                return
        self._incoming.write(data)
        if self._inside is not None:
            self._decrypt()
        elif self._raw is not None and not self._closing:
            # A step of a handshake costs as much as fifty reads.
            if self._server.turns.takes_slow():
                self._go_on_shaking()
            else:
                self._raw.pause_reading()
                self._server.turns.wait(self, Lane.SLOW)

    def take_turn(self) -> None:
        """Go on with the handshake that had to wait."""
        if self._raw is not None and not self._closing:
            self._raw.resume_reading()
            self._go_on_shaking()

    def _go_on_shaking(self) -> None:
        if self._shake():
            self._decrypt()

    def eof_received(self) -> bool:
        """The client sends no more, whether it has said so in TLS or not."""
        return self._end_of_input()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone, and with it the connection inside."""
        self._handshake_over()
        self._raw = None
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
        if self._raw is None or self._closing:
            return
        try:
            left = memoryview(data)
            while left:
                left = left[self._ssl.write(left) :]
        except ssl.SSLError:
            self.abort()
        else:
            self._send()

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
        if self._raw is not None:
            self._raw.abort()

    def is_closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._closing or self._raw is None or self._raw.is_closing()

    def pause_reading(self) -> None:
        """Take no more bytes, neither from the socket nor those that are here already."""
        self._paused = True
        if self._raw is not None:
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        """Take bytes again; those that are here already in a step of its own."""
        self._paused = False
        if self._raw is not None:
            self._raw.resume_reading()
            self._server.loop.call_soon(self._decrypt)

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
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            self._send()
            return False
        except ssl.SSLError as error:
            self._send()  # the alert
            self._fail(_reason(error))
            return False
        self._send()
        self._handshake_over()
        config = self._listener.tls.config
        if config.trusted_ca_file:
            certificate = self._ssl.getpeercert() or {}
            if config.allowed_hostname and not is_for(certificate, config.allowed_hostname):
                self._fail(f"the client's certificate is not for {config.allowed_hostname}")
                return False
            if config.names_users:
                self._common_name = common_name(certificate)
        inside = self._inside = self._listener.connect()
        inside.connection_made(self)
        return True

    def _fail(self, reason: str) -> None:
        self._complain(reason)
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
        self._listener.shaking.pop(self, None)
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

    def _decrypt(self) -> None:
        """Hand on what the client has sent, as far as it can be decrypted."""
        while self._inside is not None and self._raw is not None and not self._paused:
            buffer = cast(bytearray, self._inside.get_buffer(-1))
            try:
                # With a buffer it returns how many bytes it put there, which its type hides.
                count = cast(int, self._ssl.read(len(buffer), buffer))
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                count = 0
            except ssl.SSLError:
                self.abort()
                return
            if not count:
                if not self._end_of_input():
                    self.close()
                break
            self._inside.buffer_updated(count)
        self._send()

    def _end_of_input(self) -> bool:
        """Pass on, once, that the client sends no more; return whether answers may still go."""
        if self._keeps_open is None and self._inside is not None:
            self._keeps_open = bool(self._inside.eof_received())
        return bool(self._keeps_open)

    def _send(self) -> None:
        data = self._outgoing.read()
        if data and self._raw is not None:
            self._raw.write(data)

    def _say_goodbye(self) -> None:
        if self._closing:
            return
        self._closing = True
        if self._inside is not None:
            with suppress(ssl.SSLError):  # the client's own goodbye is not waited for
                self._ssl.unwrap()
            self._send()


def _reason(error: ssl.SSLError) -> str:
    """Return OpenSSL's reason in plain words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the client's certificate was refused: {error.verify_message}"
    return plain_reason(error)

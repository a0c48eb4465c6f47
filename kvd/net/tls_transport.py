"""The sending half of a TLS connection: the transport of the HTTP connection inside."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from kvd.http.connection import Connection
from kvd.net.tls_session import TlsSession


class TlsTransport(asyncio.Transport):
    """Encrypts what the connection inside sends; `kvd.net.tls_connection` is made of it."""

    __slots__ = ("_closing", "_common_name", "_inside", "_paused", "_queued", "_raw", "_session")

    def __init__(self) -> None:
        super().__init__()
        # The transport of the socket; None before there is one, and after it is lost.
        self._raw: asyncio.Transport | None = None
        self._inside: Connection | None = None
        self._session = TlsSession()
        # The connection inside does not want to receive.
        self._paused = False
        # What was received waits for its turn (kvd.limits.turns).
        self._queued = False
        self._closing = False
        self._common_name = ""

    def _handshake_over(self) -> None:
        """Forget the handshake: it is done, or will not be."""
        raise NotImplementedError

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return a property of the connection; `common_name` is that of a user, if any."""
        if name == "ssl_object":
            return self._session.ssl_object
        if name == "common_name":
            return self._common_name
        return default if self._raw is None else self._raw.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes, encrypted."""
        if self._raw is None or self._closing or self._session.ssl_object is None:
            return
        try:
            records = self._session.encrypt(data)
        except ssl.SSLError:
            self.abort()
        else:
            self._raw.write(records)

    def can_write_eof(self) -> bool:
        """Whether the sending half can be closed alone."""
        return self._raw is not None and self._raw.can_write_eof()

    def write_eof(self) -> None:
        """Close the sending half: the client has got everything."""
        self._say_goodbye()
        if self._raw is not None:
            self._raw.write_eof()

    def close(self) -> None:
        """Close once everything is sent."""
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
        """Read no more from the socket; bytes that were received are still handed on."""
        self._paused = True
        if self._raw is not None:
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        """Read from the socket again."""
        self._paused = False
        if self._raw is not None and not self._queued:
            self._raw.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set how much may be kept for a client that reads slowly."""
        if self._raw is not None:
            self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Return how many encrypted bytes are not sent yet."""
        return 0 if self._raw is None else self._raw.get_write_buffer_size()

    def _send(self) -> None:
        """Send what TLS itself has to send."""
        if self._raw is not None and (data := self._session.to_send()):
            self._raw.write(data)

    def _say_goodbye(self) -> None:
        if self._closing:
            return
        self._closing = True
        if self._inside is not None:
            self._session.end()
            self._send()

"""TLS of one connection, on memory: OpenSSL between two buffers, without a socket.

    receive --> whole records --> feed --> OpenSSL --> read       what the client sends
                     to_send  <----------  OpenSSL <-- encrypt    what it is sent

Invariants:

- OpenSSL gets whole records only (RFC 8446 section 5.1), in small pieces: it keeps the memory of
  the largest piece that it was ever given, for the life of the connection.
- OpenSSL's memory for a connection is taken when a record has come, not when a client connects.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import cast

# Type and version of a record, and its length, which is in the last two of these bytes.
_HEADER_BYTES = 5
# The largest record that is allowed; OpenSSL refuses a larger one by its header.
_RECORD_BYTES_MAX = _HEADER_BYTES + (16 << 10) + 2048
PLAIN_BYTES_MAX = 16 << 10
"""The largest content of a record."""
# The largest pieces that OpenSSL is given, of what is received and of what is sent.
_RECEIVED_PIECE_BYTES = 4 << 10
_SENT_PIECE_BYTES = 8 << 10


class TlsSession:
    """The server's end of TLS, for one connection.

    Attributes:
        ssl_object: OpenSSL's side of it; None before the first record.
    """

    __slots__ = ("_fed", "_incoming", "_outgoing", "_received", "_record_left", "ssl_object")

    def __init__(self) -> None:
        self.ssl_object: ssl.SSLObject | None = None
        self._incoming: ssl.MemoryBIO
        self._outgoing: ssl.MemoryBIO
        # The received bytes, how many of them OpenSSL was given, and how many are missing to the
        # end of the record that it is being given.
        self._received = b""
        self._fed = 0
        self._record_left = 0

    def begin(self, context: ssl.SSLContext) -> None:
        """Take OpenSSL's memory."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ssl_object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    # Received

    def receive(self, data: bytes) -> None:
        """Append received bytes."""
        self._received = self._received + data if self._received else data

    @property
    def received_bytes(self) -> int:
        """Number of bytes that were received and not decrypted."""
        return len(self._received)

    @property
    def has_record(self) -> bool:
        """Whether a record has come whole."""
        return self._next_bytes() > 0

    def forget_received(self) -> None:
        """Drop what was received and not read."""
        self._received, self._fed, self._record_left = b"", 0, 0

    def _next_bytes(self) -> int:
        """Return how much is left of the record at hand, if it has come whole."""
        if not self._record_left:
            self._record_left = _whole_record(self._received, self._fed)
        return self._record_left

    def feed(self) -> bool:
        """Give OpenSSL a piece of a record that has come whole; return whether there was one."""
        size = min(self._next_bytes(), _RECEIVED_PIECE_BYTES)
        if size:
            self._incoming.write(self._received[self._fed : self._fed + size])
            self._fed += size
            self._record_left -= size
        else:
            # The rest is kept until it is a record.
            self._received, self._fed = self._received[self._fed :], 0
        return size > 0

    def shake(self) -> bool:
        """Go on with the handshake, as far as records have come; return whether it is done.

        Raises:
            ssl.SSLError: it has failed; the alert that says so is to be sent.
        """
        assert self.ssl_object is not None
        while self.feed():
            with suppress(ssl.SSLWantReadError):
                self.ssl_object.do_handshake()
                return True
        return False

    def read(self, into: memoryview) -> int:
        """Decrypt what was fed, to a buffer of `PLAIN_BYTES_MAX` or more; return how many bytes.

        Raises:
            ssl.SSLZeroReturnError: the client has ended the session.
            ssl.SSLError: it has broken the protocol.
        """
        assert self.ssl_object is not None
        with suppress(ssl.SSLWantReadError):
            # With a buffer it returns how many bytes it put there, which its type hides.
            return cast(int, self.ssl_object.read(PLAIN_BYTES_MAX, into))
        return 0

    # Sent

    def encrypt(self, data: bytes | bytearray | memoryview) -> bytes:
        """Return bytes as records.

        Raises:
            ssl.SSLError: the session cannot send.
        """
        assert self.ssl_object is not None
        records: list[bytes] = []
        left = memoryview(data)
        while left:
            left = left[self.ssl_object.write(left[:_SENT_PIECE_BYTES]) :]
            records.append(self._outgoing.read())
        return records[0] if len(records) == 1 else b"".join(records)

    def to_send(self) -> bytes:
        """Return what TLS itself has to send: handshakes, alerts, keys."""
        return self._outgoing.read() if self.ssl_object is not None else b""

    def end(self) -> None:
        """End the session; `to_send` is the alert that says so."""
        if self.ssl_object is not None:
            with suppress(ssl.SSLError):  # the client's own goodbye is not waited for
                self.ssl_object.unwrap()


def _whole_record(data: bytes, start: int) -> int:
    """Return the size of the record that starts there, or 0 if it has not come whole."""
    if len(data) < start + _HEADER_BYTES:
        return 0
    size = _HEADER_BYTES + (data[start + 3] << 8 | data[start + 4])
    if size > _RECORD_BYTES_MAX:
        return len(data) - start
    return size if len(data) >= start + size else 0

"""A call of gRPC: status codes, the framing of messages, and what is queued of them.

message   u8 0 (not compressed), u32 BE length, protocol buffer
"""

import asyncio
import struct
from collections import deque
from typing import Protocol

STREAM_WINDOW = 1 << 22
"""Bytes that the peer may send in one stream, and that a stream holds of unread messages."""
MESSAGE_BYTES_MAX = 1 << 28
"""Far above any response: a page of 64 frames of the largest size."""

OK, CANCELLED, UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND = range(6)
PERMISSION_DENIED, RESOURCE_EXHAUSTED, FAILED_PRECONDITION, ABORTED, OUT_OF_RANGE = range(7, 12)
UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS, UNAUTHENTICATED = range(12, 17)

PREFIX = struct.Struct(">BI")
assert PREFIX.size == 5


class GrpcError(Exception):
    """The end of a call, by the peer or by the connection to it; code OK is a success.

    `was_sent` is False when the peer cannot have received the request.
    """

    def __init__(self, code: int, message: str, *, was_sent: bool = True) -> None:
        super().__init__(f"{message} (code {code})")
        self.code = code
        self.message = message
        self.was_sent = was_sent


class Sender(Protocol):
    """The connection, as a stream needs it."""

    def pump(self, stream: "Stream", number: int) -> None:
        """Send of a stream's pending bytes what flow control allows."""

    def acknowledge(self, number: int, size: int) -> None:
        """Let the peer send this many bytes more."""

    def reset(self, number: int) -> None:
        """Tell the peer that the call has ended, if it has not told so itself."""

    def forget(self, number: int) -> None:
        """Drop the stream."""


class Stream:
    """A call in flight: messages out and in.

    `receive` raises `GrpcError` at its end, also when that is a success.
    """

    def __init__(self, sender: Sender, number: int) -> None:
        self._sender = sender
        self._number = number
        self.pending = bytearray()
        """Encoded messages that flow control has not let out yet."""
        self.sends_no_more = False
        """Whether what is pending is the last."""
        self._received = bytearray()
        self._messages: deque[bytes] = deque()
        self._queued = 0
        """Bytes of messages that were not read."""
        self._unacknowledged = 0
        self._ended: GrpcError | None = None
        self._wakes: asyncio.Future[None] | None = None

    def send(self, message: bytes, *, ends: bool = False) -> None:
        """Queue a message; `ends` says that none follows."""
        if self._ended is not None:
            raise self._ended
        self.pending += PREFIX.pack(0, len(message)) + message
        self.sends_no_more = ends
        self._sender.pump(self, self._number)

    async def receive(self) -> bytes:
        """The next message. May be cancelled without a loss."""
        while not self._messages:
            if self._ended is not None:
                raise self._ended
            self._wakes = asyncio.get_running_loop().create_future()
            try:
                await self._wakes
            finally:
                self._wakes = None
        message = self._messages.popleft()
        self._queued -= len(message)
        if self._unacknowledged and self._queued < STREAM_WINDOW:
            owed, self._unacknowledged = self._unacknowledged, 0
            self._sender.acknowledge(self._number, owed)
        return message

    def cancel(self) -> None:
        """End the call, if it has not ended."""
        self.end(GrpcError(CANCELLED, "cancelled here"))

    # What the connection calls.

    def take(self, data: bytes) -> int:
        """Take received bytes; return how many may be acknowledged now."""
        self._received += data
        while len(self._received) >= PREFIX.size:
            is_compressed, length = PREFIX.unpack_from(self._received)
            if is_compressed or length > MESSAGE_BYTES_MAX:
                text = f"a message of {length} bytes, {'' if is_compressed else 'not '}compressed"
                self.end(GrpcError(INTERNAL, text))
                return len(data)
            if len(self._received) < PREFIX.size + length:
                break
            self._messages.append(bytes(self._received[PREFIX.size : PREFIX.size + length]))
            del self._received[: PREFIX.size + length]
            self._queued += length
            self._wake()
        if self._queued < STREAM_WINDOW:
            return len(data)
        self._unacknowledged += len(data)
        return 0

    def end(self, why: GrpcError, *, by_peer: bool = False) -> None:
        """End the call; `by_peer` says that the peer's last bytes of it have come."""
        if self._ended is None:
            self._ended = why
            if not by_peer or self.pending or not self.sends_no_more:
                self._sender.reset(self._number)
            self._sender.forget(self._number)
            self._wake()

    def _wake(self) -> None:
        if self._wakes is not None and not self._wakes.done():
            self._wakes.set_result(None)

"""HTTP/1.1 as far as a load generator needs it: render a request, know where an answer ends.

One request is in flight on a connection at a time, so an answer is complete when the bytes received
so far hold a header block and the body that it announces; nothing can follow it.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

Address = tuple[str, int]

RECEIVE_BYTES = 65536
ANSWER_TIMEOUT_S = 60.0
LENGTH = b"\r\nContent-Length: "


class LoadError(Exception):
    """The run is worth nothing: a broken connection, a stalled server, an answer not in HTTP."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; `body` is without chunk framing."""

    status: int
    head: bytes
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300


def render(method: str, path: str, body: bytes = b"") -> bytes:
    """Return a request; a body travels as a form, as etcd's clients send it."""
    return render_head(method, path, len(body)) + body


def render_head(method: str, path: str, body_bytes: int = 0) -> bytes:
    """Return a request up to its body, which the caller appends and which is `body_bytes` long."""
    form = (
        f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {body_bytes}\r\n"
        if body_bytes
        else ""
    )
    return f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{form}\r\n".encode()


def is_complete(received: bytes | bytearray) -> bool:
    """Whether `received` holds the whole answer.

    The common case, a `Content-Length` spelt as Go and Tornado spell it, is decided with two
    searches.
    """
    head_end = received.find(b"\r\n\r\n")
    if head_end < 0:
        return False
    at = received.find(LENGTH, 0, head_end + 2)
    if at >= 0:
        at += len(LENGTH)
        body_bytes = int(received[at : received.find(b"\r", at)])
        return len(received) - head_end - 4 >= body_bytes
    head = bytes(received[: head_end + 2])
    if is_chunked(head):
        # The terminator is looked for first, so that a long body is not decoded at every piece.
        return received.endswith(b"0\r\n\r\n") and decode_chunks(received, head_end + 4) is not None
    return len(received) - head_end - 4 >= content_length(head)


def parse(received: bytes | bytearray) -> Answer:
    """Take a complete answer apart.

    Raises:
        LoadError: the bytes are no complete answer.
    """
    head_end = received.find(b"\r\n\r\n")
    head = bytes(received[: head_end + 2])
    if head_end < 0 or not head.startswith(b"HTTP/1."):
        raise LoadError(f"expected an HTTP answer, found {bytes(received[:80])!r}")
    body: bytes | None
    if is_chunked(head):
        body = decode_chunks(received, head_end + 4)
    else:
        body = bytes(received[head_end + 4 :])
    if body is None:
        raise LoadError("expected a complete chunked body, found a part of one")
    return Answer(int(head[9:12]), head, body)


def is_chunked(head: bytes) -> bool:
    """Whether the header block announces a chunked body."""
    return b"\r\ntransfer-encoding: chunked\r\n" in head.lower()


def content_length(head: bytes) -> int:
    """Return the body's length in bytes by a header in any spelling; 0 where there is none."""
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def decode_chunks(received: bytes | bytearray, at: int) -> bytes | None:
    """Join the chunks that start at offset `at`; None when the last one is not there yet."""
    pieces: list[bytes] = []
    while True:
        line_end = received.find(b"\r\n", at)
        if line_end < 0:
            return None
        size = int(received[at:line_end], 16)
        at = line_end + 2
        if len(received) < at + size + 2:
            return None
        if size == 0:
            return b"".join(pieces)
        pieces.append(bytes(received[at : at + size]))
        at += size + 2


class Client:
    """One keep-alive connection that waits for each answer: for checks and single latencies."""

    def __init__(self, address: Address) -> None:
        self.socket = socket.create_connection(address, timeout=ANSWER_TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def exchange(self, request: bytes) -> bytes:
        """Send rendered bytes and return the answer's, not taken apart.

        Raises:
            LoadError: the server closed the connection first.
            OSError: it could not be reached, or did not answer within a minute.
        """
        self.socket.sendall(request)
        received = self.socket.recv(RECEIVE_BYTES)
        if received and is_complete(received):
            return received
        buffer = bytearray(received)
        while received:
            received = self.socket.recv(RECEIVE_BYTES)
            buffer += received
            if is_complete(buffer):
                return bytes(buffer)
        raise LoadError("the server closed the connection instead of answering")

    def request(self, method: str, path: str, body: bytes = b"") -> Answer:
        """Send one request and return its answer; raises as `exchange` does."""
        return parse(self.exchange(render(method, path, body)))

"""A raw HTTP/1 connection: it sends exactly the bytes given, and parses the answers."""

import contextlib
import socket
from collections.abc import Iterator

from tests.support.server import FORM, PATIENCE_S, Answer


class Raw:
    """One connection to a server on this machine, with a time-out on everything."""

    def __init__(self, port: int, *, receive_buffer: int | None = None) -> None:
        self._socket = socket.socket()
        if receive_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.settimeout(PATIENCE_S)
        self._socket.connect(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, *pieces: bytes) -> "Raw":
        """Send pieces, each on its own."""
        for piece in pieces:
            self._socket.sendall(piece)
        return self

    def send_what_fits(self, data: bytes, *, timeout_s: float) -> int:
        """Send until the other side has taken nothing for a while; how much it took."""
        self._socket.settimeout(timeout_s)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < len(data):
                sent += self._socket.send(data[sent : sent + 65536])
        self._socket.settimeout(PATIENCE_S)
        return sent

    def half_close(self) -> "Raw":
        """Say that nothing more will be sent."""
        self._socket.shutdown(socket.SHUT_WR)
        return self

    def reset(self) -> None:
        """Go without a word: the other side gets a reset."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close()

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def head(self) -> Answer:
        """Read the head of an answer."""
        line = self._line()
        version, status, _ = line.split(b" ", 2)
        assert version in (b"HTTP/1.1", b"HTTP/1.0"), line
        headers: dict[str, str] = {}
        while line := self._line():
            name, _, value = line.decode("latin-1").partition(":")
            assert name.lower() not in headers, f"{name} is there twice"
            headers[name.lower()] = value.strip()
        return Answer(int(status), headers, b"")

    def answer(self, method: str = "GET") -> Answer:
        """Read a whole answer to a request of this method."""
        head = self.head()
        if method == "HEAD" or head.status < 200:
            return head
        if head.headers.get("transfer-encoding") == "chunked":
            return Answer(head.status, head.headers, b"".join(self.chunks()))
        length = head.headers.get("content-length")
        body = self._file.read() if length is None else self._file.read(int(length))
        assert length is None or len(body) == int(length), "the answer was cut"
        return Answer(head.status, head.headers, body)

    def chunks(self) -> Iterator[bytes]:
        """Read the chunks of an answer whose head has been read, up to its proper end."""
        while size := int(self._line(), 16):
            yield self._file.read(size)
            assert self._line() == b""
        assert self._line() == b""

    def ask(self, method: str, target: str, *headers: str, body: bytes | None = None) -> Answer:
        """Send a request and read its answer."""
        return self.send(request(method, target, *headers, body=body)).answer(method)

    def rest(self) -> bytes:
        """Read until the other side closes, or resets, the connection."""
        rest = b""
        with contextlib.suppress(ConnectionError):
            while piece := self._socket.recv(65536) if self._file.closed else self._file.read1():
                rest += piece
        return rest

    def read_some(self, size: int) -> bytes:
        """Read what there is at once, up to a size."""
        with contextlib.suppress(BlockingIOError):
            return self._socket.recv(size, socket.MSG_DONTWAIT)
        return b""

    def end(self) -> bytes:
        """Read what still comes before the other side closes; a reset is an error."""
        return self._file.read()

    def closed(self) -> bool:
        """Wait for the other side to close; whether it said nothing before that."""
        return self.rest() == b""

    def _line(self) -> bytes:
        line = self._file.readline()
        assert line.endswith(b"\r\n"), f"the answer ends in {line!r}"
        return line[:-2]


def request(
    method: str, target: str, *headers: str, body: bytes | None = None, host: str = "h"
) -> bytes:
    """The bytes of a request; a body is a form."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *headers]
    if body is not None:
        lines += [f"Content-Type: {FORM}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def chunked(method: str, target: str, *parts: bytes) -> bytes:
    """The bytes of a request whose body, a form, comes in chunks."""
    head = request(method, target, f"Content-Type: {FORM}", "Transfer-Encoding: chunked")
    return head + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"

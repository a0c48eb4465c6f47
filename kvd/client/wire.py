"""HTTP without sockets: requests as bytes, answers from bytes, and the steps that drivers take.

An operation is a generator: it yields a step, is sent what became of it, and returns its result. A
driver (`sockets.py`, `asynchronous.py`) takes the steps with its own sockets; all decisions are
made outside of it, once for both drivers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlencode, urlsplit

import httptools

from kvd.client.errors import Timeout, TransportError

_HEAD_BYTES_MAX = 64 << 10
_DIGITS_MAX = 20  # of 64 bits


class Connection(Protocol):
    """A connection of a driver's."""

    def is_stale(self) -> bool:
        """Return whether the server has closed it, or has sent something unasked."""

    def close(self) -> None:
        """Close it at once; may be called again, and from another thread."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address of a server.

    Attributes:
        host, port: of TCP; the host is empty for a socket in the file system.
        path: of such a socket.
        tls: whether TLS is spoken.
    """

    host: str
    port: int
    path: str
    tls: bool

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """Read `http://HOST[:PORT]`, `https://HOST[:PORT]`, `unix:///PATH` or `unixs:///PATH`.

        Raises:
            ValueError: it is neither.
        """
        if not isinstance(url, str):
            raise TypeError(f"a URL is a str, got {url!r}")
        parts = urlsplit(url)
        if parts.scheme in ("unix", "unixs") and parts.path and not parts.netloc:
            return cls("", 0, unquote(parts.path), tls=parts.scheme == "unixs")
        is_bare = parts.path in ("", "/") and not (parts.query or parts.fragment or parts.username)
        is_bare &= parts.port != 0 and not any(map(str.isspace, parts.netloc))
        host = _ascii_host(parts.hostname or "", url)
        if parts.scheme not in ("http", "https") or not host or not is_bare:
            raise ValueError(
                "expected http://HOST:PORT, https://HOST:PORT, unix:///PATH or unixs:///PATH: "
                + url
            )
        return cls(host, parts.port or 2379, "", tls=parts.scheme == "https")

    @property
    def tls_name(self) -> str:
        """The name that the server's certificate must be for."""
        return self.host or "localhost"

    @property
    def address(self) -> str:
        """The host and port, or the path of a socket in the file system."""
        return self.authority if self.host else self.path

    @property
    def authority(self) -> str:
        """The value of the header `Host`."""
        if not self.host:
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def _ascii_host(host: str, url: str) -> str:
    """Return a name as name servers know it; raise ValueError where they cannot."""
    try:
        return host.encode("idna").decode()
    except UnicodeError:
        raise ValueError(f"expected the name of a host, got {host!r} in {url!r}") from None


@dataclass(frozen=True, slots=True)
class Connect:
    """Step: connect to an endpoint; its result is a `Connection`."""

    endpoint: Endpoint
    timeout: float


@dataclass(frozen=True, slots=True)
class Send:
    """Step: send bytes."""

    connection: Any
    data: bytes
    timeout: float


@dataclass(frozen=True, slots=True)
class Receive:
    """Step: receive some bytes; its result is empty at the end. Without a timeout it waits on."""

    connection: Any
    timeout: float | None


@dataclass(frozen=True, slots=True)
class Sleep:
    """Step: wait for some seconds."""

    seconds: float


Step = Connect | Send | Receive | Sleep
T = TypeVar("T")
Operation = Generator[Step, Any, T]


@dataclass(frozen=True, slots=True)
class Call:
    """A request.

    Attributes:
        is_write: whether it changes something, so that it must not be sent twice.
    """

    method: str
    path: str
    query: Mapping[str, str]
    body: bytes = b""
    content_type: str = ""
    is_write: bool = False

    def render(self, authority: str, authorization: str) -> bytes:
        """Return its bytes."""
        query = urlencode(self.query, errors="surrogateescape")
        target = f"{self.path}?{query}" if query else self.path
        lines = [f"{self.method} {target} HTTP/1.1", f"Host: {authority}", "Accept: */*"]
        if authorization:
            lines.append(f"Authorization: {authorization}")
        if self.content_type:
            lines.append(f"Content-Type: {self.content_type}")
        if self.body or self.method in ("PUT", "POST"):
            lines.append(f"Content-Length: {len(self.body)}")
        return "\r\n".join([*lines, "", ""]).encode("ascii") + self.body


class Answer:
    """An answer that is being received.

    Attributes:
        status: its status; 0 before the head is whole.
        headers: by their names in small letters.
        is_headed, is_whole: whether the head, and all of it, has come.
        keeps_open: whether the connection serves further requests.

    What comes behind it was not asked for: it is passed over, and the connection not used again.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.is_headed = self.is_whole = self.keeps_open = False
        self._pieces: list[bytes] = []
        self._head_bytes = 0
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """Take bytes of it.

        Raises:
            TransportError: they are no answer.
        """
        try:
            if data:
                self._parser.feed_data(data)
            elif not self.is_whole:
                raise TransportError("the server has closed the connection before its answer")
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.keeps_open = False
            if not self.is_whole:
                raise TransportError(f"what came is no HTTP response: {error}") from error
        if not self.is_headed:
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES_MAX:
                raise TransportError("the head of the response has no end")

    def take(self) -> bytes:
        """Return what has come of the body since the last call."""
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data

    def index(self, name: str = "x-etcd-index") -> int:
        """Return a number of the head, 0 where there is none."""
        text = self.headers.get(name, "")
        return int(text) if text.isdecimal() and len(text) <= _DIGITS_MAX else 0

    # What httptools calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header."""
        if not self.is_whole:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Note that the head is whole; of an interim one (1xx), that another will come."""
        if self.is_whole:
            return
        self.status = self._parser.get_status_code()
        if self.status < 200:
            self.headers = {}
        else:
            self.is_headed = True

    def on_body(self, body: bytes) -> None:
        """Note a piece of the body."""
        if not self.is_whole:
            self._pieces.append(body)

    def on_message_begin(self) -> None:
        """Note that the server goes on after its answer."""
        if self.is_whole:
            self.keeps_open = False

    def on_message_complete(self) -> None:
        """Note that it is whole."""
        if self.is_headed and not self.is_whole:
            self.is_whole = True
            self.keeps_open = self._parser.should_keep_alive()


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that is whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    index: int


class Stream:
    """The open answer of a watch, line by line.

    Attributes:
        connection: the driver's, which nothing else uses.
        answer: its head has come.
    """

    def __init__(self, connection: Connection, answer: Answer) -> None:
        self.connection = connection
        self.answer = answer
        self._rest: list[bytes] = []  # of the line that has not ended
        self._lines: deque[bytes] = deque()

    def line(self, timeout: float | None) -> Operation[bytes | None]:
        """Return the next line that is not empty; None once the answer has ended.

        Raises:
            Timeout: it was silent for so many seconds; it may be asked for again.
            TransportError: the connection was lost.
        """
        answer = self.answer
        while True:
            *lines, rest = answer.take().split(b"\n")
            if lines:
                lines[0] = b"".join([*self._rest, lines[0]])
                self._rest.clear()
            self._rest.append(rest)
            self._lines += [line for line in lines if line.strip()]
            if self._lines:
                return self._lines.popleft()
            if answer.is_whole:
                last = b"".join(self._rest).strip()
                self._rest.clear()
                return last or None
            try:
                data = yield Receive(self.connection, timeout)
            except TimeoutError as error:
                raise Timeout(f"the connection was silent for {timeout} s") from error
            except OSError as error:
                raise TransportError(f"the connection was lost: {error}") from error
            answer.feed(data)

"""The HTTP server: what all its connections share, and the end of those that overstay.

It listens nowhere: `kvd.net` accepts sockets and makes the connections (`kvd.http.connection`).

Invariants:

- Each open connection is in `connections`; of those beyond the limit, the last few are served a
  health check or metrics, and are in `reserve` until their request is known.
- A deadline is checked once a second, and is exact to a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from tornado import httputil

from kvd import __version__
from kvd.http.parsing.header_cache import Blocks
from kvd.http.parsing.headers import Block
from kvd.http.parsing.request_parser import SHORT_LINE_BYTES
from kvd.http.receiving import Receiving
from kvd.http.sending.scheduler import Sending
from kvd.limits.crowd import Crowd, Member
from kvd.limits.memory_budget import MemoryBudget
from kvd.limits.turns import Turns
from kvd.logs import SLOW_QUIET_S, RateLimit

SERVER_HEADER = f"kvd/{__version__}"

# How long a stop waits: for the request that a client was about to send on an open connection, and
# for the rest of one that has begun to come.
_STOP_IDLE_S = 0.2
_STOP_BEGUN_S = 3.0

# Beyond the limit of connections so many are heard, the last that came: whoever looks after the
# server gets an answer in any case.
_RESERVE_MAX = 16

REASONS: dict[int, str] = {
    HTTPStatus.BAD_REQUEST: "malformed",
    HTTPStatus.REQUEST_TIMEOUT: "timeout",
    HTTPStatus.FORBIDDEN: "cross_site",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "body_too_large",
    HTTPStatus.EXPECTATION_FAILED: "expectation",
    HTTPStatus.MISDIRECTED_REQUEST: "foreign_host",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "head_too_large",
    HTTPStatus.SERVICE_UNAVAILABLE: "stopping",
}
"""By which name a refusal is counted."""
TOO_MANY = "too_many_connections"
TOO_MUCH = "too_much_at_once"
_UNREAD = "answer_not_read"


class Limits(NamedTuple):
    """What a client may take: bytes of a head, seconds for its parts; and what all may together."""

    header_bytes_max: int = 64 << 10
    header_timeout_s: float = 30.0
    body_timeout_s: float = 60.0
    idle_timeout_s: float = 3600.0
    write_timeout_s: float = 60.0
    connections_max: int = 10_000
    lingering_max: int = 256
    """How many more may wait for their client to read why they are closed."""
    backlog: int = 128
    """How many clients may wait to be accepted."""


class OpenConnection(Member, Protocol):
    """What the server does with its connections."""

    deadline: float
    """When the client has taken too long, on the loop's clock."""

    @property
    def unsent_bytes(self) -> int:
        """What the client has not read yet, beyond what the kernel holds for it."""

    @property
    def is_asked(self) -> bool:
        """Whether a request has begun to come and is not answered, and its client would read that.

        Watches are no such request.
        """

    def expire(self) -> None:
        """The client has taken too long."""

    def answer_no_more(self) -> None:
        """Let the present answer, or the next one, be the last."""

    def stop(self) -> None:
        """Ask the client to leave now; if it is being answered, after that."""

    def turn_away(self) -> None:
        """Refuse to serve the client: there are too many connections."""


C = TypeVar("C")


class Delegate(Generic[C]):
    """What serves the requests of connections of one kind.

    Attributes:
        serve_whole: Serves bytes that are one whole request, head and body, or declines them.

            Nearly all requests are of this kind. The objects of Tornado's interface cost as much
            as all else that is done for one (measured), so they are made only for what is declined
            here, by returning None with nothing done; what may be costly, for one (a line longer
            than `SHORT_LINE_BYTES` that `is_deep`). Else it returns the answer, which keeps an
            HTTP/1.1 connection open; or nothing, if that comes later: by `Connection.reply` (then
            its `stage` is `ANSWERING` from now on) or by other ways (after `Connection.begin`).
    """

    serve_whole: Callable[[C, bytes], bytes | None] = staticmethod(lambda connection, request: None)
    refusal_headers = b""
    """Header lines of what HTTP itself refuses."""

    def attach(self, server: HttpServer) -> None:
        """Take note of the server whose requests these are; it calls this once."""

    def short_way(self, block: Block) -> bool | None:
        """Return whether requests with a header block have a form; None: `serve_whole` declines.

        It is asked once for each, of those that are plain.
        """
        return False

    def answer(self, connection: C, outcome: object) -> None:
        """Answer a request that `serve_whole` took, by an outcome that the connection was given."""

    def start_request(self, connection: C) -> httputil.HTTPMessageDelegate:
        """Return what receives a request that `serve_whole` has declined."""
        raise NotImplementedError


class HttpServer:
    """All connections, and what they share."""

    def __init__(
        self,
        delegate: Delegate[Any],
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        memory: MemoryBudget,
        turns: Turns | None = None,
    ) -> None:
        self.delegate = delegate
        self.limits = limits
        self.loop = loop
        self.connections: set[OpenConnection] = set()
        self.shaking: dict[Member, None] = {}
        """Connections whose handshake of TLS is not done, in the order in which they came."""
        self.crowd = Crowd(self.connections, self.shaking)
        self.reserve: dict[OpenConnection, None] = {}
        """Those beyond the limit that are heard, in the order in which they came."""
        self.now = loop.time()
        """The loop's time, as of the last tick or later: exact enough for timeouts."""
        self._ticked = self.now
        self.stopping = False
        self.accepted = 0
        """How many connections there have been."""
        self.idle_closed = 0
        """How many were closed because they asked nothing for too long."""
        self.rejected = dict.fromkeys((*REASONS.values(), TOO_MANY, TOO_MUCH, _UNREAD), 0)
        """How many requests or connections HTTP itself has refused, by reason."""
        self.tls_warnings = RateLimit(10.0)
        """A client that goes wrong does so again and again."""
        self.warnings = RateLimit(SLOW_QUIET_S)
        self.memory = memory
        self.blocks = Blocks(delegate.short_way, limits.header_bytes_max - SHORT_LINE_BYTES)
        self.receiving = Receiving(memory, loop.time)
        # In a step of its own: those that go on there may answer, and so give back more.
        memory.observe_room(self._wake_soon)
        give_up = self.receiving.give_up_for_answers
        self.sending = Sending(loop, memory, limits.write_timeout_s, give_up)
        self.turns = turns or Turns(loop)
        self.buffer = self.turns.buffer
        self.starts: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})
        """Beginnings of answers of the present second, by status; those of HTTP/1.0 second.

        Other objects in the next second.
        """
        self.idle_deadline = self.now + limits.idle_timeout_s
        """When a connection has been idle for too long that is so from now on."""
        delegate.attach(self)

    def start(self, status: int, *, http10: bool) -> bytes:
        """Return the beginning of an answer: status line, Server and Date."""
        starts = self.starts[http10]
        start = starts.get(status)
        if start is None:
            start = starts[status] = (
                f"HTTP/1.{0 if http10 else 1} {status} {HTTPStatus(status).phrase}\r\n"
                f"Server: {SERVER_HEADER}\r\nDate: {formatdate(usegmt=True)}\r\n"
            ).encode()
        return start

    def tick(self) -> None:
        """Let the Date go on, and close what has overstayed; called every second."""
        # A deadline counts from the tick before it was set: it is up to a tick too early.
        before, self._ticked = self._ticked, self.loop.time()
        self.now = self._ticked
        self.idle_deadline = self.now + self.limits.idle_timeout_s
        self.starts = ({}, {})
        late = {c for c in self.connections if c.deadline < before}
        for connection in late.union(c for c in self.reserve if c.deadline < self.now):
            connection.expire()
        self.receiving.tick(self.now)
        self.sending.tick(self.now)
        self.crowd.tick()
        self.rejected[_UNREAD] = self.sending.cut
        self.blocks.tick(self.now)

    def _wake_soon(self) -> None:
        self.loop.call_soon(self.receiving.wake)

    @property
    def excess(self) -> int:
        """How many connections there are beyond the limit."""
        return len(self.connections) + len(self.shaking) - self.limits.connections_max

    def has_room(self, newcomer: Member) -> bool:
        """Return whether a connection may be served; another one is closed for it if need be."""
        if self.excess <= 0:
            return True
        # It is told by the time who has asked nothing for longest.
        self.now = self.loop.time()
        self.idle_deadline = self.now + self.limits.idle_timeout_s
        return self.crowd.displace(newcomer, self.now)

    def hear_beyond_limit(self, connection: OpenConnection) -> None:
        """Keep a connection beyond the limit until its request is known, in place of the oldest."""
        self.reserve[connection] = None
        if len(self.reserve) > min(_RESERVE_MAX, self.limits.lingering_max):
            next(iter(self.reserve)).turn_away()

    def stop(self) -> None:
        """Let every answer from now on be the last of its connection, and say so."""
        self.stopping = True
        # No request goes the short way any more, whose answers are ready made.
        self.blocks.stop()
        for connection in self.connections:
            connection.answer_no_more()

    async def finish(self) -> None:
        """Wait for what clients have begun to ask, or may be about to; then ask them to leave.

        Closing an idle connection at once would reset the client that is just using it.
        """
        began = self.loop.time()
        while self.connections:
            waited_s = self.loop.time() - began
            is_begun = any(connection.is_asked for connection in self.connections)
            if waited_s > (_STOP_BEGUN_S if is_begun else _STOP_IDLE_S):
                break
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            connection.stop()

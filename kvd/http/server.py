"""HTTP server: the state that its connections share, their limits and deadlines.

It listens nowhere: `kvd.net` accepts sockets and makes the connections (`kvd.http.connection`).

Invariants:

- Each open connection is in `connections`. Of those beyond the limit the last few are in `reserve`
  until their request is known: health checks and metrics are served.
- A deadline is checked once a second, and is exact to a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from tornado import httputil

from kvd.http.parsing.header_cache import HeaderCache
from kvd.http.parsing.headers import Block
from kvd.http.parsing.request_parser import SHORT_LINE_BYTES
from kvd.http.receiving import Receiving
from kvd.http.sending.scheduler import SendScheduler
from kvd.http.sending.status_lines import StatusLines
from kvd.limits.crowd import Crowd, Member
from kvd.limits.memory_budget import MemoryBudget
from kvd.limits.turns import Turns
from kvd.logs import SLOW_QUIET_S, RateLimit

# Time that a stop waits for requests that clients are about to send on open connections, and for
# incomplete ones.
_STOP_IDLE_S = 0.2
_STOP_BEGUN_S = 3.0
# Time that a stop gives clients to read the last responses, and to leave after that.
_FLUSH_S = 0.5
_LEAVE_S = 0.1

# Size of the reserve beyond the limit of connections: monitoring gets a response in any case.
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
"""Names by which refusals are counted."""
TOO_MANY = "too_many_connections"
TOO_MUCH = "too_much_at_once"
_UNREAD = "answer_not_read"


class Limits(NamedTuple):
    """Limits per client (bytes of a head, seconds for parts of a request) and of all clients."""

    header_bytes_max: int = 64 << 10
    header_timeout_s: float = 30.0
    body_timeout_s: float = 60.0
    idle_timeout_s: float = 3600.0
    write_timeout_s: float = 60.0
    connections_max: int = 10_000
    lingering_max: int = 256
    """Refused connections beyond the limit that may linger."""
    backlog: int = 128
    """Pending connections of a listening socket."""


class OpenConnection(Member, Protocol):
    """A connection, as the server uses it."""

    deadline: float
    """Time of `expire`, on the loop's clock."""

    @property
    def unsent_bytes(self) -> int:
        """Unread output, without what the kernel holds."""

    @property
    def is_asked(self) -> bool:
        """Whether a request is pending and its client reads; a watch does not count."""

    def expire(self) -> None:
        """Close the connection, or refuse its request: the deadline has passed."""

    def answer_no_more(self) -> None:
        """Make the present response, or the next one, the last."""

    def stop(self) -> None:
        """Close the connection, unless a request is being answered."""

    def turn_away(self) -> None:
        """Refuse to serve the client: there are too many connections."""


C = TypeVar("C")


class Delegate(Generic[C]):
    """Serves the requests of connections.

    Attributes:
        serve_whole: serves the bytes of one whole request, head and body, or declines it.

            Nearly all requests are served here. The objects of Tornado's interface cost as much as
            all else of a request (measured), so they are made for declined requests only. It
            returns

            - None to decline, with nothing done; it must decline what may be costly (a line longer
              than `SHORT_LINE_BYTES` that `is_deep`);
            - the response, if the connection stays open (HTTP/1.1);
            - b"" if the response comes later: by `Connection.reply`, after `stage` was set to
              `ANSWERING`, or by other methods, after `Connection.begin`.
    """

    serve_whole: Callable[[C, bytes], bytes | None] = staticmethod(lambda connection, request: None)
    refusal_headers = b""
    """Header lines of what HTTP itself refuses."""

    def attach(self, server: HttpServer) -> None:
        """Note the server of the connections; called once."""

    def short_way(self, block: Block) -> bool | None:
        """Return whether the body of requests with a header block is a form; None to decline them.

        Called once for each block that is plain.
        """
        return False

    def answer(self, connection: C, outcome: object) -> None:
        """Answer a request that `serve_whole` has accepted, with its outcome."""

    def start_request(self, connection: C) -> httputil.HTTPMessageDelegate:
        """Return what receives a request that `serve_whole` has declined."""
        raise NotImplementedError


class HttpServer:
    """The connections, and what they share.

    Attributes:
        shaking: connections with an unfinished TLS handshake, the oldest first.
        reserve: those beyond the limit whose request is not known, the oldest first.
        now: the loop's time, as of the last tick or later: exact enough for timeouts.
        accepted: number of connections so far.
        idle_closed: number of connections closed by the idle timeout.
        rejected: numbers of requests and connections that HTTP itself has refused, by reason.
        start: `StatusLines.start`.
        idle_deadline: deadline of a connection that is idle from now on.
    """

    def __init__(
        self,
        delegate: Delegate[Any],
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        memory: MemoryBudget,
        *,
        turns: Turns | None = None,
        status_lines: StatusLines | None = None,
    ) -> None:
        self.delegate = delegate
        self.limits = limits
        self.loop = loop
        self.connections: set[OpenConnection] = set()
        self.shaking: dict[Member, None] = {}
        self.crowd = Crowd(self.connections, self.shaking)
        self.reserve: dict[OpenConnection, None] = {}
        self.now = loop.time()
        self._ticked = self.now
        self.stopping = False
        self.accepted = 0
        self.idle_closed = 0
        self.rejected = dict.fromkeys((*REASONS.values(), TOO_MANY, TOO_MUCH, _UNREAD), 0)
        self.tls_warnings = RateLimit(10.0)
        self.warnings = RateLimit(SLOW_QUIET_S)
        self.memory = memory
        self.header_cache = HeaderCache(
            delegate.short_way, limits.header_bytes_max - SHORT_LINE_BYTES
        )
        self.receiving = Receiving(memory, loop.time)
        # Deferred: a request that goes on may be answered, and so give back more.
        memory.observe_room(self._wake_soon)
        give_up = self.receiving.give_up_for_answers
        self.sending = SendScheduler(loop, memory, limits.write_timeout_s, give_up)
        self.turns = turns or Turns(loop)
        self.buffer = self.turns.buffer
        self.status_lines = status_lines or StatusLines()
        self.start = self.status_lines.start
        self.idle_deadline = self.now + limits.idle_timeout_s
        delegate.attach(self)

    def tick(self) -> None:
        """Advance the Date, and expire connections; called every second."""
        # A deadline counts from the tick before it was set: it is up to a tick too early.
        before, self._ticked = self._ticked, self.loop.time()
        self.now = self._ticked
        self.idle_deadline = self.now + self.limits.idle_timeout_s
        self.status_lines.tick()
        late = {c for c in self.connections if c.deadline < before}
        for connection in late.union(c for c in self.reserve if c.deadline < self.now):
            connection.expire()
        self.receiving.tick(self.now)
        self.sending.tick(self.now)
        self.crowd.tick()
        self.rejected[_UNREAD] = self.sending.cut
        self.header_cache.tick(self.now)

    def _wake_soon(self) -> None:
        self.loop.call_soon(self.receiving.wake)

    @property
    def excess(self) -> int:
        """Number of connections beyond the limit."""
        return len(self.connections) + len(self.shaking) - self.limits.connections_max

    def has_room(self, newcomer: Member) -> bool:
        """Return whether a connection may be served; close another one for it if necessary."""
        if self.excess <= 0:
            return True
        # The choice compares times, so they have to be exact.
        self.now = self.loop.time()
        self.idle_deadline = self.now + self.limits.idle_timeout_s
        return self.crowd.displace(newcomer, self.now)

    def hear_beyond_limit(self, connection: OpenConnection) -> None:
        """Keep a connection beyond the limit until its request is known, in place of the oldest."""
        self.reserve[connection] = None
        if len(self.reserve) > min(_RESERVE_MAX, self.limits.lingering_max):
            next(iter(self.reserve)).turn_away()

    def stop(self) -> None:
        """Make each response the last of its connection, with `Connection: close`."""
        self.stopping = True
        # Responses of the short way keep the connection open: no request takes it any more.
        self.header_cache.stop()
        for connection in self.connections:
            connection.answer_no_more()

    def abort(self) -> None:
        """Reset every connection."""
        for connection in list(self.connections):
            connection.abort()

    async def finish(self) -> None:
        """Wait for pending requests, and those that clients may be about to send; then close.

        Closing an idle connection at once would reset a client that is just sending a request.
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

    async def flush(self) -> None:
        """Send the last responses, as far as clients read them, and close the connections."""
        began = self.loop.time()
        while self.connections and (waited_s := self.loop.time() - began) < _FLUSH_S:
            if waited_s > _LEAVE_S and not any(c.unsent_bytes for c in self.connections):
                break
            await asyncio.sleep(0.01)
        self.abort()

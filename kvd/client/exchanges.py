"""Requests and their answers: kept connections, several endpoints, and what may be sent twice.

Also what an answer means: the error of a refusal, and what is made of JSON that may be anything.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, NoReturn, TypeVar

from kvd.client.errors import (
    ApiError,
    BadRequest,
    CompareFailed,
    DirectoryNotEmpty,
    HistoryLost,
    KeyExists,
    KeyNotFound,
    KvdError,
    NotADirectory,
    NotAFile,
    OutcomeUnknown,
    RootReadOnly,
    ServerRefused,
    Timeout,
    TransportError,
    Unauthorized,
)
from kvd.client.wire import (
    Answer,
    Call,
    Connect,
    Connection,
    Endpoint,
    Operation,
    Receive,
    Reply,
    Send,
    Sleep,
    Stream,
)

T = TypeVar("T")
# 31 years. What systems take ends somewhere above, before infinity.
_TIMEOUT_MAX_S = 1e9
_LEAST_S = 0.001
"""The shortest timeout of a step."""
# The pause before the next round through all endpoints, and the longest.
PAUSE_S = 0.02
PAUSE_MAX_S = 0.25


class Exchanges:
    """Sends requests to the first of some endpoints that answers, over connections that are kept.

    Attributes:
        endpoints: all of them; the one that answered last is asked first.
        timeout: seconds that a request takes at most, with all endpoints.
        connect_timeout: seconds that one connection takes at most, where that is less.
        rounds: how often all endpoints are tried; None for until the timeout.
    """

    def __init__(
        self, endpoints: Sequence[Endpoint], authorization: str, timeout: float, kept: int
    ) -> None:
        """Raises ValueError: the timeout cannot be used."""
        if not 0 < timeout <= _TIMEOUT_MAX_S:
            raise ValueError(f"expected a timeout of more than 0 seconds, got {timeout}")
        self.endpoints = tuple(endpoints)
        self.timeout = timeout
        self.connect_timeout = float("inf")
        self.rounds: int | None = None
        self.authorization = authorization
        self._current = 0
        self._idle: dict[Endpoint, deque[Any]] = {one: deque(maxlen=kept) for one in endpoints}
        self._kept = kept
        self._pid = os.getpid()

    def request(self, call: Call, timeout: float | None = None) -> Operation[Reply]:
        """Return the answer to a request, in so many seconds (by default, those of the client).

        Raises:
            TransportError, Timeout: none came in time, and nothing was changed.
            OutcomeUnknown: a write was sent, and no answer came.
        """

        def receive(
            endpoint: Endpoint, connection: Connection, deadline: float
        ) -> Operation[Reply]:
            answer = Answer()
            while not answer.is_whole:
                answer.feed((yield Receive(connection, _left(deadline))))
            if answer.keeps_open:
                self._keep(endpoint, connection)
            else:
                connection.close()
            return Reply(answer.status, answer.headers, answer.take(), answer.index())

        timeout = self.timeout if timeout is None else timeout
        return (yield from self._first(call, receive, timeout, is_fresh=False))

    def open(self, call: Call, timeout: float | None = None) -> Operation[Stream]:
        """Return an answer whose head has come, on a connection of its own.

        Raises:
            TransportError, Timeout: as for `request`.
        """

        def receive(
            _endpoint: Endpoint, connection: Connection, deadline: float
        ) -> Operation[Stream]:
            answer = Answer()
            while not answer.is_headed:
                answer.feed((yield Receive(connection, _left(deadline))))
            return Stream(connection, answer)

        timeout = self.timeout if timeout is None else timeout
        return (yield from self._first(call, receive, timeout, is_fresh=True))

    def _first(
        self,
        call: Call,
        receive: Callable[[Endpoint, Connection, float], Operation[T]],
        timeout: float,
        *,
        is_fresh: bool,
    ) -> Operation[T]:
        """Ask one endpoint after the other, until one answers or time is over."""
        deadline = monotonic() + timeout
        pause, asked = PAUSE_S, 0
        failures: dict[str, Exception] = {}
        while True:
            endpoint = self.endpoints[self._current % len(self.endpoints)]
            # An endpoint that is silent leaves time for the others.
            share = deadline - monotonic()
            share /= len(self.endpoints) - asked % len(self.endpoints)
            ends = deadline if call.is_write else monotonic() + share
            connection = None if is_fresh else self._take(endpoint)
            try:
                if connection is None:
                    limit = min(share, self.connect_timeout)
                    connection = yield Connect(endpoint, max(limit, _LEAST_S))
                return (yield from self._exchange(call, receive, endpoint, connection, ends))
            except (OSError, TransportError) as error:
                # What the end of the time has cut off says less than what came before it.
                if endpoint.address not in failures or not isinstance(error, TimeoutError):
                    failures[endpoint.address] = error
            asked += 1
            self._current += 1
            left = deadline - monotonic()
            is_last = self.rounds is not None and asked >= self.rounds * len(self.endpoints)
            is_last |= len(failures) == len(self.endpoints) and all(
                _is_final(one) for one in failures.values()
            )
            if left <= 0 or is_last:
                _give_up(failures, timeout if left <= 0 else None)
            if asked % len(self.endpoints) == 0:
                yield Sleep(min(pause, left))
                pause = min(2 * pause, PAUSE_MAX_S)

    def _exchange(
        self,
        call: Call,
        receive: Callable[[Endpoint, Connection, float], Operation[T]],
        endpoint: Endpoint,
        connection: Connection,
        ends: float,
    ) -> Operation[T]:
        """Send a request on a connection and receive its response.

        Raises:
            OutcomeUnknown: there is no response to a write.
            OSError, TransportError: there is none to a read, which may be sent again.
        """
        try:
            data = call.render(endpoint.authority, self.authorization)
            yield Send(connection, data, _left(ends))
            return (yield from receive(endpoint, connection, ends))
        except (OSError, TransportError) as error:
            _close(connection)
            if call.is_write:
                raise OutcomeUnknown(
                    f"{call.method} {call.path} was sent to {endpoint.address}, "
                    f"and no answer came: {error or type(error).__name__}"
                ) from error
            raise
        except BaseException:
            _close(connection)
            raise

    def _take(self, endpoint: Endpoint) -> Any:
        """Return a kept connection that is still open, or None."""
        if os.getpid() != self._pid:
            # What a fork has copied belongs to the parent.
            self._pid = os.getpid()
            self._idle = {one: deque(maxlen=self._kept) for one in self.endpoints}
        idle = self._idle[endpoint]
        while True:
            try:
                connection = idle.pop()
            except IndexError:
                return None
            if not connection.is_stale():
                return connection
            connection.close()

    def _keep(self, endpoint: Endpoint, connection: Connection) -> None:
        idle = self._idle[endpoint]
        if len(idle) < self._kept:
            idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close all connections that are kept; none is kept from now on."""
        self._kept = 0
        for idle in self._idle.values():
            while idle:
                idle.pop().close()


def _give_up(failures: Mapping[str, Exception], timeout: float | None) -> NoReturn:
    """Raise the error of a request that no endpoint answered."""
    responded = [one for one in failures.values() if not isinstance(one, TimeoutError)]
    *_, last = responded or failures.values()
    how_long = "" if timeout is None else f" in {timeout:g} s"
    kind = Timeout if isinstance(last, TimeoutError) else TransportError
    lost = kind(f"no answer from {', '.join(failures)}{how_long}: {last or type(last).__name__}")
    lost.failures = failures
    raise lost from last


def _is_final(error: Exception) -> bool:
    """Return whether another try would fail in the same way: a certificate is not trusted."""
    # This is ssl.SSLCertVerificationError, whose module is loaded for programs with TLS alone.
    return isinstance(error, OSError) and isinstance(error, ValueError)


def _left(deadline: float) -> float:
    return max(deadline - monotonic(), _LEAST_S)


def _close(connection: Connection | None) -> None:
    if connection is not None:
        connection.close()


_BY_CODE: dict[int, type[ApiError]] = {
    100: KeyNotFound,
    101: CompareFailed,
    102: NotAFile,
    104: NotADirectory,
    105: KeyExists,
    107: RootReadOnly,
    108: DirectoryNotEmpty,
    110: Unauthorized,
    300: ServerRefused,
    401: HistoryLost,
}
_BY_STATUS: dict[int, type[ApiError]] = {401: Unauthorized, 403: Unauthorized} | dict.fromkeys(
    (408, 429, 502, 503, 504), ServerRefused
)
# Of proxies, and of a server in trouble: the write may be on its way.
_OPEN_STATUSES = (408, 500, 502, 504)
# Causes of code 300 that leave open whether a write has happened: of kvd when its disk fails, of
# etcd when its cluster does not agree in time, or when it is stopped meanwhile.
_OPEN_OUTCOMES = ("outcome unknown", "timed out", "timeout", "server stopped", "cancel")


def refusal(reply: Reply, *, is_write: bool) -> KvdError:
    """Return the error in an answer that is no success."""
    try:
        decoded: Any = json.loads(reply.body)
    except (ValueError, RecursionError):
        decoded = None
    found = decoded if isinstance(decoded, dict) else {}
    code, index = found.get("errorCode"), found.get("index")
    if not isinstance(code, int):
        return _foreign_refusal(reply, str(found.get("message", "")), is_write=is_write)
    cause = str(found.get("cause", ""))
    if code == 300 and is_write and any(text in cause for text in _OPEN_OUTCOMES):
        return OutcomeUnknown(cause)
    kind = BadRequest if 200 <= code < 300 else _BY_CODE.get(code, ApiError)
    index = index if isinstance(index, int) else 0
    return kind(code, str(found.get("message", "")), cause, index, reply.status)


def _foreign_refusal(reply: Reply, text: str, *, is_write: bool) -> KvdError:
    """Return the error in an answer that has none of etcd's codes."""
    status = reply.status
    text = text or reply.body[:200].decode("utf-8", "replace").strip() or "no reason given"
    if is_write and status in _OPEN_STATUSES:
        return OutcomeUnknown(f"the answer was {status}: {text}")
    if status < 400:
        where = reply.headers.get("location", "another place")
        text = f"redirects are not followed, and this is one to {where}"
    return _BY_STATUS.get(status, ApiError)(0, text, "", 0, status)


def json_of(reply: Reply) -> dict[str, Any]:
    """Return the JSON of a response.

    Raises:
        KvdError: it is none, or nested too deeply.
    """
    try:
        decoded: Any = json.loads(reply.body)
    except ValueError:
        raise KvdError(f"the response is no JSON: {reply.body[:200]!r}") from None
    except RecursionError:
        raise KvdError("the response is nested too deeply for Python") from None
    if not isinstance(decoded, dict):
        raise KvdError(f"the response is no JSON object: {reply.body[:200]!r}")
    return decoded


def parsed(reply: Reply, parse: Callable[[dict[str, Any]], T], *, is_write: bool = False) -> T:
    """Return what a function makes of the JSON of a response.

    Raises:
        KvdError: it cannot be read.
        OutcomeUnknown: the same, of a write.
    """
    try:
        return readable(reply.body, lambda: parse(json_of(reply)))
    except ApiError:
        raise
    except KvdError as error:
        if is_write:
            raise OutcomeUnknown(f"the answer to a write cannot be read: {error}") from error
        raise


def readable(received: bytes, parse: Callable[[], T]) -> T:
    """Return what a function makes of what was received; raise KvdError where it cannot."""
    try:
        return parse()
    except KvdError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise KvdError(f"the response is in no form of etcd's: {received[:200]!r}") from error

"""Requests and their answers: kept connections, several endpoints, and what may be sent twice."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, NoReturn, TypeVar

from kvd.client.errors import OutcomeUnknown, Timeout, TransportError
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
        self.endpoints = tuple(endpoints)
        self.timeout = timeout
        self.connect_timeout = float("inf")
        self.rounds: int | None = None
        self._authorization = authorization
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
            data = call.render(endpoint.authority, self._authorization)
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
        """Close all connections that are kept."""
        for idle in self._idle.values():
            while idle:
                idle.pop().close()


def _give_up(failures: Mapping[str, Exception], timeout: float | None) -> NoReturn:
    """Raise the error of a request that no endpoint answered."""
    told = [one for one in failures.values() if not isinstance(one, TimeoutError)]
    *_, last = told or failures.values()
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

"""Watches without sockets: every event once, in order, over lost connections and restarts.

On kvd a watch is one stream with `progress`, so that a quiet one still moves on and a dead
connection is noticed. On etcd it is a long poll after the other: its streams stall after an event
from history.
"""

from __future__ import annotations

import json
import os
from math import inf, isnan
from time import monotonic
from typing import Any

from kvd.client.errors import (
    ClusterChanged,
    HistoryLost,
    KvdError,
    ServerRefused,
    Timeout,
    TransportError,
    WatchTimeout,
)
from kvd.client.exchanges import PAUSE_MAX_S, PAUSE_S, readable, refusal
from kvd.client.model import Event, Snapshot
from kvd.client.operations import Operations
from kvd.client.wire import Call, Operation, Reply, Sleep, Stream

PROGRESS_S = 5
"""How often kvd tells a quiet stream how far it has come, in seconds."""
_SILENCE_S = 3 * PROGRESS_S
_LEAST_S = 0.001


def require_seconds(timeout: float | None) -> None:
    """Raise ValueError unless a time to wait is a number, or None: there is no order with NaN."""
    if timeout is not None and isnan(timeout):
        raise ValueError("expected seconds to wait, got NaN")


class _Limit:
    """The time of one call, of so many seconds; of all time without them."""

    def __init__(self, timeout: float | None) -> None:
        require_seconds(timeout)
        self._timeout = timeout
        self._ends = None if timeout is None else monotonic() + timeout

    def of(self, seconds: float) -> float:
        """Return these seconds, or those that are left where they are fewer."""
        left = inf if self._ends is None else self._ends - monotonic()
        return max(min(seconds, left), _LEAST_S)

    def check(self) -> None:
        """Raise WatchTimeout once the time is over."""
        if self._ends is not None and monotonic() >= self._ends:
            raise WatchTimeout(f"no event in {self._timeout:g} s")

    def pause(self, seconds: float) -> Operation[None]:
        """Wait before a server is asked again."""
        self.check()
        yield Sleep(self.of(seconds))


class Watching:
    """The state of one watch.

    Attributes:
        index: the last index of which all is known: what the next watch begins behind.
        stream: the open answer, while there is one.
        is_closed: whether the program has closed it.
        cluster_id: the id of the store, empty before it has answered.
    """

    def __init__(
        self,
        ops: Operations,
        key: str,
        since: int | None,
        *,
        recursive: bool,
        cluster_id: str = "",
    ) -> None:
        # To etcd, 0 is the next event, whichever that is.
        self.index: int | None = None if since is None else (since or 1) - 1
        self.stream: Stream | None = None
        self.is_closed = False
        self._ops = ops
        self._key = key
        self._recursive = recursive
        self._is_streaming = False
        self._silent_s = 0.0
        self._pid = os.getpid()
        self.cluster_id = cluster_id

    def next(self, timeout: float | None = None) -> Operation[Event]:
        """Return the next event.

        Raises:
            WatchTimeout: none came in so many seconds; the next call goes on from here.
            HistoryLost: the server no longer has all events since then.
            ClusterChanged: another store answers.
            ApiError: the watch was refused.
        """
        return self.until(_Limit(timeout))

    def until(self, limit: _Limit) -> Operation[Event]:
        """Return the next event, as `next` does."""
        pause = PAUSE_S
        if os.getpid() != self._pid:
            # What a fork has copied belongs to the parent, which would miss what is read here.
            self._pid = os.getpid()
            self.let_go()
        while True:
            try:
                if self.stream is None:
                    self.stream = yield from self._open(limit)
                event = yield from self._event(self.stream, limit)
                if event is not None:
                    return event
                pause = PAUSE_S
            except WatchTimeout:
                raise
            except (TransportError, ServerRefused):
                self.let_go()
                if self.is_closed:
                    raise
                yield from limit.pause(pause)
                pause = min(2 * pause, PAUSE_MAX_S)
            except BaseException:
                self.let_go()
                raise

    def _open(self, limit: _Limit) -> Operation[Stream]:
        timeout = self._ops.exchanges.timeout
        extras = yield from self._ops.extras(limit.of(timeout))
        self._is_streaming = "progress" in extras
        query = {"wait": "true"}
        if self._recursive:
            query["recursive"] = "true"
        if self._is_streaming:
            query |= {"stream": "true", "progress": str(PROGRESS_S)}
        if self.index is not None:
            query["waitIndex"] = str(self.index + 1)
        call = Call("GET", self._ops.path(self._key), query)
        stream = yield from self._ops.exchanges.open(call, limit.of(timeout))
        self._silent_s = 0.0
        try:
            yield from self._check(stream)
        except BaseException:
            stream.connection.close()
            raise
        return stream

    def _check(self, stream: Stream) -> Operation[None]:
        """Take note of the head of an answer."""
        answer = stream.answer
        if answer.status != 200:
            body = b""
            while (line := (yield from stream.line(self._ops.exchanges.timeout))) is not None:
                body += line
            reply = Reply(answer.status, answer.headers, body, answer.index())
            raise self._lost(refusal(reply, is_write=False))
        cluster_id = answer.headers.get("x-etcd-cluster-id", "")
        if self.cluster_id and cluster_id != self.cluster_id:
            raise ClusterChanged(self.cluster_id, cluster_id)
        self.cluster_id = cluster_id
        if self.index is None:
            # What comes later than this is yielded, on this connection or on the next one.
            self.index = answer.index()

    def _lost(self, error: KvdError) -> KvdError:
        if isinstance(error, HistoryLost) and not error.wanted and self.index is not None:
            error.wanted = self.index + 1
        return error

    def _line(self, stream: Stream, limit: _Limit) -> Operation[bytes | None]:
        """Return the next line of an answer, None at its end.

        Raises:
            WatchTimeout: none came in time.
            TransportError: the connection was lost, or a stream without progress has to be.
        """
        while True:
            began = monotonic()
            seconds = limit.of(_SILENCE_S - self._silent_s if self._is_streaming else inf)
            try:
                line = yield from stream.line(None if seconds == inf else seconds)
            except Timeout:
                # The seconds in which the program is busy elsewhere are not counted.
                self._silent_s += monotonic() - began
                limit.check()
                if self._is_streaming:
                    raise
            else:
                self._silent_s = 0.0
                return line

    def _event(self, stream: Stream, limit: _Limit) -> Operation[Event | None]:
        """Return the next event of an answer; None where something else, or its end, has come."""
        if self.is_closed:
            raise TransportError("the watch is closed")
        line = yield from self._line(stream, limit)
        index = self.index or 0
        if line is None:
            self.let_go()
            if self._is_streaming:
                raise TransportError("the stream has ended")
            # No event up to the index of its head matches; else it would have been sent.
            self.index = max(index, stream.answer.index())
            return None
        event = readable(line, lambda: self._parsed(json.loads(line)))
        if not self._is_streaming:
            self.let_go()
        if isinstance(event, int):
            self.index = max(index, event)
            return None
        self.index = max(index, event.index)
        return event if event.index > index else None

    def _parsed(self, document: dict[str, Any]) -> Event | int:
        """Return an event, or the index that the server has come to."""
        if document["action"] == "progress":
            return int(document["index"])
        return self._ops.names.event(document)

    def let_go(self) -> None:
        """Close the connection."""
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.connection.close()


class Following:
    """The state of one `follow`: snapshots, and the events behind them.

    Attributes:
        watching: the watch behind the last snapshot; None before the first one.
        is_closed: whether the program has closed it.
    """

    def __init__(self, ops: Operations, key: str) -> None:
        self.watching: Watching | None = None
        self.is_closed = False
        self._ops = ops
        self._key = key
        self._has_delivered = False

    def next(self, timeout: float | None = None) -> Operation[Snapshot | Event]:
        """Return a snapshot first, then what has changed since; a snapshot again after a gap.

        Raises:
            WatchTimeout: nothing came in so many seconds; the next call goes on from here.
        """
        limit = _Limit(timeout)
        if self.watching is not None:
            try:
                return (yield from self.watching.until(limit))
            except (HistoryLost, ClusterChanged):
                self.watching = None
        return (yield from self._snapshot(limit))

    def _snapshot(self, limit: _Limit) -> Operation[Snapshot]:
        pause = PAUSE_S
        while True:
            try:
                nodes, index, cluster_id = yield from self._ops.all_below(
                    self._key, limit.of(self._ops.exchanges.timeout)
                )
            except (TransportError, ServerRefused):
                if self.is_closed:
                    raise
                yield from limit.pause(pause)
                pause = min(2 * pause, PAUSE_MAX_S)
                continue
            self.watching = Watching(
                self._ops, self._key, index + 1, recursive=True, cluster_id=cluster_id
            )
            after_gap, self._has_delivered = self._has_delivered, True
            return Snapshot(nodes, index, after_gap)

    def let_go(self) -> None:
        """Close the connection."""
        if self.watching is not None:
            self.watching.is_closed = self.is_closed
            self.watching.let_go()

"""Watches without sockets: every event once, in order, over lost connections and restarts.

On kvd a watch is one stream with `progress`, so that a quiet one still moves on and a dead
connection is noticed. On etcd it is a long poll after the other: its streams stall after an event
from history.
"""

from __future__ import annotations

import json
from typing import Any

from kvd.client.errors import (
    ClusterChanged,
    HistoryLost,
    KvdError,
    ServerRefused,
    TransportError,
    refusal,
)
from kvd.client.exchanges import PAUSE_MAX_S, PAUSE_S
from kvd.client.model import Event, Snapshot
from kvd.client.operations import Operations
from kvd.client.wire import Call, Operation, Sleep, Stream

PROGRESS_S = 5
"""How often kvd tells a quiet stream how far it has come, in seconds."""
_SILENCE_S = 3 * PROGRESS_S


class Watching:
    """The state of one watch.

    Attributes:
        index: the last index of which all is known: what the next watch begins behind.
        stream: the open answer, while there is one.
        is_closed: whether the program has closed it.
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
        self.index: int | None = None if since is None else since - 1
        self.stream: Stream | None = None
        self.is_closed = False
        self._ops = ops
        self._key = key
        self._recursive = recursive
        self._is_streaming = False
        self._cluster_id = cluster_id

    def next(self) -> Operation[Event]:
        """Return the next event.

        Raises:
            HistoryLost: the server no longer has all events since then.
            ClusterChanged: another store answers.
            ApiError: the watch was refused.
        """
        pause = PAUSE_S
        while True:
            try:
                if self.stream is None:
                    self.stream = yield from self._open()
                event = yield from self._event(self.stream)
                if event is not None:
                    return event
                pause = PAUSE_S
            except (TransportError, ServerRefused):
                self.let_go()
                if self.is_closed:
                    raise
                yield Sleep(pause)
                pause = min(2 * pause, PAUSE_MAX_S)
            except BaseException:
                self.let_go()
                raise

    def _open(self) -> Operation[Stream]:
        extras = yield from self._ops.extras()
        self._is_streaming = "progress" in extras
        query = {"wait": "true"}
        if self._recursive:
            query["recursive"] = "true"
        if self._is_streaming:
            query |= {"stream": "true", "progress": str(PROGRESS_S)}
        if self.index is not None:
            query["waitIndex"] = str(self.index + 1)
        call = Call("GET", self._ops.path(self._key), query)
        stream = yield from self._ops.exchanges.open(call)
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
            raise self._lost(refusal(answer.status, body, is_write=False))
        cluster_id = answer.headers.get("x-etcd-cluster-id", "")
        if self._cluster_id and cluster_id != self._cluster_id:
            raise ClusterChanged(self._cluster_id, cluster_id)
        self._cluster_id = cluster_id
        if self.index is None:
            # What comes later than this is told, on this connection or on the next one.
            self.index = answer.index()

    def _lost(self, error: KvdError) -> KvdError:
        if isinstance(error, HistoryLost) and not error.wanted and self.index is not None:
            error.wanted = self.index + 1
        return error

    def _event(self, stream: Stream) -> Operation[Event | None]:
        """Return the next event of an answer; None where something else, or its end, has come."""
        if self.is_closed:
            raise TransportError("the watch is closed")
        line = yield from stream.line(_SILENCE_S if self._is_streaming else None)
        index = self.index or 0
        if line is None:
            self.let_go()
            if self._is_streaming:
                raise TransportError("the stream has ended")
            # No event up to the index of its head matches; else it would have been told.
            self.index = max(index, stream.answer.index())
            return None
        told: dict[str, Any] = json.loads(line)
        if told["action"] == "progress":
            self.index = max(index, told["index"])
            return None
        if not self._is_streaming:
            self.let_go()
        event = self._ops.names.event(told)
        if event.index <= index:
            return None
        self.index = event.index
        return event

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
        self._has_told = False

    def next(self) -> Operation[Snapshot | Event]:
        """Return a snapshot first, then what has changed since; a snapshot again after a gap."""
        if self.watching is None:
            return (yield from self._snapshot())
        try:
            return (yield from self.watching.next())
        except (HistoryLost, ClusterChanged):
            return (yield from self._snapshot())

    def _snapshot(self) -> Operation[Snapshot]:
        pause = PAUSE_S
        while True:
            try:
                nodes, index, cluster_id = yield from self._ops.all_below(self._key)
            except (TransportError, ServerRefused):
                if self.is_closed:
                    raise
                yield Sleep(pause)
                pause = min(2 * pause, PAUSE_MAX_S)
                continue
            self.watching = Watching(
                self._ops, self._key, index + 1, recursive=True, cluster_id=cluster_id
            )
            after_gap, self._has_told = self._has_told, True
            return Snapshot(nodes, index, after_gap)

    def let_go(self) -> None:
        """Close the connection."""
        if self.watching is not None:
            self.watching.is_closed = self.is_closed
            self.watching.let_go()

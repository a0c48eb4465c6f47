"""Responses of the key space: their header lines, refusals by reason, and those that come later.

Every response names the cluster. A success carries the etcd index, the raft index and the raft
term; an error carries the etcd index alone, 0 where the request was refused unread. The index of a
watch is the one at which it began.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from http import HTTPStatus

from kvd.core.batch.transactions import TRANSACTION_TOO_LARGE
from kvd.handlers.keys.large_listings import ANSWER_TOO_LARGE, NO_ROOM, no_room
from kvd.http.connection import Connection
from kvd.limits.memory_budget import MemoryBudget, NoRoom
from kvd.storage.index.errors import BROKEN
from kvd.storage.store import Store
from kvd.v2.errors import RAFT_INTERNAL, TABLE, UNAUTHORIZED, ApiError
from kvd.v2.extras.parameters import TOO_MANY_KEYS, TOO_MANY_OPERATIONS, TOO_MANY_TOKENS
from kvd.v2.form import TOO_MANY_PARAMETERS
from kvd.v2.response import error_body

log = logging.getLogger(__name__)

END = b"\r\nX-Raft-Index: %d\r\nX-Raft-Term: %d\r\nContent-Length: "
"""What is between the etcd index and the length of an answer."""

# How long responses that come later may take when the server stops.
_END_S = 0.3

# Why requests are refused that have no result at all, not even that of a failed condition.
TOO_LARGE, TOO_MUCH, NOT_WRITTEN = "body_too_large", "too_much_at_once", "not_written"
KEY_TOO_DEEP, VALUE_TOO_LARGE = "key_too_deep", "value_too_large"
TOO_MANY_WATCHERS, TOO_MANY_WATCHERS_OF_KEY = "too_many_watchers", "too_many_watchers_of_key"
STREAM_NOT_READ = "stream_not_read"
TOO_MANY_PASSWORDS, TOO_MANY_SCANS = "too_many_passwords", "too_many_scans"
_BAD, _DENIED = "invalid_parameter", "unauthorized"
_REASONS = dict.fromkeys(range(200, 300), _BAD) | {
    UNAUTHORIZED: _DENIED,
    RAFT_INTERNAL: NOT_WRITTEN,
}
_ALL_REASONS = (
    *(TOO_LARGE, TOO_MUCH, NOT_WRITTEN, _BAD, KEY_TOO_DEEP, VALUE_TOO_LARGE),
    *(TOO_MANY_PARAMETERS, ANSWER_TOO_LARGE, NO_ROOM, TOO_MANY_SCANS, TOO_MANY_KEYS),
    *(TOO_MANY_TOKENS, TOO_MANY_OPERATIONS, TRANSACTION_TOO_LARGE),
    *(TOO_MANY_WATCHERS, TOO_MANY_WATCHERS_OF_KEY, STREAM_NOT_READ, _DENIED, TOO_MANY_PASSWORDS),
)


class Responder:
    """Headers, refusals and pending tasks of one key space.

    Attributes:
        cluster_line: The header line that names the cluster.
        fixed: Header lines of every response but the indexes.
        rejected: Number of refused requests, by reason.
    """

    def __init__(
        self, store: Store, memory: MemoryBudget, on_damage: Callable[[BaseException], None]
    ) -> None:
        self.cluster_line = f"X-Etcd-Cluster-Id: {store.identity.cluster_id:x}\r\n".encode()
        self.fixed = b"Content-Type: application/json\r\n" + self.cluster_line
        self.rejected = dict.fromkeys(_ALL_REASONS, 0)
        self._state = store.state
        self._memory = memory
        self._on_damage = on_damage
        self._tasks: set[asyncio.Task[None]] = set()

    def head(self, index: int, fixed: bytes = b"") -> bytes:
        """Return the header lines of a success at an index, with `fixed` instead of JSON's."""
        applied = self._state.applied
        return b"%bX-Etcd-Index: %d\r\nX-Raft-Index: %d\r\nX-Raft-Term: %d\r\n" % (
            fixed or self.fixed,
            index,
            applied.pos,
            applied.term,
        )

    def refuse(
        self,
        connection: Connection,
        method: str,
        refusal: ApiError,
        status: HTTPStatus | None = None,
    ) -> None:
        """Answer with an error, with another status than etcd's if one is given."""
        reason = refusal.limit or _REASONS.get(refusal.code)
        if reason is not None:
            self.count(reason)
        body = error_body(refusal)
        head = b"%bX-Etcd-Index: %d\r\n" % (self.fixed, refusal.index)
        status = status or HTTPStatus(TABLE[refusal.code].status)
        connection.respond(status, head, body, head_only=method == "HEAD")

    def count(self, reason: str) -> None:
        """Count a request or stream that met a limit."""
        self.rejected[reason] += 1

    def start(self, connection: Connection, answer: Coroutine[None, None, None]) -> None:
        """Run what answers a connection later; its failure closes the connection."""
        task = asyncio.get_running_loop().create_task(answer)
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, connection))

    def _ended(self, connection: Connection, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, BROKEN):
                self._on_damage(error)
            log.error("a listing could not be finished", exc_info=error)
            connection.abort()

    async def with_room(
        self, connection: Connection, size: int, then: Callable[[], object], method: str = ""
    ) -> None:
        """Continue a request once there is memory for its response, or refuse it."""
        try:
            await self._memory.room(size)
            if not connection.gone:
                then()
        except NoRoom:
            self.refuse(connection, method, no_room())
        except ApiError as refusal:
            self.refuse(connection, method, refusal)

    async def finish(self) -> None:
        """Wait for the responses that come later; cancel those that take long."""
        if self._tasks:
            _, slow = await asyncio.wait(self._tasks, timeout=_END_S)
            for task in slow:
                task.cancel()
            if slow:
                await asyncio.wait(slow)

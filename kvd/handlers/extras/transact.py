"""Transactions over HTTP: their authorization and their responses.

It is refused as a whole where its sender may not read the key of a condition, or not do one of its
operations. A sender that may change a key but not read it is not shown the value before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from functools import partial
from http import HTTPStatus

from kvd.core.batch.transactions import TRANSACTION_TOO_LARGE
from kvd.core.committer import Committer
from kvd.handlers.authorizer import Admission, Authorizer, KeyHead
from kvd.handlers.extras.reading.reads import ExtraReads
from kvd.handlers.keys.key_space import KeySpace
from kvd.handlers.keys.writes import NOT_SHOWN
from kvd.handlers.rights import DENIED
from kvd.http.connection import LARGE_BYTES, Connection
from kvd.json_text import LARGE_VALUE_BYTES, Parts, joined
from kvd.limits.memory_budget import Values
from kvd.storage.format.event import Event
from kvd.storage.format.records import REMOVALS
from kvd.v2.commands import Delete, Transaction
from kvd.v2.errors import COMPARE_FAILED, INVALID_FORM, UNAUTHORIZED, ApiError
from kvd.v2.extras.txn import read_body
from kvd.v2.response import action_body, event_body, event_parts

_OK = int(HTTPStatus.OK)
# To escape what is longer may take longer than others should wait.
_AT_ONCE_BYTES = 64 << 10


class Transactions:
    """Serves the transactions of one key space."""

    def __init__(
        self, keys: KeySpace, reads: ExtraReads, authorizer: Authorizer, committer: Committer
    ) -> None:
        self._keys = keys
        self._responder = reads.responder
        self._store = reads.store
        self._memory = reads.memory
        self._slices = reads.slices
        self._values = Values(reads.memory)
        self._authorizer = authorizer
        self._committer = committer

    def serve(
        self, head: KeyHead, content_type: str, body: bytes, admission: Admission | None
    ) -> None:
        """Perform the transaction of a complete request, if its sender may do all that is in it."""
        try:
            transaction = self._read(content_type, body)
        except ApiError as refusal:
            self._keys.responder.refuse(head.connection, head.method, refusal)
            return
        if self._authorizer.enabled:
            self._authorizer.readmit(head, admission, partial(self._judge, head, transaction))
        else:
            self._begin(head, transaction, [False] * len(transaction.ops))

    def _read(self, content_type: str, body: bytes) -> Transaction:
        # No form of a page in a browser can say that it is JSON.
        if content_type.partition(";")[0].strip().lower() != "application/json":
            raise ApiError(INVALID_FORM, b"Content-Type: application/json is wanted")
        transaction = read_body(body)
        for command in transaction.ops:
            self._keys.writes.check(command)
        return transaction

    def _judge(
        self, head: KeyHead, transaction: Transaction, outcome: Admission | ApiError
    ) -> None:
        if isinstance(outcome, ApiError):
            self._keys.responder.refuse(head.connection, head.method, outcome)
            return
        try:
            blind = self._blind(outcome, transaction)
        except ApiError as refusal:
            self._keys.responder.refuse(head.connection, head.method, refusal)
        else:
            self._begin(head, transaction, blind)

    def _blind(self, admission: Admission, transaction: Transaction) -> list[bool]:
        """Return of each operation whether its sender may not read the key.

        Raises:
            ApiError: something in it is not allowed.
        """
        for condition in transaction.when:
            if not self._authorizer.rights(admission, condition.key).may_read():
                raise ApiError(UNAUTHORIZED, DENIED)
        blind = []
        for command in transaction.ops:
            rights = self._authorizer.rights(admission, command.key)
            recursive = isinstance(command, Delete) and command.recursive
            rights.narrow(command, recursive=recursive)
            blind.append(not rights.may_read())
        return blind

    def _begin(self, head: KeyHead, transaction: Transaction, blind: Sequence[bool]) -> None:
        connection = head.connection
        submit = partial(self._submit, connection, transaction, blind)
        size = sum(len(getattr(command, "value", b"")) for command in transaction.ops)
        if size <= LARGE_VALUE_BYTES or self._memory.has_room(size):
            submit()
        else:
            room = self._responder.with_room(connection, size, submit, head.method)
            self._responder.start(connection, room)

    def _submit(
        self, connection: Connection, transaction: Transaction, blind: Sequence[bool]
    ) -> None:
        connection.is_write()
        self._committer.transact(transaction, partial(self._answer, connection, blind))

    def _answer(
        self, connection: Connection, blind: Sequence[bool], outcome: list[Event] | ApiError
    ) -> None:
        if isinstance(outcome, ApiError):
            self._refuse(connection, blind, outcome)
            return
        applied = self._store.applied
        index = outcome[-1].change.index if outcome else applied.index
        lines = self._responder.head(index)
        rendered = _rendered(outcome, blind, index, applied.clock_offset_ns)
        size = sum(map(_value_bytes, outcome))
        if size <= _AT_ONCE_BYTES:
            self._respond(connection, lines, [part for parts in rendered for part in parts])
        else:
            self._responder.start(connection, self._respond_in_turns(connection, lines, rendered))

    async def _respond_in_turns(
        self, connection: Connection, lines: bytes, rendered: Iterator[Parts]
    ) -> None:
        """Answer with what is rendered event by event, while others are served."""
        parts: Parts = []
        for some in rendered:
            parts += some
            async with self._slices:
                await asyncio.sleep(0)
        if not connection.gone:
            self._respond(connection, lines, parts)

    def _respond(self, connection: Connection, lines: bytes, parts: Parts) -> None:
        parts = joined(parts)
        body, *more = parts
        if not more and isinstance(body, bytes) and len(body) <= LARGE_BYTES:
            connection.respond(_OK, lines, body)
        else:
            connection.respond_in_pieces(_OK, lines, self._values.pieces(parts))

    def _refuse(self, connection: Connection, blind: Sequence[bool], refusal: ApiError) -> None:
        name, number = refusal.place or ("", 0)
        if refusal.code == COMPARE_FAILED and name == "op" and blind[number]:
            refusal.cause = NOT_SHOWN
        status = None
        if refusal.limit == TRANSACTION_TOO_LARGE:
            status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        self._keys.responder.refuse(connection, "POST", refusal, status)


def _rendered(
    events: Sequence[Event], blind: Sequence[bool], index: int, offset_ns: int
) -> Iterator[Parts]:
    """Yield the body of the answer in parts, event by event."""
    yield [b'{"action":"txn","index":%d,"events":[' % index]
    for event, is_blind in zip(events, blind, strict=True):
        *pieces, last = _shown(event, offset_ns, is_blind=is_blind)
        assert isinstance(last, bytes)
        separator = b"" if event is events[-1] else b","
        yield [*pieces, last[:-1], separator]
    yield [b"]}\n"]


def _value_bytes(event: Event) -> int:
    prev = event.prev.value if event.prev is not None else None
    return len(event.change.value or b"") + len(prev or b"")


def _shown(event: Event, offset_ns: int, *, is_blind: bool) -> Parts:
    """Return an event in parts, the last of which ends with a newline."""
    if is_blind:
        change = event.change
        # A refresh shows the value that was there.
        if change.refresh and change.kind not in REMOVALS:
            return [action_body(change.kind)]
        event = event._replace(prev=None)
    body = event_body(event, offset_ns)
    return event_parts(event, offset_ns) if body is None else [body]

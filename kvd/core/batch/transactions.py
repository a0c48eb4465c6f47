"""Transactions in a batch: all their operations, or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from kvd.core.batch.limits import BatchLimits
from kvd.core.batch.round import REMOVING, AllDone, Outcome, Round, counted
from kvd.core.replicated.rids import Forwarded
from kvd.storage.format.event import Event
from kvd.storage.format.node import Node
from kvd.storage.format.records import REMOVALS, Change, encode_record
from kvd.v2.commands import Command, Transaction
from kvd.v2.errors import INVALID_FORM, RAFT_INTERNAL, ApiError, RouteError
from kvd.v2.rules import Nodes, decide_all

REPLACED_BYTES_MAX = 16 << 20
"""Bytes of the values that one transaction may look at: its response holds what it replaces."""
TRANSACTION_TOO_LARGE = "transaction_too_large"


def decide_transaction(
    round_: Round,
    nodes: Nodes,
    queued: tuple[Transaction, AllDone],
    records: list[bytes],
    *,
    limits: BatchLimits,
    on_removal: Callable[[Round, Change], None],
) -> bool:
    """Decide a transaction, and add its records to those of a batch.

    `on_removal` is called before a directory is removed. Return whether the batch has room for it.

    Raises:
        NotKnownYet: as for a command.
    """
    transaction, done = queued
    pending, answers = round_.pending, round_.answers
    ops = transaction.ops
    size = sum(map(len, records))
    try:
        nodes = _Bounded(nodes)
        changes = decide_all(nodes, transaction, pending.index + 1, round_.time_ns)
        encoded = list(map(encode_record, changes))
        added = sum(map(len, encoded))
        _check(ops, size, added, limits)
    except ApiError as refusal:
        name, number = refusal.place or ("", 0)
        refusal.index = pending.index
        answers.append((done, ops[number] if name == "op" else counted(transaction), refusal))  # type: ignore[arg-type]
        return True
    if size and size + max(added, pending.replaced) > limits.bytes_max:
        return False
    _apply(round_, done, list(zip(ops, changes, encoded, strict=True)), on_removal)
    records += encoded
    return True


def _apply(
    round_: Round,
    done: AllDone,
    decided: list[tuple[Command, Change, bytes]],
    on_removal: Callable[[Round, Change], None],
) -> None:
    """Apply the changes of a transaction to the batch, and note its response."""
    events: list[Event] = []
    for _, change, record in decided:
        if change.dir and change.kind in REMOVALS:
            on_removal(round_, change)
        events.append(round_.pending.change(change, round_.time_ns, record))
    if isinstance(done, Forwarded):
        round_.rids = {**round_.rids, **{event.change.index: done.rid for event in events}}
    note_response(round_, done, [command for command, _, _ in decided], events)


def note_response(
    round_: Round, done: AllDone, commands: Sequence[Command], events: list[Event]
) -> None:
    """Note the response to a transaction, of the event of each of its commands."""
    answers = round_.answers
    answers += [(_ignore, *pair) for pair in zip(commands, events, strict=True)]
    # Each operation is counted; the last one responds.
    if events:
        answers[-1] = (partial(_respond_to_all, done, events), *answers[-1][1:])
    else:
        round_.replies = [*round_.replies, (partial(_nothing_done, done), None)]


class _Bounded:
    """The nodes as a transaction sees them, which looks at so many bytes of values at most."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._found: dict[bytes, Node | None] = {}
        self._bytes = 0
        self.obstacle = nodes.obstacle
        self.has_children = nodes.has_children

    def find(self, path: bytes) -> Node | None:
        """Return the node at a cleaned path, or None.

        Raises:
            ApiError: the values are too large, all of them together.
        """
        if path in self._found:
            return self._found[path]
        node = self._found[path] = self._nodes.find(path)
        self._bytes += len(node.value or b"") if node is not None else 0
        if self._bytes > REPLACED_BYTES_MAX:
            cause = f"its keys hold more than the {REPLACED_BYTES_MAX} bytes that are allowed"
            raise ApiError(INVALID_FORM, cause.encode(), limit=TRANSACTION_TOO_LARGE)
        return node


def _check(ops: Sequence[Command], size: int, added: int, limits: BatchLimits) -> None:
    """Refuse a transaction, of records of `added` bytes, that has no room."""
    if added > limits.lone_bytes_max:
        cause = f"the changes have {added} bytes, {limits.lone_bytes_max} are allowed"
        raise ApiError(INVALID_FORM, cause.encode(), limit=TRANSACTION_TOO_LARGE)
    if not all(isinstance(command, REMOVING) for command in ops):
        no_room = limits.space.check(size + added)
        if no_room is not None:
            raise no_room


def client_of(done: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return the `AllDone` of the transaction to which a callback responds, or the callback."""
    if isinstance(done, partial) and done.func in (_respond_to_all, _nothing_done):
        return done.args[0]  # type: ignore[no-any-return]  # by `note_response`
    return done


def _ignore(_outcome: Outcome) -> None:
    """No-op callback: the last operation of a transaction responds for all."""


def _respond_to_all(done: AllDone, events: list[Event], outcome: Outcome) -> None:
    """Respond to a transaction, whose last outcome this is."""
    done(outcome if isinstance(outcome, ApiError) else events)


def _nothing_done(done: AllDone, outcome: RouteError | None) -> None:
    """Respond to a transaction that changes nothing, whose conditions hold."""
    done([] if outcome is None else ApiError(RAFT_INTERNAL, outcome.message.encode()))

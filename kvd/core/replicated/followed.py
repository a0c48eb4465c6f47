"""A batch that another member has decided: composed of its payload, instead of what is queued.

It goes the way of all batches (flow.py), so that watchers, caches and statistics see the same as
where it was decided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvd.core.batch.round import Outcome, Round
from kvd.core.batch.transactions import note_response
from kvd.storage.format.event import Event
from kvd.storage.format.records import REMOVALS, Change, Document, Kind
from kvd.storage.index.pending import Pending
from kvd.storage.journal import Journal
from kvd.v2.commands import (
    Command,
    CompareAndDelete,
    CompareAndSwap,
    Create,
    Delete,
    Set,
    Transaction,
    Update,
)
from kvd.v2.documents.decision import Decide, Reply

# The commands as which changes are counted that others have asked for; what has expired is none.
_COUNTED: dict[int, Command] = {
    Kind.SET: Set(b"", b""),
    Kind.CREATE: Create(b"", b""),
    Kind.UPDATE: Update(b"", b""),
    Kind.COMPARE_AND_SWAP: CompareAndSwap(b"", b"", None, 0),
    Kind.DELETE: Delete(b""),
    Kind.COMPARE_AND_DELETE: CompareAndDelete(b"", None, 0),
}


class FollowedRound(Round):
    """A batch that was decided elsewhere: what has no room here now is applied later."""

    is_followed = True


Awaited = Mapping[bytes, tuple[Any, Callable[[Any], None]]]
"""By the rid of each: what was forwarded (a command, a transaction, a change of documents), and its
`done`."""
NOTHING_AWAITED: Awaited = {}


def compose_followed(
    data: bytes,
    pending: Pending,
    raw_ns: int,
    on_removal: Callable[[Round, Change], None],
    awaited: Awaited,
    *,
    decide_document: Decide,
) -> Round:
    """Return the batch in a payload, which must go on from the state below `pending`.

    Args:
        data: the payload.
        pending: a batch without a change.
        raw_ns: the clock's, now.
        on_removal: called before a directory is removed.
        decide_document: decides changes of documents.
        awaited: those that get a response if their rid is in the payload.

    Raises:
        OtherHistory, UnknownRecord: as for `Journal.adopt`; nothing has changed.
    """
    payload, rids = Journal.adopt(pending, data)
    time_ns = payload.time_ns
    round_ = FollowedRound(pending, time_ns, raw_ns)
    transacted: dict[bytes, list[Event]] = {}
    replies: list[tuple[Callable[[Any], None], object]] = []
    replied: set[bytes] = set()
    for record, rid in zip(payload.records, rids, strict=True):
        command, done = awaited.get(rid or b"", _NOT_AWAITED)
        if isinstance(record, Change):
            if record.dir and record.kind in REMOVALS:
                on_removal(round_, record)
            event = pending.change(record, time_ns)
            if isinstance(command, Transaction):
                transacted.setdefault(rid or b"", []).append(event)
            elif record.kind in _COUNTED:
                round_.answers.append((done, command or _COUNTED[record.kind], event))
        else:
            if isinstance(record, Document):
                if command is None:  # not responded to, but observed
                    replies.append((_ignore, Reply()))
                elif rid and rid not in replied:
                    # On the state on which it was decided, so it comes to the same.
                    replies.append((done, decide_document(pending, command).reply))
                    replied.add(rid)
            pending.apply(record, time_ns)
    round_.replies = replies
    for rid, events in transacted.items():
        transaction, done = awaited[rid]
        note_response(round_, done, transaction.ops, events)
    _note_due(pending, time_ns)
    return round_


def _note_due(pending: Pending, time_ns: int) -> None:
    # What has expired is the first of each batch; the rest may have been too much for one.
    due, next_ns = pending.due(time_ns, 1)
    pending.due_ns = due[0][1].expiration_ns if due else next_ns


def _ignore(_outcome: Outcome | object) -> None:
    """No-op callback: another member responds."""


_NOT_AWAITED: tuple[Any, Callable[[Any], None]] = (None, _ignore)

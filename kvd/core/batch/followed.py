"""A batch that another member has decided: composed of its payload, instead of what is queued.

It goes the way of all batches (flow.py), so that watchers, caches and statistics see the same as
where it was decided.
"""

from __future__ import annotations

from collections.abc import Callable

from kvd.core.batch.round import Outcome, Round
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
    Update,
)
from kvd.v2.documents.decision import Reply

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


def compose_followed(
    data: bytes, pending: Pending, raw_ns: int, on_removal: Callable[[Round, Change], None]
) -> Round:
    """Return the batch in a payload, which must go on from the state below `pending`.

    Args:
        data: the payload.
        pending: a batch without a change.
        raw_ns: the clock's, now.
        on_removal: called before a directory is removed.

    Raises:
        OtherHistory, UnknownRecord: as for `Journal.adopt`; nothing has changed.
    """
    payload = Journal.adopt(pending, data)
    time_ns = payload.time_ns
    round_ = FollowedRound(pending, time_ns, raw_ns)
    for record in payload.records:
        if isinstance(record, Change):
            if record.dir and record.kind in REMOVALS:
                on_removal(round_, record)
            event = pending.change(record, time_ns)
            if record.kind in _COUNTED:
                round_.answers.append((_ignore, _COUNTED[record.kind], event))
        else:
            pending.apply(record, time_ns)
            if isinstance(record, Document):
                # Not answered, but observed.
                round_.replies = [(_ignore, Reply())]
    # What has expired is the first of each batch; the rest may have been too much for one.
    due, next_ns = pending.due(time_ns, 1)
    pending.due_ns = due[0][1].expiration_ns if due else next_ns
    return round_


def _ignore(_outcome: Outcome | object) -> None:
    """No-op callback: another member responds."""

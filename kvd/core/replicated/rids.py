"""Ids of requests (rids): which records come of a command that another member has forwarded.

The member that forwarded a command finds its rid in the log, and responds to its client by what
came of that: so the log says it exactly once. The history of events holds none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvd.core.batch.round import Round
from kvd.storage.format.event import Event
from kvd.storage.format.records import with_rid


class Forwarded:
    """Responds to a forwarded command, and knows the rid of its request."""

    __slots__ = ("_done", "rid")

    def __init__(self, rid: bytes, done: Callable[[Any], None]) -> None:
        self.rid = rid
        self._done = done

    def __call__(self, outcome: object) -> None:
        """Pass the outcome on."""
        self._done(outcome)


def give_rids(round_: Round, records: list[bytes]) -> None:
    """Give the records of a batch the rids of the commands that they come of."""
    rids = dict(round_.rids)
    for done, _, outcome in round_.answers:
        if type(done) is Forwarded and type(outcome) is Event:
            rids[outcome.change.index] = done.rid
    if not rids:
        return
    # An event has its record as it was encoded, and keeps it for its row in the history.
    places = {id(record): place for place, record in enumerate(records)}
    for event, encoded in round_.pending.events:
        rid = rids.get(event.change.index)
        if rid is not None:
            assert encoded is not None
            records[places[id(encoded)]] = with_rid(encoded, rid)

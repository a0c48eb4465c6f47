"""The history of events in the index: append the new ones, delete the oldest.

Each etcd index has its event, so the history is a range of indexes, limited by count and by length.
An event whose previous value is large names the event that has set it (storage/format/event.py):
the row of that one is kept for as long as it is named.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from struct import Struct
from typing import NamedTuple

from kvd.storage.format.applied import Applied
from kvd.storage.format.event import (
    MARK,
    MARK_KEY,
    Event,
    encode_event,
    encode_naming,
    event_key,
    named_by,
    whole_bytes,
)
from kvd.storage.format.node import CorruptIndex, previous_row
from kvd.storage.format.records import encode_record
from kvd.storage.index.index_view import Row, Table, Transaction

NAMED_BYTES_MIN = 4 << 10
"""A previous value of at least so many bytes is not stored twice in the history."""

_U64 = Struct(">Q")
# A longer row is written before the next one is made.
_LARGE = 64 << 10

LateEvent = tuple[Event, bytes | None]
"""An event that is not in the index yet, and the record of its change where that is at hand."""


class History(NamedTuple):
    """The extent of the history.

    `size` is how long its rows would be together if none named another, `bytes_max` the limit of
    that. `named` are the indexes of the events that some event names; of those that are before
    `oldest_event` their rows are kept for that reason alone.
    """

    oldest_event: int
    size: int
    bytes_max: int
    named: set[int]


class HistoryWriter:
    """The part of a flush that writes the history.

    Attributes:
        named: The events that the new ones name.
        unnamed: The events that deleted ones named.
    """

    def __init__(self, txn: Transaction, table: Table) -> None:
        """Begin it in a write transaction; `table` is `events`."""
        self._txn = txn
        self._table = table
        self.named: set[int] = set()
        self.unnamed: set[int] = set()

    def read(self, oldest_event: int, bytes_max: int) -> History:
        """Return what the history holds from an event on, by looking at its rows."""
        size = 0
        named = set()
        with self._txn.cursor(db=self._table) as cursor:
            if self._txn.get(MARK_KEY, db=self._table) is None:
                size = sum(map(len, cursor.iternext(keys=False)))
            elif cursor.set_range(event_key(oldest_event)):
                for row in cursor.iternext(keys=False):
                    size += whole_bytes(row)
                    named.add(named_by(row))
        return History(oldest_event, size, bytes_max, named - {0})

    def write(
        self, late: Sequence[LateEvent], stored: Applied, applied: Applied, history: History
    ) -> History:
        """Write events, and delete those beyond the limits of the history.

        The last event stays, however long it is.

        Args:
            late: the events that are not in the index yet, in order; those may be missing which
                come before `applied.oldest_event`.
            stored: what the index says.
            applied: what it is to say; by it the oldest event is what the count allows.
            history: what the index holds.
        """
        bytes_max = history.bytes_max
        oldest = max(history.oldest_event, applied.oldest_event)
        if bytes_max:
            oldest = _oldest_short_enough(late, bytes_max, oldest)
        # The events that are held, or will be, can be named.
        written = range(history.oldest_event, stored.index + 1)
        size = history.size + self._put(late, max(oldest, written.stop), written)
        if self.named and self._txn.get(MARK_KEY, db=self._table) is None:
            self._txn.put(MARK_KEY, MARK, db=self._table)
        history = history._replace(size=size)
        if oldest > history.oldest_event or size > bytes_max > 0:
            if history.named or self.named:
                return self._forget_naming(history, oldest, applied.index)
            return self._forget(history, oldest, stored.index, applied.index)
        return history

    def _put(self, late: Sequence[LateEvent], first: int, written: range) -> int:
        """Write the events from an index on; return how long their rows are if none names another.

        Args:
            late: the events.
            first: the index.
            written: the events that the index holds already.
        """
        size = 0
        rows: list[Row] = []
        with self._txn.cursor(self._table) as cursor:
            for (change, prev, time_ns), record in late:
                index = change[1]
                if index < first:
                    continue
                key, encoded = event_key(index), record or encode_record(change)
                if (
                    prev is not None
                    and (value := prev[0])
                    and len(value) >= NAMED_BYTES_MIN
                    and (prev[2] >= first or prev[2] in written)
                ):
                    row = encode_naming(key, encoded, prev, time_ns)
                    size += whole_bytes(row)
                    self.named.add(prev[2])
                else:
                    before = b"" if prev is None else previous_row(prev)
                    row = encode_event(key, encoded, before, time_ns)
                    size += len(row)
                rows.append((key, row))
                if len(row) > _LARGE:
                    cursor.putmulti(rows, append=True)
                    rows.clear()
            cursor.putmulti(rows, append=True)
        return size

    def _forget(self, history: History, allowed: int, written: int, last: int) -> History:
        """Delete what the history does not hold any more, where no event names another.

        Args:
            history: what it holds now.
            allowed: the oldest event that it may hold by its count.
            written: the last event that had been written before.
            last: the last event of all.
        """
        oldest, size, bytes_max = allowed, history.size, history.bytes_max
        # Between what was written before and the oldest that is written now there may be a gap.
        before = oldest if oldest <= written else written + 1
        with self._txn.cursor(db=self._table) as cursor:
            # Each etcd index has its event, so they need only be counted.
            if cursor.set_range(event_key(history.oldest_event)):
                for _ in range(_number(cursor.key()), before):
                    size -= len(cursor.value())
                    cursor.delete()
            if size > bytes_max > 0:
                for oldest in range(_number(cursor.key()), last + 1):
                    if size <= bytes_max or oldest == last:
                        break
                    size -= len(cursor.value())
                    cursor.delete()
        return history._replace(oldest_event=oldest, size=size)

    def _forget_naming(self, history: History, oldest: int, last: int) -> History:
        """As `_forget`, where events name others: rows stay that a held one names."""
        size, bytes_max = history.size, history.bytes_max
        gone: list[bytes] = []
        with self._txn.cursor(db=self._table) as cursor:
            if cursor.set_range(event_key(history.oldest_event)):
                for key, row in cursor.iternext():
                    index = _number(key)
                    if index == last or (index >= oldest and not size > bytes_max > 0):
                        break
                    oldest = max(oldest, index + 1)
                    size -= whole_bytes(row)
                    if not self._is_named(history, index):
                        gone.append(event_key(index))
                    if named := named_by(row):
                        self.unnamed.add(named)
                        gone.append(event_key(named))
        for key in gone:
            self._txn.delete(key, db=self._table)
        return history._replace(oldest_event=oldest, size=size)

    def _is_named(self, history: History, index: int) -> bool:
        return index in self.named or (index in history.named and index not in self.unnamed)


def _oldest_short_enough(late: Sequence[LateEvent], bytes_max: int, oldest: int) -> int:
    """Return the oldest event that need be written: those before it would be forgotten.

    What is looked at is a part of what is written: the exact limit is `HistoryWriter._forget`'s.
    """
    size = 0
    for (change, prev, _), _ in reversed(late[:-1]):
        if prev is not None and prev.value is not None:
            size += len(prev.value)
            if size > bytes_max:
                return max(oldest, change.index + 1)
    return oldest


def _number(key: bytes) -> int:
    try:
        (number,) = _U64.unpack(key)
    except struct.error as error:
        raise CorruptIndex(f"the key of a history record is damaged: {error}") from None
    index: int = number
    return index

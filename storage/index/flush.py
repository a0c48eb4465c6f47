"""Writing to the index, in one LMDB transaction, what a state holds beyond it.

What is written is what the rows are now: of a node that was changed ten times only the last. Old
rows are looked at for the sums of the tables (format/sums.py) and for the expirations that go with
them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from struct import Struct
from typing import NamedTuple

from kvd.storage.format.applied import HISTORY_BYTES_MAX_KEY, Applied, encode_history_bytes_max
from kvd.storage.format.document import encode_entry, entry_key
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
from kvd.storage.format.expiration import expiration_key, expiration_row
from kvd.storage.format.node import (
    HEADER,
    CorruptIndex,
    Node,
    decode_node,
    id_prefix,
    previous_row,
    seal_node,
)
from kvd.storage.format.records import Entry, encode_record
from kvd.storage.format.sums import APPLIED_KEY, ONE, Scanned, Sums, id_sum, meta_sum, row_sum
from kvd.storage.index.index_view import Row, Tables, Transaction

# A row that is longer is written before the next one is made.
_LARGE = 64 << 10
NAMED_BYTES_MIN = 4 << 10
"""A replaced value of so many bytes need not stand in the history twice."""

# What is read at once to be expired or freed, in bytes of values, beside a last one.
READ_BYTES_MAX = 4 << 20

_U64 = Struct(">Q")
_unpack_row = HEADER.unpack_from
# Where the sum of a row stands, and the time of the node in it, in what that returns.
_CRC, _EXPIRATION = 0, 4


LateEvent = tuple[Event, bytes | None]
"""An event that is not in the index yet, and the record of its change where that is at hand."""


class History(NamedTuple):
    """What the history holds.

    `size` is how long its rows would be together if none named another, `bytes_max` the limit of
    that. `named` are the indexes of the events that some event names; of those that are before
    `oldest_event` their rows are kept for that reason alone.
    """

    oldest_event: int
    size: int
    bytes_max: int
    named: set[int]


class Flush:
    """One LMDB transaction that brings the index up to date; the caller commits it.

    Attributes:
        nodes_behind: What it changed of the sum of nodes that a scan has passed.
        ttl_behind: As above, of expirations.
        named: What it added to the events that are named.
        unnamed: What it took from these.
    """

    def __init__(self, txn: Transaction, tables: Tables, sums: Sums, scanned: Scanned) -> None:
        """Begin it.

        Args:
            txn: a write transaction, whose values may be memoryviews.
            tables: those of the index.
            sums: the sums of the tables before it.
            scanned: how far a scan of the index has come.
        """
        self._txn = txn
        self._tables = tables
        self._nodes_sum, self._ttl_sum, self._garbage_sum, self._entries_sum = sums
        self._nodes_until, self._ttl_until = scanned.nodes_until, scanned.ttl_until
        self.nodes_behind = self.ttl_behind = 0
        self.named: set[int] = set()
        self.unnamed: set[int] = set()

    @property
    def sums(self) -> Sums:
        """The sums of the tables."""
        return self._nodes_sum, self._ttl_sum, self._garbage_sum, self._entries_sum

    def write_nodes(
        self,
        nodes: Mapping[bytes, Node | None],
        dirty: Iterable[bytes],
        paths: Mapping[bytes, bytes],
    ) -> None:
        """Write the rows of nodes, and of their expirations.

        Args:
            nodes: by their keys; None for one that is there no more.
            dirty: the keys of those to be written.
            paths: by their keys the paths of those that expire, and of those with long names.
        """
        table = self._tables[b"nodes"]
        keys = sorted(dirty)
        rows: list[Row] = []
        gone: list[bytes] = []
        with self._txn.cursor(table) as cursor:
            # Of a value, which may be large, only the head is looked at.
            before = {bytes(key): _unpack_row(row) for key, row in cursor.getmulti(keys)}
            for key in keys:
                node, old = nodes[key], before.get(key)
                changed = ended = expires = 0
                if old is not None:
                    changed, ended = -ONE - old[_CRC], old[_EXPIRATION]
                if node is not None:
                    expires = node[3]
                    name = key[9:] if not key[8] else paths[key].rpartition(b"/")[2]
                    crc, row = seal_node(key, name, node)
                    rows.append((key, row))
                    changed += ONE + crc
                    if len(row) > _LARGE:
                        # Not all of them at once: together they may be large.
                        cursor.putmulti(rows)
                        rows.clear()
                elif old is not None:
                    gone.append(key)
                self._count_node(key, changed)
                if ended != expires:
                    self._change_expiration(key, ended, expires, paths)
            cursor.putmulti(rows)
        for key in gone:
            self._txn.delete(key, db=table)

    def _count_node(self, key: bytes, changed: int) -> None:
        self._nodes_sum += changed
        if key <= self._nodes_until:
            self.nodes_behind += changed

    def _change_expiration(
        self, key: bytes, ended: int, expires: int, paths: Mapping[bytes, bytes]
    ) -> None:
        if ended:
            self.delete_expiration(expiration_key(ended, key))
        if expires:
            self._put_expiration(expiration_key(expires, key), paths[key])

    def _put_expiration(self, row_key: bytes, path: bytes) -> None:
        crc, row = expiration_row(row_key, path)
        self._txn.put(row_key, row, db=self._tables[b"ttl"])
        self._count_expiration(row_key, ONE + crc)

    def delete_expiration(self, row_key: bytes) -> None:
        """Delete a row of `ttl`, if it is there."""
        row = self._txn.pop(row_key, db=self._tables[b"ttl"])
        if row is not None:
            self._count_expiration(row_key, -row_sum(row))

    def _count_expiration(self, row_key: bytes, changed: int) -> None:
        self._ttl_sum += changed
        if row_key <= self._ttl_until:
            self.ttl_behind += changed

    def drop(self, dir_ids: Iterable[int]) -> None:
        """Note that directories were removed, so that what hangs below them is freed one day."""
        for dir_id in dir_ids:
            prefix = id_prefix(dir_id)
            self._txn.put(prefix, b"", db=self._tables[b"garbage"])
            self._garbage_sum += id_sum(prefix)

    def free(self, limit: int) -> bool:
        """Free up to `limit` nodes below removed directories, fewer where they are large.

        Returns whether some may be left.
        """
        garbage = self._tables[b"garbage"]
        while limit > 0:
            with self._txn.cursor(db=garbage) as cursor:
                if not cursor.first():
                    return False
                prefix = bytes(cursor.key())
            rows = list(_some(self._below(prefix), limit))
            for key, data in rows:
                self._free_node(key, data)
            if next(self._below(prefix), None) is None:
                self._txn.delete(prefix, db=garbage)
                self._garbage_sum -= id_sum(prefix)
            elif len(rows) < limit:
                return True
            limit -= len(rows) + 1
        return True

    def _free_node(self, key: bytes, data: bytes) -> None:
        node = decode_node(key, data)
        self._txn.delete(key, db=self._tables[b"nodes"])
        self._count_node(key, -row_sum(data))
        if node.expiration_ns:
            self.delete_expiration(expiration_key(node.expiration_ns, key))
        if node.dir_id:
            self.drop((node.dir_id,))

    def _below(self, prefix: bytes) -> Iterator[Row]:
        with self._txn.cursor(db=self._tables[b"nodes"]) as cursor:
            if cursor.set_range(prefix):
                for key, data in cursor.iternext():
                    if key[:8] != prefix:
                        return
                    yield bytes(key), bytes(data)

    def enter(self, entries: Iterable[Entry]) -> None:
        """Write what stands beside the keys."""
        table = self._tables[b"entries"]
        for entry in entries:
            key = entry_key(entry.what, entry.name)
            before = self._txn.pop(key, db=table)
            if before is not None:
                self._entries_sum -= row_sum(before)
            if entry.document is not None:
                row = encode_entry(key, entry)
                self._txn.put(key, row, db=table)
                self._entries_sum += row_sum(row)

    def history(self, oldest_event: int, bytes_max: int) -> History:
        """Return what the history holds from an event on, by looking at its rows."""
        size = 0
        named = set()
        table = self._tables[b"events"]
        with self._txn.cursor(db=table) as cursor:
            if self._txn.get(MARK_KEY, db=table) is None:
                size = sum(map(len, cursor.iternext(keys=False)))
            elif cursor.set_range(event_key(oldest_event)):
                for row in cursor.iternext(keys=False):
                    size += whole_bytes(row)
                    named.add(named_by(row))
        return History(oldest_event, size, bytes_max, named - {0})

    def set_history_bytes_max(self, bytes_max: int) -> None:
        """Write how long the rows of the history may be together."""
        key, row, table = (
            HISTORY_BYTES_MAX_KEY,
            encode_history_bytes_max(bytes_max),
            self._tables[b"meta"],
        )
        before = self._txn.pop(key, db=table)
        self._txn.put(key, row, db=table)
        self._entries_sum += meta_sum(key, row)
        if before is not None:
            self._entries_sum -= meta_sum(key, bytes(before))

    def write_history(
        self, late: Sequence[LateEvent], stored: Applied, applied: Applied, history: History
    ) -> History:
        """Write events, and forget those that the history is too short for: by count, by length.

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
        first = max(oldest, stored.index + 1)
        rows: list[Row] = []
        size = history.size
        table = self._tables[b"events"]
        with self._txn.cursor(table) as cursor:
            for (change, prev, time_ns), record in late:
                index = change[1]
                if index < first:
                    continue
                key, told = event_key(index), record or encode_record(change)
                if (
                    prev is not None
                    and (value := prev[0])
                    and len(value) >= NAMED_BYTES_MIN
                    # The event that has set it is held, or will be.
                    and (prev[2] >= first or history.oldest_event <= prev[2] <= stored.index)
                ):
                    row = encode_naming(key, told, prev, time_ns)
                    size += whole_bytes(row)
                    self.named.add(prev[2])
                else:
                    before = b"" if prev is None else previous_row(prev)
                    row = encode_event(key, told, before, time_ns)
                    size += len(row)
                rows.append((key, row))
                if len(row) > _LARGE:
                    cursor.putmulti(rows, append=True)
                    rows.clear()
            cursor.putmulti(rows, append=True)
        if self.named and self._txn.get(MARK_KEY, db=table) is None:
            self._txn.put(MARK_KEY, MARK, db=table)
        history = history._replace(size=size)
        if oldest > history.oldest_event or size > bytes_max > 0:
            if history.named or self.named:
                return self._forget_naming(history, oldest, applied.index)
            return self._forget(history, oldest, stored.index, applied.index)
        return history

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
        with self._txn.cursor(db=self._tables[b"events"]) as cursor:
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
        table = self._tables[b"events"]
        gone: list[bytes] = []
        with self._txn.cursor(db=table) as cursor:
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
            self._txn.delete(key, db=table)
        return history._replace(oldest_event=oldest, size=size)

    def _is_named(self, history: History, index: int) -> bool:
        return index in self.named or (index in history.named and index not in self.unnamed)

    def finish(self, applied: Applied) -> None:
        """Say how far the log has been performed, with all that was written before."""
        row = applied.encode_with(self.sums)
        self._txn.put(APPLIED_KEY, row, db=self._tables[b"meta"])


def _oldest_short_enough(late: Sequence[LateEvent], bytes_max: int, oldest: int) -> int:
    """Return the oldest event that need be written: those before it would be forgotten.

    What is looked at is a part of what is written: the exact limit is `Flush._forget`'s.
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


def _some(rows: Iterator[Row], limit: int) -> Iterator[Row]:
    """Yield up to `limit` rows, and none behind so many bytes that they take."""
    size = 0
    for row in islice(rows, limit):
        yield row
        size += len(row[1])
        if size > READ_BYTES_MAX:
            return

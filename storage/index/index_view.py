"""The state as one LMDB transaction sees it; and the tables of the index.

Tables (LMDB sub-databases; every row carries a checksum over its key and its value):

    nodes    storage/format/node.py          the tree
    ttl      storage/format/expiration.py    nodes that expire, by the time of it
    events   u64 index, big-endian -> storage/format/event.py: the last `history_limit` of them,
             before them the rows that one of these names; under index 0 a mark that this may be so
    garbage  u64 directory id, big-endian -> nothing: removed directories, not freed yet
    entries  storage/format/document.py      users, roles and members
    meta     storage/format/applied.py: "applied", written in the same transaction as what it
             describes; "history_bytes_max", which counts with the sum of `entries`

The main database, which names them, also holds "store" -> the uuid of the store.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from heapq import merge
from itertools import chain, groupby, islice, starmap
from operator import itemgetter
from typing import TypeAlias

import lmdb

from kvd.storage.format.applied import (
    HISTORY_BYTES_MAX_KEY,
    Applied,
    decode_history_bytes_max,
    decode_sums,
)
from kvd.storage.format.document import decode_document, document_key, document_prefix
from kvd.storage.format.event import Event, decode_event, event_key, index_of
from kvd.storage.format.expiration import expiration_of
from kvd.storage.format.node import (
    NAME_BYTES_KEPT,
    NAME_BYTES_MAX,
    ROOT_PREFIX,
    CorruptIndex,
    Node,
    decode_name,
    decode_node,
    id_prefix,
)
from kvd.storage.format.records import Document
from kvd.storage.format.sums import APPLIED_KEY, Sums
from kvd.storage.index.view import Passed, View

STORE_KEY = b"store"
"""The row of the main database with the uuid of the store; no snapshot copies it."""

Table = lmdb._Database
Tables = dict[bytes, Table]
Transaction: TypeAlias = "lmdb.Transaction[bytes]"
Row = tuple[bytes, bytes]
Late: TypeAlias = Mapping[bytes, Mapping[bytes, bytes | None]]
"""Rows that the index does not hold yet, by table and key; None for a removed one."""

_EXPIRATION_KEY_BYTES_MIN = 8


class IndexView(View):
    """The state as one LMDB transaction sees it, with the rows that are `late`, if any."""

    def __init__(self, txn: Transaction, tables: Tables, late: Late | None = None) -> None:
        self._txn = txn
        self.get = txn.get
        """LMDB's own, for the row of a node that is known not to be late."""
        self._tables = tables
        self._nodes = tables[b"nodes"]
        self._late = late or {}
        self.directories = {b"": ROOT_PREFIX}

    def with_late(self, late: Late) -> IndexView:
        """Return a view of the same transaction with the rows that are `late`."""
        return IndexView(self._txn, self._tables, late)

    def end(self) -> None:
        """End the transaction: the view cannot be used any more."""
        self._txn.abort()

    @property
    def applied(self) -> Applied:
        """The position up to which the log has been applied."""
        return Applied.decode(self._txn.get(APPLIED_KEY, db=self._tables[b"meta"]))

    def sums(self) -> Sums:
        """Return the sums of the tables.

        Raises:
            CorruptIndex: they are not known: an older version wrote this index.
        """
        row = self._txn.get(APPLIED_KEY, db=self._tables[b"meta"])
        sums = decode_sums(row) if row is not None else None
        if sums is None:
            raise CorruptIndex("the index does not say what its tables hold")
        return sums

    def node(self, key: bytes) -> Node | None:
        """Return the node under a key, or None."""
        data = self._row(b"nodes", key)
        return None if data is None else decode_node(key, data)

    def children(self, dir_id: int, first: bytes = b"") -> Iterator[tuple[bytes, Node]]:
        """Iterate over a directory's children, as `View.children`."""
        prefix = id_prefix(dir_id)
        # Keys of long names stand behind all others and are not in the order of the names.
        long = self._long_named(prefix + b"\1", first)
        begun = next(long, None)
        short = self._short_named(prefix + b"\0", first)
        if begun is None:
            return short
        return merge(short, chain((begun,), long), key=itemgetter(0))

    def names(self, dir_id: int, first: bytes, limit: int) -> list[bytes]:
        """Return the names of some children, as `View.names`.

        Their rows are not read, let alone checked: that takes a fifteenth of the time.
        """
        prefix = id_prefix(dir_id)
        if self._late or next(self._range(b"nodes", prefix + b"\1"), None) is not None:
            return [name for name, _ in islice(self.children(dir_id, first), limit)]
        with self._txn.cursor(db=self._nodes) as cursor:
            if not cursor.set_range(_first_key(prefix + b"\0", first)):
                return []
            keys = list(islice(cursor.iternext(values=False), limit))
        return [key[9:] for key in keys[: bisect_left(keys, prefix + b"\1")]]

    def _long_named(self, prefix: bytes, first: bytes) -> Iterator[tuple[bytes, Node]]:
        rows = self.rows(b"nodes", prefix, prefix + first[:NAME_BYTES_KEPT])
        # The beginnings that keys hold are in order; names that share one are not.
        for _, alike in groupby(rows, key=_beginning):
            # Their values are read one at a time: together they may not fit in memory.
            for name, key in sorted((decode_name(*row), row[0]) for row in alike):
                if name >= first:
                    node = self.node(key)
                    if node is not None:
                        yield name, node

    def _short_named(self, prefix: bytes, first: bytes) -> Iterator[tuple[bytes, Node]]:
        if self._late:
            for key, data in self.rows(b"nodes", prefix, _first_key(prefix, first)):
                yield key[9:], decode_node(key, data)
            return
        # One generator, not one around another: a listing passes here for each child.
        with self._txn.cursor(db=self._nodes) as cursor:
            if cursor.set_range(_first_key(prefix, first)):
                for key, data in cursor.iternext():
                    if key[:9] != prefix:
                        return
                    yield key[9:], decode_node(key, data)

    def has_children(self, dir_id: int) -> bool:
        """Return whether a directory has a child, hidden or not."""
        return next(self.rows(b"nodes", id_prefix(dir_id)), None) is not None

    def rows(self, table: bytes, prefix: bytes = b"", first: bytes = b"") -> Iterator[Row]:
        """Yield the rows of a table whose keys begin so, in order, from the key `first` on."""
        rows = self._range(table, prefix, first)
        late = self._late.get(table)
        return _with(rows, late, prefix, first) if late else rows

    def _range(self, table: bytes, prefix: bytes, first: bytes = b"") -> Iterator[Row]:
        length = len(prefix)
        with self._txn.cursor(db=self._tables[table]) as cursor:
            if cursor.set_range(first or prefix):
                for row in cursor.iternext():
                    if row[0][:length] != prefix:
                        return
                    yield row

    def _row(self, table: bytes, key: bytes) -> bytes | None:
        late = self._late.get(table)
        if late and key in late:
            return late[key]
        return self.get(key, db=self._tables[table])

    def expirations(self) -> Iterator[Row]:
        """Yield the rows of `ttl`, the earliest first.

        Raises:
            CorruptIndex: one is damaged.
        """
        with self._txn.cursor(db=self._tables[b"ttl"]) as cursor:
            for key, row in cursor.iternext():
                if len(key) < _EXPIRATION_KEY_BYTES_MIN:
                    raise CorruptIndex(f"the key of an expiration has {len(key)} bytes")
                yield key, row

    def first_due_ns(self) -> int | None:
        """Return the earliest expiration of all, in nanoseconds since the epoch, or None."""
        first = next(self.expirations(), None)
        return None if first is None else expiration_of(first[0])

    def has_garbage(self) -> bool:
        """Return whether removed directories are left to be freed."""
        return next(self.rows(b"garbage"), None) is not None

    def history_bytes_max(self) -> int:
        """Return how long the rows of the history may be together, 0 where that is not limited."""
        row = self._txn.get(HISTORY_BYTES_MAX_KEY, db=self._tables[b"meta"])
        return 0 if row is None else decode_history_bytes_max(row)

    def events(self, first_index: int) -> Iterator[Event]:
        """Yield the events of the history from an index on, in order."""
        first = max(first_index, self.applied.oldest_event)
        events = self._tables[b"events"]
        with self._txn.cursor(db=events) as cursor:
            if not cursor.set_range(event_key(first)):
                return
            for key, row in cursor.iternext():
                yield decode_event(key, row, lambda index: self.get(event_key(index), db=events))

    def events_back(
        self, last_index: int, first_index: int, needles: Sequence[bytes]
    ) -> Iterator[Passed]:
        """Yield the events from an index down to another; those without a needle undecoded.

        That takes a tenth of the time. A needle is a part of the record of a change.
        """
        events = self._tables[b"events"]
        with self._txn.cursor(db=events) as cursor:
            is_before = cursor.set_range(event_key(last_index + 1))
            if not (cursor.prev() if is_before else cursor.last()):
                return
            for key, row in cursor.iterprev():
                index = index_of(key)
                if index < first_index:
                    return
                if any(needle in row for needle in needles):
                    yield (
                        index,
                        decode_event(key, row, lambda named: self.get(event_key(named), db=events)),
                    )
                else:
                    yield index, None

    def document(self, what: str, name: str) -> Document | None:
        """Return the document of a name, or None."""
        key = document_key(what, name)
        row = self._row(b"entries", key)
        return None if row is None else decode_document(key, row)

    def documents(self, what: str = "") -> list[Document]:
        """Return all documents of one sort, or of all, by their names."""
        return sorted(self.each_document(what), key=lambda document: (document.what, document.name))

    def each_document(self, what: str = "") -> Iterator[Document]:
        """Yield all documents of one sort, or of all, as `View.each_document`."""
        prefix = document_prefix(what) if what else b""
        return starmap(decode_document, self.rows(b"entries", prefix))


def _with(
    rows: Iterator[Row], late: Mapping[bytes, bytes | None], prefix: bytes, first: bytes
) -> Iterator[Row]:
    """Yield rows in the order of their keys, those that are late among them, or in their place."""
    ours = [
        (key, row)
        for key, row in late.items()
        if row is not None and key >= first and key.startswith(prefix)
    ]
    kept = (row for row in rows if row[0] not in late)
    yield from merge(kept, sorted(ours), key=itemgetter(0))


def _first_key(prefix: bytes, first: bytes) -> bytes:
    """Return where the short names begin that are not before a name, which may be a long one."""
    if len(first) <= NAME_BYTES_MAX:
        return prefix + first
    # A short name that it begins with is before it.
    return prefix + first[:NAME_BYTES_MAX] + b"\0"


def _beginning(row: Row) -> bytes:
    """Return what the key of a long name holds of it, behind the directory's id."""
    return row[0][9 : 9 + NAME_BYTES_KEPT]

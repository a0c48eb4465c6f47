"""Reading nodes: by paths, whatever holds them, and by scans of the index.

Tables (LMDB sub-databases; every row carries a checksum over its key and its value):

    nodes    storage/format/node.py                    the tree
    ttl      u64 expiration ns, big-endian | key of the node -> u32 crc | path
    events   u64 index, big-endian -> format/event.py            the last `history_limit` of them,
             and before them the rows that one of these names; under index 0 that this may be so
    garbage  u64 directory id, big-endian -> nothing
    entries  format/document.py                                     what is there beside the keys
    meta     "applied" -> storage/format/applied.py, in the same transaction as what it speaks of
             "history_bytes_max" -> u32 crc | u64: how long the rows of `events` may be together;
             it counts with the sum of `entries`

The main database, which names them, also holds "store" -> the uuid of the store.

A node is looked up by the id of its directory and its name. Ids are never given twice: so nothing
below a removed directory can be reached again, though it stands there until it is freed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from heapq import merge
from itertools import chain, groupby, islice, starmap
from operator import itemgetter
from struct import Struct
from typing import TypeAlias
from zlib import crc32

import lmdb

from kvd.storage.format.applied import HISTORY_BYTES_MAX, Applied, decode_sums
from kvd.storage.format.document import decode_entry, entry_key, entry_prefix
from kvd.storage.format.event import Event, decode_event, event_key, index_of
from kvd.storage.format.node import (
    NAME_BYTES_KEPT,
    NAME_BYTES_MAX,
    ROOT,
    ROOT_ID,
    CorruptIndex,
    Node,
    Obstacle,
    decode_name,
    decode_node,
    encode_key,
    id_prefix,
)
from kvd.storage.format.records import Entry
from kvd.storage.format.sums import APPLIED_KEY, Sums

# Directories are remembered for paths up to this length, and for so many of them: a path of 64 KB
# has 32,000 ancestors, whose paths together would take a gigabyte.
CACHED_PATH_BYTES_MAX = 256
CACHED_PATHS_MAX = 65_536

Passed: TypeAlias = tuple[int, Event | None]
"""The index of an event that was passed, and itself if it was looked at."""

HISTORY_BYTES_MAX_KEY = HISTORY_BYTES_MAX.encode()
# Whose store it is, in the main database, which no snapshot copies.
STORE_KEY = b"store"
_CRC = Struct("<I")
_U64 = Struct(">Q")

Table = lmdb._Database
Tables = dict[bytes, Table]
Transaction: TypeAlias = "lmdb.Transaction[bytes]"
Row = tuple[bytes, bytes]
Late: TypeAlias = Mapping[bytes, Mapping[bytes, bytes | None]]
"""By table and key the rows that are not in the index as they are now; None for a removed one."""


def parent_prefix(dir_id: int) -> bytes:
    """Return what the keys of a directory's children with short names consist of before these."""
    return id_prefix(dir_id) + b"\0"


ROOT_PREFIX = parent_prefix(ROOT_ID)


def child_key(prefix: bytes, name: bytes) -> bytes:
    """Return the key of the child `name` of a directory, from its `parent_prefix`."""
    if len(name) <= NAME_BYTES_MAX:
        return prefix + name
    return encode_key(_U64.unpack_from(prefix)[0], name)


class Nodes(ABC):
    """The nodes of one state, by their paths.

    `_directories` holds the `parent_prefix` of directories by their paths, that of the root by the
    empty one.
    """

    _directories: dict[bytes, bytes]

    @abstractmethod
    def node(self, key: bytes) -> Node | None:
        """Return the node under a key, or None."""

    @abstractmethod
    def has_children(self, dir_id: int) -> bool:
        """Return whether a directory has a child, hidden by its name or not."""

    @abstractmethod
    def entry(self, what: str, name: str) -> Entry | None:
        """Return the entry of a name, or None."""

    @abstractmethod
    def entries(self, what: str = "") -> list[Entry]:
        """Return all entries of one sort, or of all, by their names."""

    def find(self, path: bytes) -> Node | None:
        """Return the node at a cleaned path, or None."""
        parent, _, name = path.rpartition(b"/")
        if not name:
            return ROOT
        prefix = self._directory(parent)
        return None if prefix is None else self.node(child_key(prefix, name))

    def obstacle(self, path: bytes) -> Obstacle:
        """Return what keeps a path that `find` does not know from leading anywhere."""
        parent = path.rpartition(b"/")[0]
        if self._directory(parent) is not None:
            return Obstacle(False, path)
        names = path.split(b"/")[1:]
        dir_id = ROOT_ID
        for depth, name in enumerate(names, 1):
            node = self.node(encode_key(dir_id, name))
            if node is None or not node.dir_id:
                return Obstacle(node is not None, b"/" + b"/".join(names[:depth]))
            dir_id = node.dir_id
        raise AssertionError(f"nothing keeps {path!r} from leading to a directory")

    def first_ended(self, path: bytes, now_ns: int) -> tuple[bytes, Node] | None:
        """Return the first node on the way to a path, itself included, that has ended; and where.

        One look per component, however deep the path.
        """
        dir_id = ROOT_ID
        length = 0
        for name in path[1:].split(b"/"):
            node = self.node(encode_key(dir_id, name)) if name else None
            if node is None:
                return None
            length += 1 + len(name)
            if has_ended(node, now_ns):
                return path[:length], node
            if not node.dir_id:
                return None
            dir_id = node.dir_id
        return None

    def _reached(self, path: bytes, key: bytes, expiration_ns: int) -> Node | None:
        """Return the node at a path if it is the very one that a row of `ttl` speaks of."""
        parent, _, name = path.rpartition(b"/")
        prefix = self._directory(parent)
        if prefix is None or child_key(prefix, name) != key:
            return None
        node = self.node(key)
        return node if node is not None and node.expiration_ns == expiration_ns else None

    def _directory(self, path: bytes) -> bytes | None:
        """Return the `parent_prefix` of the directory at a path (empty for the root), or None."""
        return self._directories.get(path) or self._walk(path)

    def _walk(self, path: bytes) -> bytes | None:
        """Return the `parent_prefix` of the directory at a path, or None."""
        prefix = ROOT_PREFIX
        length = 0
        for name in path[1:].split(b"/"):
            node = self.node(child_key(prefix, name))
            if node is None or not node.dir_id:
                return None
            prefix = parent_prefix(node.dir_id)
            length += 1 + len(name)
            self._remember(path, length, prefix)
        return prefix

    def _remember(self, path: bytes, length: int, prefix: bytes) -> None:
        directories = self._directories
        if length <= CACHED_PATH_BYTES_MAX:
            if len(directories) >= CACHED_PATHS_MAX:
                forget_directories(directories)
            directories[path[:length]] = prefix


class View(Nodes):
    """What is committed, or was at some time: its directories can be listed, too."""

    @abstractmethod
    def children(self, dir_id: int, first: bytes = b"") -> Iterator[tuple[bytes, Node]]:
        """Iterate over a directory's children, names and nodes, in the byte order of the names.

        It begins with the name `first`, or the next one behind it: nothing before is looked at.
        """

    @abstractmethod
    def names(self, dir_id: int, first: bytes, limit: int) -> list[bytes]:
        """Return the names of some children, in order: from `first` on, up to `limit`."""

    @abstractmethod
    def each_entry(self, what: str = "") -> Iterator[Entry]:
        """Yield all entries of one sort, or of all, in no order that means anything."""

    def at(self, now_ns: int) -> View:
        """Return the same state without what has ended by a time; it ends with this view."""
        return ViewAt(self, now_ns)


def forget_directories(directories: dict[bytes, bytes]) -> None:
    """Forget all directories but the root."""
    directories.clear()
    directories[b""] = ROOT_PREFIX


class IndexView(View):
    """The nodes as one LMDB transaction sees them, with the rows that are `late`, if any."""

    def __init__(self, txn: Transaction, tables: Tables, late: Late | None = None) -> None:
        self._txn = txn
        self.get = txn.get
        """LMDB's own, for the row of a node that is known not to be late."""
        self._tables = tables
        self._nodes = tables[b"nodes"]
        self._late = late or {}
        self._directories = {b"": ROOT_PREFIX}

    def end(self) -> None:
        """End the transaction: the view cannot be used any more."""
        self._txn.abort()

    @property
    def applied(self) -> Applied:
        """How far the log has been performed."""
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
                if len(key) < _U64.size:
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
        return 0 if row is None else _decode_number(row)

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

    def entry(self, what: str, name: str) -> Entry | None:
        """Return the entry of a name, or None."""
        key = entry_key(what, name)
        row = self._row(b"entries", key)
        return None if row is None else decode_entry(key, row)

    def entries(self, what: str = "") -> list[Entry]:
        """Return all entries of one sort, or of all, by their names."""
        return sorted(self.each_entry(what), key=lambda entry: (entry.what, entry.name))

    def each_entry(self, what: str = "") -> Iterator[Entry]:
        """Yield all entries of one sort, or of all, as `View.each_entry`."""
        prefix = entry_prefix(what) if what else b""
        return starmap(decode_entry, self.rows(b"entries", prefix))


class ViewAt(View):
    """The nodes at a time: what has ended by then is hidden, with all that hangs below it.

    Until its expiry has been committed, what has ended still stands there.
    """

    def __init__(self, view: View, now_ns: int) -> None:
        self._view = view
        self._now_ns = now_ns
        self._directories = {b"": ROOT_PREFIX}

    def node(self, key: bytes) -> Node | None:
        """Return the node under a key, or None."""
        node = self._view.node(key)
        return None if node is None or has_ended(node, self._now_ns) else node

    def children(self, dir_id: int, first: bytes = b"") -> Iterator[tuple[bytes, Node]]:
        """Iterate over a directory's children, as `View.children`."""
        now_ns = self._now_ns
        found = self._view.children(dir_id, first)
        return (child for child in found if not has_ended(child[1], now_ns))

    def names(self, dir_id: int, first: bytes, limit: int) -> list[bytes]:
        """Return the names of some children, as `View.names`, though not as fast."""
        return [name for name, _ in islice(self.children(dir_id, first), limit)]

    def has_children(self, dir_id: int) -> bool:
        """Return whether a directory has a child, hidden by its name or not."""
        return next(self.children(dir_id), None) is not None

    def entry(self, what: str, name: str) -> Entry | None:
        """Return the entry of a name, or None."""
        return self._view.entry(what, name)

    def entries(self, what: str = "") -> list[Entry]:
        """Return all entries of one sort, or of all, by their names."""
        return self._view.entries(what)

    def each_entry(self, what: str = "") -> Iterator[Entry]:
        """Yield all entries of one sort, or of all, as `View.each_entry`."""
        return self._view.each_entry(what)


def has_ended(node: Node, now_ns: int) -> bool:
    """Return whether a node's time to live has ended."""
    return 0 < node.expiration_ns <= now_ns


def expiration_key(expiration_ns: int, key: bytes) -> bytes:
    """Return the key of the row of `ttl` that speaks of the node under a key."""
    return _U64.pack(expiration_ns) + key


def expiration_row(row_key: bytes, path: bytes) -> tuple[int, bytes]:
    """Return the row that stands under such a key, and the checksum that it carries."""
    crc = crc32(row_key + path)
    return crc, _CRC.pack(crc) + path


def expiration_of(row_key: bytes) -> int:
    """Return the time of a row of `ttl`, in nanoseconds since the epoch."""
    expiration_ns: int = _U64.unpack_from(row_key)[0]
    return expiration_ns


def decode_path(row_key: bytes, row: bytes) -> bytes:
    """Return the path in a row of `ttl`.

    Raises:
        CorruptIndex: it is not what was written there.
    """
    path = row[4:]
    if len(row) < _CRC.size or crc32(path, crc32(row_key)) != _CRC.unpack_from(row)[0]:
        raise CorruptIndex(f"the expiration record {row_key.hex()} fails its checksum")
    return path


def encode_number(number: int) -> bytes:
    """Return the row of `meta` that stands for a number."""
    body = _U64.pack(number)
    return _CRC.pack(crc32(body)) + body


def _decode_number(row: bytes) -> int:
    number: int
    if len(row) != 12 or crc32(row[4:]) != _CRC.unpack_from(row)[0]:
        raise CorruptIndex("the index does not say how long the history may be")
    (number,) = _U64.unpack(row[4:])
    return number


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

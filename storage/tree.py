"""The nodes of one LMDB transaction: reading them, and `perform`, which turns a change into them.

Tables (LMDB sub-databases; every row carries a checksum over its key and its value):

    nodes    storage/node.py                    the tree
    ttl      u64 expiration ns, big-endian | key of the node -> u32 crc | path
    events   u64 index, big-endian -> storage/event.py            the last `history_limit` of them
    garbage  u64 directory id, big-endian -> nothing
    entries  storage/entry.py                                     what is there beside the keys
    meta     "applied" -> `Applied` and the sums of the tables (sums.py), in the same transaction as
             what it speaks of
             "history_bytes_max" -> u32 crc | u64: how long the rows of `events` may be together;
             it counts with the sum of `entries`

The main database, which names them, also holds "store" -> the uuid of the store.

A removed directory is unlinked in one step, however large: ids are never given twice, so nothing
below it can be reached again. `reclaim` later frees what hangs there, a slice at a time; until then
its id stands in `garbage`. What is due but hangs below a removed directory is passed over.

`perform` depends on the state and the record only: no clock, no setting of this process, no order
of a dict. Live and in replay it is the same call.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator
from heapq import merge
from itertools import chain, groupby, islice
from operator import itemgetter
from struct import Struct
from typing import NamedTuple, TypeAlias
from zlib import crc32

import lmdb

from storage.change import (
    CHAIN_START,
    REMOVALS,
    Change,
    ClockOffset,
    Entry,
    Record,
    Setting,
    Term,
    encode_record,
)
from storage.entry import decode_entry, encode_entry, entry_key, entry_prefix
from storage.event import Event, decode_event, encode_event, event_key
from storage.node import (
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
    seal_node,
)
from storage.sums import (
    APPLIED_KEY,
    MASK,
    NOTHING,
    ONE,
    Scanned,
    Sums,
    id_sum,
    meta_sum,
    row_sum,
)
from storage.wal import Position

# Snapshots name them by their place here: new ones come last.
TABLES = (b"nodes", b"ttl", b"events", b"garbage", b"meta", b"entries")

HISTORY_LIMIT = "history_limit"
HISTORY_LIMIT_DEFAULT = 1000
HISTORY_BYTES_MAX = "history_bytes_max"

# Directory ids are remembered for paths up to this length, and for so many of them: a path of
# 64 KB has 32,000 ancestors, whose paths together would take a gigabyte.
_CACHED_PATH_BYTES_MAX = 256
_CACHED_PATHS_MAX = 65_536

_HISTORY_BYTES_MAX_KEY = HISTORY_BYTES_MAX.encode()
# Whose store it is, in the main database, which no snapshot copies.
STORE_KEY = b"store"
_APPLIED = Struct("<IQ8sQQQQQQQQQQI")
_SUMS = Struct("<8Q")
_APPLIED_AND_SUMS = Struct(_APPLIED.format + _SUMS.format[1:])
# Follows either where it is not 0: the offset of the clock.
_OFFSET = Struct("<q")
_APPLIED_SIZES = (_APPLIED.size, _APPLIED.size + _OFFSET.size)
_SUMS_SIZES = (_APPLIED_AND_SUMS.size, _APPLIED_AND_SUMS.size + _OFFSET.size)
_CRC = Struct("<I")
_U64 = Struct(">Q")
_prev_row = itemgetter(2)
_unpack_crc = _CRC.unpack_from

_new = tuple.__new__


class _Seen(NamedTuple):
    """What is known of a path: its last name and, where its directory exists, its row.

    `key` is None where its directory does not exist, `row` is empty where it does not itself.
    """

    path: bytes
    name: bytes
    key: bytes | None
    row: bytes
    node: Node | None


_NOTHING_SEEN = _Seen(b"", b"", None, b"", None)

# What is read at once to be expired or freed, in bytes of values, beside a last one.
_READ_BYTES_MAX = 4 << 20

# Beyond so many, events are dropped that would be forgotten anyway before they are written.
_UNTOLD_MAX = 4000
_Untold = tuple[Change, bytes | None, bytes, int]
"""An event that is not in the history yet: change, its record, the row before it, its time."""

IndexRefused = lmdb.Error
"""The index cannot take a change (a full disk, a full map); the transaction is dead."""

Table = lmdb._Database
Tables = dict[bytes, Table]
Transaction: TypeAlias = "lmdb.Transaction[bytes]"


class Applied(NamedTuple):
    """How far the log has been performed on the index; the fields are the log's (see change.py).

    `index` is the etcd index, `oldest_event` the first index that the history can still tell of,
    `next_dir_id` the id of the next directory. `position` is where the log's next frame goes.
    """

    seq: int = 0
    chain: bytes = CHAIN_START
    pos: int = 0
    term: int = 0
    index: int = 1  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    time_ns: int = 0
    next_dir_id: int = ROOT_ID + 1
    history_limit: int = HISTORY_LIMIT_DEFAULT
    oldest_event: int = 1
    position: Position = Position(0, 0, 0, 0)
    clock_offset_ns: int = 0

    @property
    def wall_ns(self) -> int:
        """The time of the last batch on the wall clock, in nanoseconds since 1970."""
        return self.time_ns + self.clock_offset_ns

    def encode(self) -> bytes:
        """Return the row that stands for it in the table `meta` of a snapshot."""
        segment, offset, frame_seq, crc = self.position
        body = _APPLIED.pack(0, *self[:9], segment, offset, frame_seq, crc)[4:]
        if self.clock_offset_ns:
            body += _OFFSET.pack(self.clock_offset_ns)
        return _CRC.pack(crc32(body)) + body

    def encode_with(self, sums: Sums) -> bytes:
        """Return the row that stands for it in the table `meta` of an index."""
        segment, offset, frame_seq, crc = self.position
        nodes, ttl, garbage, entries = sums
        body = _APPLIED_AND_SUMS.pack(
            *(0, *self[:9], segment, offset, frame_seq, crc),
            *(nodes & MASK, nodes >> 64 & MASK, ttl & MASK, ttl >> 64 & MASK),
            *(garbage & MASK, garbage >> 64 & MASK, entries & MASK, entries >> 64 & MASK),
        )[4:]
        if self.clock_offset_ns:
            body += _OFFSET.pack(self.clock_offset_ns)
        return _CRC.pack(crc32(body)) + body

    @classmethod
    def decode(cls, data: bytes | None) -> Applied:
        """Return what a row says, with sums or without.

        Raises:
            CorruptIndex: there is no such row, or it is damaged.
        """
        if (
            data is None
            or len(data) not in (*_APPLIED_SIZES, *_SUMS_SIZES)
            or crc32(data[4:]) != _CRC.unpack_from(data)[0]
        ):
            raise CorruptIndex("the index does not say how far it goes")
        fields = _APPLIED.unpack_from(data)
        has_offset = len(data) in (_APPLIED_SIZES[1], _SUMS_SIZES[1])
        offset_ns = _OFFSET.unpack_from(data, len(data) - _OFFSET.size)[0] if has_offset else 0
        return cls._make((*fields[1:10], Position(*fields[10:]), offset_ns))


def decode_sums(data: bytes) -> Sums | None:
    """Return the sums in a row that `Applied.decode` takes; None where there are none in it."""
    if len(data) not in _SUMS_SIZES:
        return None
    found = _SUMS.unpack_from(data, _APPLIED.size)
    nodes, ttl, garbage, entries = (found[i] + found[i + 1] * ONE for i in range(0, 8, 2))
    return nodes, ttl, garbage, entries


_NOT_SCANNED = Scanned()
"""Stands where no scan is under way: nothing is behind it."""


class Memory:
    """What is remembered of a state, so that LMDB need not be asked again.

    That of the committed state is changed by commits, and by what views of it have learned.

    Attributes:
        directories: the ids of directories, by path.
        due_ns: the earliest expiration of all, 0 for none, None where it has to be looked up.
        garbage: whether removed directories are left to be freed, None as above.
        history_bytes: the length of all rows of `events` together, None as above.
        history_bytes_max: the limit of that, 0 for none, None as above.
        sums: those of the tables; of a committed state only.
        scanned: how far a scan of the committed state has come.
    """

    __slots__ = (
        *("directories", "due_ns", "garbage", "history_bytes", "history_bytes_max"),
        *("scanned", "sums"),
    )

    def __init__(self, due_ns: int | None = None, *, garbage: bool | None = None) -> None:
        self.directories: dict[bytes, int] = {}
        self.due_ns = due_ns
        self.garbage = garbage
        self.history_bytes: int | None = None
        self.history_bytes_max: int | None = None
        self.sums = NOTHING
        self.scanned = _NOT_SCANNED


class View:
    """The nodes as one transaction sees them; `memory` is of the same state."""

    def __init__(self, txn: Transaction, tables: Tables, memory: Memory) -> None:
        self._txn = txn
        self._get = txn.get
        self._tables = tables
        self._nodes = tables[b"nodes"]
        self._events = tables[b"events"]
        self._memory = memory
        self._directories = memory.directories

    def end(self) -> None:
        """End the transaction: the view cannot be used any more."""
        self._txn.abort()

    def at(self, now_ns: int) -> View:
        """Return the same state without what has ended by a time; it ends with this view."""
        return ViewAt(self._txn, self._tables, now_ns)

    def applied(self) -> Applied:
        """Return how far the log has been performed."""
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

    def find(self, path: bytes) -> Node | None:
        """Return the node at a cleaned path, or None."""
        parent, _, name = path.rpartition(b"/")
        if not name:
            return ROOT
        parent_id = self._directory(parent)
        return None if parent_id is None else self._node(encode_key(parent_id, name))

    def row(self, path: bytes) -> tuple[bytes, bytes] | None:
        """Return the row of a node, not decoded: key and value; None for the root, and nothing."""
        parent, _, name = path.rpartition(b"/")
        parent_id = self._directory(parent) if name else None
        if parent_id is None:
            return None
        key = encode_key(parent_id, name)
        data = self._get(key, db=self._nodes)
        return None if data is None else (key, data)

    def _node(self, key: bytes) -> Node | None:
        data = self._get(key, db=self._nodes)
        return None if data is None else decode_node(key, data)

    def obstacle(self, path: bytes) -> Obstacle:
        """Return what keeps a path that `find` does not know from leading anywhere."""
        if self._directory(path.rpartition(b"/")[0]) is not None:
            return Obstacle(False, path)
        names = path.split(b"/")[1:]
        dir_id = ROOT_ID
        for depth, name in enumerate(names, 1):
            node = self._node(encode_key(dir_id, name))
            if node is None or not node.dir_id:
                return Obstacle(node is not None, b"/" + b"/".join(names[:depth]))
            dir_id = node.dir_id
        raise AssertionError(f"nothing keeps {path!r} from leading to a directory")

    def children(self, dir_id: int, first: bytes = b"") -> Iterator[tuple[bytes, Node]]:
        """Iterate over a directory's children, names and nodes, in the byte order of the names.

        It begins with the name `first`, or the next one behind it: nothing before is looked at.
        """
        prefix = id_prefix(dir_id)
        # Keys of long names stand behind all others and are not in the order of the names.
        long = self._long_named(prefix + b"\1", first)
        begun = next(long, None)
        short = self._short_named(prefix + b"\0", first)
        if begun is None:
            return short
        return merge(short, chain((begun,), long), key=itemgetter(0))

    def names(self, dir_id: int, first: bytes, limit: int) -> list[bytes]:
        """Return the names of some children, in order: from `first` on, up to `limit`.

        Their rows are not read, let alone checked: that takes a fifteenth of the time.
        """
        prefix = id_prefix(dir_id)
        if next(self._range(prefix + b"\1"), None) is not None:
            return [name for name, _ in islice(self.children(dir_id, first), limit)]
        with self._txn.cursor(db=self._nodes) as cursor:
            if not cursor.set_range(_first_key(prefix + b"\0", first)):
                return []
            keys = list(islice(cursor.iternext(values=False), limit))
        return [key[9:] for key in keys[: bisect_left(keys, prefix + b"\1")]]

    def _long_named(self, prefix: bytes, first: bytes) -> Iterator[tuple[bytes, Node]]:
        rows = self._range(prefix, prefix + first[:NAME_BYTES_KEPT])
        # The beginnings that keys hold are in order; names that share one are not.
        for _, alike in groupby(rows, key=_beginning):
            # Their values are read one at a time: together they may not fit in memory.
            for name, key in sorted((decode_name(*row), row[0]) for row in alike):
                if name >= first:
                    node = self._node(key)
                    if node is not None:
                        yield name, node

    def _short_named(self, prefix: bytes, first: bytes) -> Iterator[tuple[bytes, Node]]:
        # One generator, not one around another: a listing passes here for each child.
        with self._txn.cursor(db=self._nodes) as cursor:
            if cursor.set_range(_first_key(prefix, first)):
                for key, data in cursor.iternext():
                    if key[:9] != prefix:
                        return
                    yield key[9:], decode_node(key, data)

    def _range(self, prefix: bytes, first: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        length = len(prefix)
        with self._txn.cursor(db=self._nodes) as cursor:
            if cursor.set_range(first or prefix):
                for row in cursor.iternext():
                    if row[0][:length] != prefix:
                        return
                    yield row

    def has_children(self, dir_id: int) -> bool:
        """Return whether a directory has a child, hidden or not."""
        prefix = id_prefix(dir_id)
        with self._txn.cursor(db=self._nodes) as cursor:
            return cursor.set_range(prefix) and cursor.key()[:8] == prefix

    def has_living_children(self, dir_id: int, now_ns: int, limit: int) -> bool | None:
        """Return whether a directory has a child that has not ended; None if not among `limit`."""
        for key, data in islice(self._range(id_prefix(dir_id)), limit):
            if not has_ended(decode_node(key, data), now_ns):
                return True
            limit -= 1
        return False if limit else None

    def first_ended(self, path: bytes, now_ns: int) -> tuple[bytes, Node] | None:
        """Return the first node on the way to a path, itself included, that has ended; and where.

        One look per component, however deep the path.
        """
        dir_id = ROOT_ID
        length = 0
        for name in path[1:].split(b"/"):
            node = self._node(encode_key(dir_id, name)) if name else None
            if node is None:
                return None
            length += 1 + len(name)
            if has_ended(node, now_ns):
                return path[:length], node
            if not node.dir_id:
                return None
            dir_id = node.dir_id
        return None

    def first_due_ns(self) -> int | None:
        """Return the earliest expiration of all, in nanoseconds since the epoch, or None."""
        memory = self._memory
        if memory.due_ns is None:
            with self._txn.cursor(db=self._tables[b"ttl"]) as cursor:
                try:
                    memory.due_ns = _U64.unpack_from(cursor.key())[0] if cursor.first() else 0
                except struct.error as error:
                    raise CorruptIndex(f"the key of an expiration is damaged: {error}") from None
        return memory.due_ns or None

    def has_garbage(self) -> bool:
        """Return whether `reclaim` has work."""
        memory = self._memory
        if memory.garbage is None:
            with self._txn.cursor(db=self._tables[b"garbage"]) as cursor:
                memory.garbage = cursor.first()
        return memory.garbage

    def events(self, first_index: int) -> Iterator[Event]:
        """Yield the events of the history from an index on, in order."""
        with self._txn.cursor(db=self._events) as cursor:
            if not cursor.set_range(event_key(first_index)):
                return
            for key, data in cursor.iternext():
                yield decode_event(key, data)

    def history_bytes_max(self) -> int:
        """Return how long the rows of the history may be together, 0 where that is not limited."""
        memory = self._memory
        if memory.history_bytes_max is None:
            row = self._txn.get(_HISTORY_BYTES_MAX_KEY, db=self._tables[b"meta"])
            memory.history_bytes_max = 0 if row is None else _decode_number(row)
        return memory.history_bytes_max

    def entry(self, what: str, name: str) -> Entry | None:
        """Return the entry of a name, or None."""
        key = entry_key(what, name)
        row = self._txn.get(key, db=self._tables[b"entries"])
        return None if row is None else decode_entry(key, row)

    def entries(self, what: str = "") -> list[Entry]:
        """Return all entries of one sort, or of all, by their names."""
        prefix = entry_prefix(what) if what else b""
        found = []
        with self._txn.cursor(db=self._tables[b"entries"]) as cursor:
            if cursor.set_range(prefix):
                for key, row in cursor.iternext():
                    if not key.startswith(prefix):
                        break
                    found.append(decode_entry(key, row))
        return sorted(found, key=lambda entry: (entry.what, entry.name))

    def _directory(self, path: bytes) -> int | None:
        """Return the id of the directory at a path (empty for the root), or None."""
        if not path:
            return ROOT_ID
        return self._directories.get(path) or self._walk(path)

    def _walk(self, path: bytes) -> int | None:
        dir_id = ROOT_ID
        length = 0
        for name in path[1:].split(b"/"):
            node = self._node(encode_key(dir_id, name))
            if node is None or not node.dir_id:
                return None
            dir_id = node.dir_id
            length += 1 + len(name)
            self._remember(path, length, dir_id)
        return dir_id

    def _remember(self, path: bytes, length: int, dir_id: int) -> None:
        if length <= _CACHED_PATH_BYTES_MAX:
            if len(self._directories) >= _CACHED_PATHS_MAX:
                self._directories.clear()
            self._directories[path[:length]] = dir_id


class ViewAt(View):
    """The nodes at a time: what has ended by then is hidden, with all that hangs below it.

    Until its expiry has been committed, what has ended still stands there.
    """

    def __init__(self, txn: Transaction, tables: Tables, now_ns: int) -> None:
        super().__init__(txn, tables, Memory())
        self._now_ns = now_ns

    def _node(self, key: bytes) -> Node | None:
        node = super()._node(key)
        return None if node is None or has_ended(node, self._now_ns) else node

    def children(self, dir_id: int, first: bytes = b"") -> Iterator[tuple[bytes, Node]]:
        """Iterate over a directory's children, as `View.children`."""
        now_ns = self._now_ns
        found = super().children(dir_id, first)
        return (child for child in found if not has_ended(child[1], now_ns))

    def names(self, dir_id: int, first: bytes, limit: int) -> list[bytes]:
        """Return the names of some children, as `View.names`, though not as fast."""
        return [name for name, _ in islice(self.children(dir_id, first), limit)]

    def has_children(self, dir_id: int) -> bool:
        """Return whether a directory has a child, hidden by its name or not."""
        return next(self.children(dir_id), None) is not None


class Txn(View):
    """A write transaction: the pending state, invisible to every other view until it commits.

    Opened, used and committed on one thread only. All that it learns stays its own until `commit`
    has returned: the ids of directories in an overlay, the counters in fields.
    """

    def __init__(
        self,
        txn: Transaction,
        tables: Tables,
        committed: Memory,
        applied: Applied,
    ) -> None:
        super().__init__(txn, tables, Memory(committed.due_ns, garbage=committed.garbage))
        self._put = txn.put
        # A row that is read and written again is looked for in the tree only once by a cursor (a
        # quarter of the time of both, measured).
        nodes = txn.cursor(self._nodes)
        self._get_node = nodes.get
        self._put_node = nodes.put
        self._committed = committed
        self._forget = False
        self._next_dir_id = applied.next_dir_id
        self._base = applied
        self.index = applied.index
        self.pos = applied.pos
        self.term = applied.term
        self.history_limit = applied.history_limit
        self.clock_offset_ns = applied.clock_offset_ns
        self._oldest_event = applied.oldest_event
        self._history_bytes = committed.history_bytes
        self._history_bytes_max = committed.history_bytes_max
        self._limit_changed = False
        self._written = applied.index
        self._nodes_sum, self._ttl_sum, self._garbage_sum, self._entries_sum = committed.sums
        scanned = committed.scanned
        self._nodes_until, self._ttl_until = scanned.nodes_until, scanned.ttl_until
        self._nodes_behind = self._ttl_behind = 0
        self._seen = _NOTHING_SEEN
        self._untold: list[_Untold] = []
        self.tidied = False
        """Rows were freed that no record speaks of: worth a commit even without a record."""
        self.is_open = True
        """Whether it has neither been committed nor ended."""

    def end(self) -> None:
        """End it: nothing of it has happened."""
        self.is_open = False
        super().end()

    def find(self, path: bytes) -> Node | None:
        """Return the node at a cleaned path, or None."""
        if path == b"/":
            return ROOT
        seen = self._seen = self._look_up(path)
        return seen[4]

    def _look_up(self, path: bytes) -> _Seen:
        parent, _, name = path.rpartition(b"/")
        # Nearly always the directory is one that was there before this batch.
        parent_id = None if self._forget else self._committed.directories.get(parent)
        if parent_id is None and (parent_id := self._directory(parent)) is None:
            return _Seen(path, name, None, b"", None)
        key = encode_key(parent_id, name)
        data = self._get(key, db=self._nodes)
        if data is None:
            return _Seen(path, name, key, b"", None)
        return _new(_Seen, (path, name, key, data, decode_node(key, data)))

    def _directory(self, path: bytes) -> int | None:
        if not path:
            return ROOT_ID
        dir_id = self._directories.get(path)
        if dir_id is None and not self._forget:
            dir_id = self._committed.directories.get(path)
        return dir_id or self._walk(path)

    def perform(self, record: Record, time_ns: int, encoded: bytes | None = None) -> Event | None:
        """Turn a decided record into rows; return the event that a change makes.

        It checks nothing: that the change is allowed was decided when it was logged. `encoded` is
        the record as the log has it, where that is at hand.
        """
        self.pos += 1
        if isinstance(record, Change):
            return self._change(record, time_ns, encoded)
        if isinstance(record, Term):
            self.term = record.term
        elif isinstance(record, Entry):
            self._enter(record)
        elif isinstance(record, ClockOffset):
            self.clock_offset_ns = record.offset_ns
        else:
            self._set(record)
        return None

    def _set(self, setting: Setting) -> None:
        # The events so far are trimmed by the limits under which they were made, live (where a
        # batch ends before) and in replay (where a transaction takes many batches).
        self.write_history()
        if setting.name == HISTORY_LIMIT:
            self.history_limit = setting.value
        elif setting.name == HISTORY_BYTES_MAX:
            self._memory.history_bytes_max = self._history_bytes_max = setting.value
            self._put_meta(_HISTORY_BYTES_MAX_KEY, _encode_number(setting.value))
        self._limit_changed = True

    def _put_meta(self, key: bytes, row: bytes) -> None:
        before = self._txn.replace(key, row, db=self._tables[b"meta"])
        self._entries_sum += meta_sum(key, row)
        if before is not None:
            self._entries_sum -= meta_sum(key, before)

    def due(self, now_ns: int, limit: int) -> list[tuple[bytes, Node]]:
        """Return path and node of what has expired by `now_ns`, earliest first, at most `limit`.

        They are fewer where they are large.
        """
        due: list[tuple[bytes, Node]] = []
        stale: list[bytes] = []
        size = 0
        if (self.first_due_ns() or now_ns + 1) > now_ns:
            return due
        with self._txn.cursor(db=self._tables[b"ttl"]) as cursor:
            for row_key, row in cursor.iternext():
                if _number(row_key) > now_ns or len(due) + len(stale) >= limit:
                    break
                if size > _READ_BYTES_MAX:
                    break
                path = _decode_path(row_key, row)
                node = self._reached(path, row_key)
                if node is None:
                    stale.append(row_key)
                else:
                    due.append((path, node))
                    size += len(path) + len(node.value or b"")
        for row_key in stale:
            self._delete_ttl(row_key[_U64.size :], _number(row_key))
            self.tidied = True
        return due

    def reclaim(self, limit: int) -> None:
        """Free up to `limit` nodes below removed directories, fewer where they are large."""
        while limit > 0 and self.has_garbage():
            with self._txn.cursor(db=self._tables[b"garbage"]) as cursor:
                cursor.first()
                prefix = cursor.key()
            self.tidied = True
            rows = list(_some(self._range(prefix), limit))
            for key, data in rows:
                node = decode_node(key, data)
                self._txn.delete(key, db=self._nodes)
                self._count_node(key, -row_sum(data))
                if node.expiration_ns:
                    self._delete_ttl(key, node.expiration_ns)
                if node.dir_id:
                    self._put_garbage(node.dir_id)
            is_whole = next(self._range(prefix), None) is None
            if is_whole:
                self._txn.delete(prefix, db=self._tables[b"garbage"])
                self._garbage_sum -= id_sum(prefix)
                self._memory.garbage = None
            elif len(rows) < limit:
                return
            limit -= len(rows) + 1

    def end_batch(self) -> None:
        """Note that a batch ends here: what the history is too short for is forgotten now."""
        self._advance_history()
        if len(self._untold) > _UNTOLD_MAX:
            kept = max(self.index - self._oldest_event + 1, 0)
            if len(self._untold) > 2 * kept:
                del self._untold[: len(self._untold) - kept]

    def _advance_history(self) -> None:
        oldest = self.index - self.history_limit + 1
        if oldest > self._oldest_event:  # noqa: PLR1730 -- `max` takes three times as long
            self._oldest_event = oldest

    def next_applied(self, *, seq: int, chain: bytes, time_ns: int, position: Position) -> Applied:
        """Return how far the log will have been performed once this transaction commits."""
        if self._untold or self._limit_changed:
            self.write_history()
        return Applied(
            seq,
            chain,
            self.pos,
            self.term,
            self.index,
            time_ns,
            self._next_dir_id,
            self.history_limit,
            self._oldest_event,
            position,
            self.clock_offset_ns,
        )

    def write_history(self) -> None:
        """Write the events that were performed, and forget those that the history is too short for.

        They cannot be read before. `next_applied` does it, too: what may fail should fail before
        the log is written.
        """
        bytes_max, size = self._history_bytes_max, self._history_bytes
        if bytes_max is None or size is None:
            bytes_max, size = self._measure_history()
        oldest = self.index - self.history_limit + 1
        oldest = self._oldest_event = oldest if oldest > self._oldest_event else self._oldest_event
        untold, self._untold = self._untold, []
        if bytes_max and sum(map(len, map(_prev_row, untold))) > bytes_max:
            oldest = self._skip_too_long(untold, bytes_max)
        for change, record, prev_row, time_ns in untold:
            index = change[1]
            if index >= oldest:
                key = event_key(index)
                row = encode_event(key, record or encode_record(change), prev_row, time_ns)
                self._put(key, row, append=True, db=self._events)
                size += len(row)
        self._history_bytes = size
        if oldest > self._base.oldest_event or size > bytes_max > 0:
            self._forget_events(bytes_max)
        self._written = self.index
        self._limit_changed = False

    def _measure_history(self) -> tuple[int, int]:
        """Look up how long the rows of the history may be, and how long they are."""
        self._history_bytes_max = self.history_bytes_max()
        with self._txn.cursor(db=self._events) as cursor:
            size = sum(map(len, cursor.iternext(keys=False)))
        return self._history_bytes_max, size

    def _skip_too_long(self, untold: list[_Untold], bytes_max: int) -> int:
        """Return the oldest event that need be written: those before it would be forgotten.

        What is looked at is a part of what is written: the exact limit is `_forget_events`'s.
        """
        size = 0
        for change, _, prev_row, _ in reversed(untold[:-1]):
            size += len(prev_row)
            if size > bytes_max:
                self._oldest_event = max(self._oldest_event, change.index + 1)
                break
        return self._oldest_event

    def commit(self, applied: Applied) -> None:
        """Make everything visible, together with `applied`.

        Raises:
            lmdb.Error: the transaction is dead and nothing of it has happened; `MapFullError` and
                disk errors come from here, not from `perform` alone.
        """
        sums = self._nodes_sum, self._ttl_sum, self._garbage_sum, self._entries_sum
        if applied is not self._base or self.tidied:
            self._put(APPLIED_KEY, applied.encode_with(sums), db=self._tables[b"meta"])
        self._txn.commit()
        self.is_open = False
        committed, memory = self._committed, self._memory
        committed.sums = sums
        if self._nodes_behind or self._ttl_behind:
            committed.scanned.nodes += self._nodes_behind
            committed.scanned.ttl += self._ttl_behind
        committed.due_ns, committed.garbage = memory.due_ns, memory.garbage
        committed.history_bytes = self._history_bytes
        committed.history_bytes_max = self._history_bytes_max
        if self._forget or len(committed.directories) > _CACHED_PATHS_MAX:
            committed.directories.clear()
        if self._directories:
            committed.directories.update(self._directories)

    def _change(self, change: Change, time_ns: int, record: bytes | None) -> Event:
        kind, index, path, value, is_dir, created, expiration_ns, _ = change
        # What was looked at last, to decide this very change, need not be looked up again (a tenth
        # of the work of a PUT, measured).
        seen = self._seen
        if seen[0] is not path:
            seen = self._look_up(path)
        self._seen = _NOTHING_SEEN
        _, name, key, prev_row, prev = seen
        if key is None:
            key = encode_key(self._make_directories(path[: -len(name) - 1], index), name)
        if prev is not None and prev.expiration_ns:
            self._delete_ttl(key, prev.expiration_ns)
        # Not by calls for each part: this is the most frequent way (see sums.py).
        changed = -ONE - _unpack_crc(prev_row)[0] if prev_row else 0
        if kind in REMOVALS:
            self._txn.delete(key, db=self._nodes)
            if prev is not None and prev.dir_id:
                self._put_garbage(prev.dir_id)
                self._memory.garbage = True
                self._directories.clear()
                self._forget = True
        else:
            modified, dir_id = index, 0
            if is_dir and prev is not None and prev.dir_id:
                # An update of a directory changes its TTL; the node itself keeps its index.
                modified, dir_id = prev.modified_index, prev.dir_id
            elif is_dir:
                dir_id = self._take_dir_id()
            node = _new(Node, (value, created, modified, expiration_ns, dir_id))
            crc, row = seal_node(key, name, node)
            self._put_node(key, row)
            changed += ONE + crc
            if expiration_ns:
                self._put_ttl(key, path, expiration_ns)
        self._nodes_sum += changed
        self._nodes_behind += changed if key <= self._nodes_until else 0
        self._untold.append((change, record, prev_row, time_ns))
        self.index = index
        return _new(Event, (change, prev, time_ns))

    def _enter(self, entry: Entry) -> None:
        key, table = entry_key(entry.what, entry.name), self._tables[b"entries"]
        before = self._txn.pop(key, db=table)
        if before is not None:
            self._entries_sum -= row_sum(before)
        if entry.document is not None:
            row = encode_entry(key, entry)
            self._txn.put(key, row, db=table)
            self._entries_sum += row_sum(row)

    def _count_node(self, key: bytes, changed: int) -> None:
        self._nodes_sum += changed
        if key <= self._nodes_until:
            self._nodes_behind += changed

    def _put_garbage(self, dir_id: int) -> None:
        prefix = id_prefix(dir_id)
        self._put(prefix, b"", db=self._tables[b"garbage"])
        self._garbage_sum += id_sum(prefix)

    def _make_directories(self, path: bytes, index: int) -> int:
        """Make what is missing of a path of directories; return the id of the last."""
        dir_id = ROOT_ID
        length = 0
        for name in path[1:].split(b"/"):
            key = encode_key(dir_id, name)
            node = self._node(key)
            if node is None:
                node = Node(None, index, index, 0, self._take_dir_id())
                crc, row = seal_node(key, name, node)
                self._put_node(key, row)
                self._count_node(key, ONE + crc)
            dir_id = node.dir_id
            length += 1 + len(name)
            self._remember(path, length, dir_id)
        return dir_id

    def _take_dir_id(self) -> int:
        self._next_dir_id += 1
        return self._next_dir_id - 1

    def _forget_events(self, bytes_max: int) -> None:
        """Delete what the history does not hold any more: by count, then by length.

        The last event stays, however long it is.
        """
        size, oldest, last = self._history_bytes, self._oldest_event, self.index
        assert size is not None
        # Between what was written before and the oldest that is written now there may be a gap.
        before = oldest if oldest <= self._written else self._written + 1
        with self._txn.cursor(db=self._events) as cursor:
            # Each etcd index has its event, so they need only be counted.
            if cursor.first():
                try:
                    (first,) = _U64.unpack(cursor.key())
                except struct.error as error:
                    raise CorruptIndex(f"the key of a history record is damaged: {error}") from None
                for _ in range(first, before):
                    size -= len(cursor.value())
                    cursor.delete()
            if size > bytes_max > 0:
                for oldest in range(_U64.unpack(cursor.key())[0], last + 1):
                    if size <= bytes_max or oldest == last:
                        break
                    size -= len(cursor.value())
                    cursor.delete()
        self._oldest_event, self._history_bytes = oldest, size

    def _put_ttl(self, key: bytes, path: bytes, expiration_ns: int) -> None:
        row_key = _U64.pack(expiration_ns) + key
        crc = crc32(row_key + path)
        self._put(row_key, _CRC.pack(crc) + path, db=self._tables[b"ttl"])
        self._ttl_sum += ONE + crc
        if row_key <= self._ttl_until:
            self._ttl_behind += ONE + crc
        due_ns = self._memory.due_ns
        if due_ns is not None and (due_ns == 0 or expiration_ns < due_ns):
            self._memory.due_ns = expiration_ns

    def _delete_ttl(self, key: bytes, expiration_ns: int) -> None:
        if expiration_ns == self._memory.due_ns:
            self._memory.due_ns = None
        row_key = _U64.pack(expiration_ns) + key
        row = self._txn.pop(row_key, db=self._tables[b"ttl"])
        if row is not None:
            changed = -ONE - _unpack_crc(row)[0]
            self._ttl_sum += changed
            if row_key <= self._ttl_until:
                self._ttl_behind += changed

    def _reached(self, path: bytes, row_key: bytes) -> Node | None:
        """Return the node at `path` if it is the very one that a row of `ttl` speaks of."""
        parent, _, name = path.rpartition(b"/")
        parent_id = self._directory(parent)
        if parent_id is None or encode_key(parent_id, name) != row_key[8:]:
            return None
        node = self.find(path)
        return node if node and node.expiration_ns == _number(row_key) else None


def _first_key(prefix: bytes, first: bytes) -> bytes:
    """Return where the short names begin that are not before a name, which may be a long one."""
    if len(first) <= NAME_BYTES_MAX:
        return prefix + first
    # A short name that it begins with is before it.
    return prefix + first[:NAME_BYTES_MAX] + b"\0"


def _beginning(row: tuple[bytes, bytes]) -> bytes:
    """Return what the key of a long name holds of it, behind the directory's id."""
    return row[0][9 : 9 + NAME_BYTES_KEPT]


def has_ended(node: Node, now_ns: int) -> bool:
    """Return whether a node's time to live has ended."""
    return 0 < node.expiration_ns <= now_ns


def _encode_number(number: int) -> bytes:
    body = _U64.pack(number)
    return _CRC.pack(crc32(body)) + body


def _decode_number(row: bytes) -> int:
    number: int
    if len(row) != 12 or crc32(row[4:]) != _CRC.unpack_from(row)[0]:
        raise CorruptIndex("the index does not say how long the history may be")
    (number,) = _U64.unpack(row[4:])
    return number


def _number(key: bytes) -> int:
    """Return the number that a key begins with.

    Raises:
        CorruptIndex: it begins with none, so it is no key of ours.
    """
    if len(key) < _U64.size:
        raise CorruptIndex(f"a key of {len(key)} bytes, expected {_U64.size} or more")
    number: int = _U64.unpack_from(key)[0]
    return number


def _some(rows: Iterator[tuple[bytes, bytes]], limit: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield up to `limit` rows, and none behind so many bytes that they take."""
    size = 0
    for row in islice(rows, limit):
        yield row
        size += len(row[1])
        if size > _READ_BYTES_MAX:
            return


def _decode_path(row_key: bytes, row: bytes) -> bytes:
    path = row[4:]
    if len(row) < _CRC.size or crc32(path, crc32(row_key)) != _CRC.unpack_from(row)[0]:
        raise CorruptIndex(f"the expiration record {row_key.hex()} fails its checksum")
    return path

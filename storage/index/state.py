"""The committed state, ahead of the index in memory; and one batch that is pending over it.

    log (durable)  ->  State, in memory (visible)  ->  LMDB (some hundred changes later)

Invariants:

- The index is never ahead of the log, and may be behind it: a start performs the rest again.
- A node that `State.nodes` holds is right; what it does not hold stands in the index.
- Once a batch is durable, nothing can fail: merging it is a few updates of dicts. Only `flush`
  meets a full disk or a full map, and may be called again until it succeeds.
- Single nodes are looked up in memory, then in the index. What scans the index (children,
  expirations, entries) flushes first. While the index refuses that, a scan is shown the rows that
  are late among those of the index.
- Nodes are held by the keys of their rows. A removed directory therefore needs no pass over what
  is below it: its id is never given again, so nothing finds it.
- `perform` depends on the state and the record only: no clock, no setting of this process, no order
  of a dict. Live, in replay and on a replica it is the same call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import islice
from typing import cast

import lmdb

from kvd.storage.format.applied import HISTORY_BYTES_MAX, HISTORY_LIMIT, Applied
from kvd.storage.format.document import encode_entry, entry_key
from kvd.storage.format.event import Event
from kvd.storage.format.expiration import decode_path, expiration_key, expiration_of
from kvd.storage.format.frame import Position
from kvd.storage.format.node import (
    NAME_BYTES_MAX,
    ROOT,
    ROOT_PREFIX,
    Node,
    Obstacle,
    child_key,
    decode_node,
    has_ended,
    id_prefix,
    parent_prefix,
    seal_node,
)
from kvd.storage.format.records import REMOVALS, Change, ClockOffset, Entry, Record, Setting, Term
from kvd.storage.format.sums import Scanned
from kvd.storage.index.environment import Index, reach_commit
from kvd.storage.index.errors import BROKEN, IndexRefused
from kvd.storage.index.flush import READ_BYTES_MAX, Flush, History, LateEvent
from kvd.storage.index.index_view import IndexView, Late, Transaction
from kvd.storage.index.view import CACHED_PATHS_MAX, Nodes, Passed, View, forget_directories

FLUSH_RECORDS = 512
"""So many records beyond the index are worth a flush."""
FLUSH_BYTES = 1 << 20
"""As above, bytes of them and of what they replaced."""
FLUSH_NODES = 2048
"""As above, nodes that they changed: one record makes thousands of directories."""
BEHIND_FACTOR = 4
"""While the index refuses to take more, batches wait once so many times as much is beyond it."""

# So many bytes, or nodes, are in memory no longer than for a batch.
_HEAVY_BYTES = 4 << 20
_HEAVY_NODES = 8192

# Written nodes that are kept for the next write of them: checked after each flush.
_KEPT_NODES_MAX = 8192
_KEPT_BYTES_MAX = 16 << 20
# Beyond so many, events are dropped that would be forgotten anyway before they are written.
_LATE_MAX = 4000
# A replaced value is counted where it has such a byte, which a slice tells for less than a call.
_LARGE, _LARGE_END = 1024, 1025

_new = tuple.__new__


class _Unknown:
    """Stands for a node that is not in memory."""


_UNKNOWN = _Unknown()
_Seen = tuple[bytes, bytes | None, Node | None]
"""What is known of a path: its key, None where its directory does not exist; and its node."""
_NOTHING_SEEN: _Seen = (b"", None, None)
_NO_SCAN = Scanned()
"""Stands where no scan is under way: nothing is behind it."""


class State(View):
    """What is committed. Belongs to one thread.

    Attributes:
        applied: How far the log has been performed: what readers see.
        stored: How far the index says it has been.
        sums: Those of the index's tables.
        scanned: How far a scan of the index has come.
        nodes: Nodes by their keys, None for one that is there no more.
        due_ns: No node ends before that; 0 where none ends at all.
        has_garbage: Whether removed directories may be left to be freed.
        refused: What the index said when it was to be flushed last, None where it took it.
    """

    def __init__(self, index: Index) -> None:
        """Begin with what an index holds.

        Raises:
            CorruptIndex: it is damaged, or of an older version.
        """
        self._env = index.env
        self._tables = index.tables
        self._table = index.tables[b"nodes"]
        self.applied = self.stored = index.applied()
        self.sums = index.sums()
        self.scanned = _NO_SCAN
        self.nodes: dict[bytes, Node | None] = {}
        self.directories = self._directories = {b"": ROOT_PREFIX}
        self.refused: lmdb.Error | None = None
        self._view: IndexView | None = None
        self._bulk: Transaction | None = None
        self._kept_bytes = 0
        self._history: History | None = None
        self._begin_period()
        view = self._index_view()
        self._history_bytes_max = view.history_bytes_max()
        self.due_ns = view.first_due_ns() or 0
        self.has_garbage = view.has_garbage()

    def _begin_period(self) -> None:
        """Note that the index holds all."""
        self._bytes = 0
        self._flush_pos = self.stored.pos + FLUSH_RECORDS
        self.wants_flush = False
        """Whether enough is beyond the index to be worth a flush."""
        self.is_heavy = False
        """Whether so much memory is in use for it that a flush should not wait."""
        # Keys whose rows are late, and the paths of those that need one to be written.
        self._dirty: set[bytes] = set()
        self._paths: dict[bytes, bytes] = {}
        self._events: list[LateEvent] = []
        self._dropped: list[int] = []
        self._entered: dict[bytes, Entry] = {}
        self._stale: set[bytes] = set()
        self._new_bytes_max: int | None = None
        self._late: tuple[Applied, Late] | None = None

    # Reading.

    def node(self, key: bytes) -> Node | None:
        """Return the node under a key, or None."""
        node = self.nodes.get(key, _UNKNOWN)
        return self.load(key) if node is _UNKNOWN else node  # type: ignore[return-value]

    def load(self, key: bytes) -> Node | None:
        """Return the node under a key that is not in memory."""
        data = self._index_view().get(key, db=self._table)
        return None if data is None else decode_node(key, data)

    def children(self, dir_id: int, first: bytes = b"") -> Iterator[tuple[bytes, Node]]:
        """Iterate over a directory's children, as `View.children`."""
        return self.flushed().children(dir_id, first)

    def names(self, dir_id: int, first: bytes, limit: int) -> list[bytes]:
        """Return the names of some children, as `View.names`."""
        return self.flushed().names(dir_id, first, limit)

    def has_children(self, dir_id: int) -> bool:
        """Return whether a directory has a child, hidden by its name or not."""
        return self.flushed().has_children(dir_id)

    def entry(self, what: str, name: str) -> Entry | None:
        """Return the entry of a name, or None."""
        entry = self._entered.get(entry_key(what, name))
        if entry is not None:
            return None if entry.document is None else entry
        return self._index_view().entry(what, name)

    def entries(self, what: str = "") -> list[Entry]:
        """Return all entries of one sort, or of all, by their names."""
        return self.flushed().entries(what)

    def each_entry(self, what: str = "") -> Iterator[Entry]:
        """Yield all entries of one sort, or of all, as `View.each_entry`."""
        return self.flushed().each_entry(what)

    def history_bytes_max(self) -> int:
        """Return how long the rows of the history may be together, 0 where that is not limited."""
        return self._history_bytes_max

    def events(self, first_index: int) -> Iterator[Event]:
        """Yield the events of the history from an index on, in order."""
        first = max(first_index, self.applied.oldest_event)
        late = self._events
        if not late or first < late[0][0].change.index:
            yield from self._index_view().events(first)
        if late:
            begin = max(first - late[0][0].change.index, 0)
            for event, _ in late[begin:]:
                yield event

    def events_back(self, last_index: int, needles: Sequence[bytes]) -> Iterator[Passed]:
        """Yield the events of the history down from an index, as `IndexView.events_back`.

        The index may still hold some that are forgotten by now.
        """
        late = self._events
        first_late = late[0][0].change.index if late else self.applied.index + 1
        oldest = self.applied.oldest_event
        for place in range(min(last_index, self.applied.index) - first_late, -1, -1):
            event = late[place][0]
            if event.change.index < oldest:
                return
            yield event.change.index, event
        last_index = min(last_index, first_late - 1)
        yield from self._index_view().events_back(last_index, oldest, needles)

    def flushed(self) -> IndexView:
        """Return a view of the index with all that is committed; good until the next change.

        Raises:
            CorruptIndex, lmdb.Error: damage, one of `BROKEN`.
        """
        if self.is_behind and self.refused is None:
            try:
                self.flush()
            except BROKEN:
                raise
            except IndexRefused:
                pass  # retried by the owner of the store (kvd/core/flusher.py)
        if self.is_behind:
            self._end_view()
            self._view = IndexView(self._env.begin(), self._tables, self.late_rows())
        return self._index_view()

    def late_rows(self) -> Late:
        """Return the rows that are not in the index as they are now."""
        if not self.is_behind:
            return {}
        if self._late is not None and self._late[0] is self.applied:
            return self._late[1]
        nodes: dict[bytes, bytes | None] = {}
        for key in self._dirty:
            node = self.nodes[key]
            path = self._paths.get(key, b"/" + key[9:])
            name = path.rpartition(b"/")[2]
            nodes[key] = None if node is None else seal_node(key, name, node)[1]
        entries = {
            key: None if entry.document is None else encode_entry(key, entry)
            for key, entry in self._entered.items()
        }
        late = {b"nodes": nodes, b"entries": entries}
        # Many may scan while the index refuses: it is made once for a state.
        self._late = self.applied, late
        return late

    def _index_view(self) -> IndexView:
        if self._view is None:
            txn = self._bulk if self._bulk is not None else self._env.begin()
            self._view = IndexView(txn, self._tables)
        return self._view

    def _end_view(self) -> None:
        if self._view is not None and self._bulk is None:
            self._view.end()
        self._view = None

    # Writing.

    def merge(self, pending: Pending, position: Position) -> None:
        """Make a batch visible that is durable up to a position. Nothing here can fail."""
        nodes, dirty = pending.nodes, self._dirty
        self.nodes.update(nodes)
        dirty.update(nodes)
        self._events += pending.events
        self.due_ns = pending.due_ns
        if not pending.is_plain:
            self._merge_rest(pending)
        _, _, _, term, _, _, next_dir_id, limit, oldest, _, offset = pending.base
        index, pos = pending.index, pending.pos
        # What the history is too short for is forgotten; a flush meanwhile may have forgotten more,
        # for its length.
        oldest = max(oldest, index - limit + 1, self.applied.oldest_event)
        seq, chain, time_ns = pending.seq, pending.chain, pending.time_ns
        done = seq, chain, pos, term, index, time_ns, next_dir_id, limit, oldest, position, offset
        self.applied = _new(Applied, done)
        self._bytes += pending.size + pending.replaced
        if pos >= self._flush_pos or self._bytes >= FLUSH_BYTES or len(dirty) >= FLUSH_NODES:
            self.wants_flush = True
            self.is_heavy = self._bytes >= _HEAVY_BYTES or len(dirty) >= _HEAVY_NODES

    def _merge_rest(self, pending: Pending) -> None:
        self._paths.update(pending.paths)
        if pending.dropped:
            self._dropped += pending.dropped
            self.has_garbage = True
            forget_directories(self.directories)
        self.directories.update(pending.made)
        if len(self.directories) > CACHED_PATHS_MAX:
            forget_directories(self.directories)
        self._entered.update(pending.entered)
        if pending.new_bytes_max is not None:
            self._new_bytes_max = self._history_bytes_max = pending.new_bytes_max

    @property
    def is_behind(self) -> bool:
        """Whether the index lacks something."""
        return self.applied is not self.stored or bool(self._stale)

    @property
    def is_full(self) -> bool:
        """Whether so much is beyond the index that nothing more may be added before a flush."""
        return (
            self.applied.pos >= self._flush_pos + FLUSH_RECORDS * (BEHIND_FACTOR - 1)
            or self._bytes >= FLUSH_BYTES * BEHIND_FACTOR
            or len(self._dirty) >= FLUSH_NODES * BEHIND_FACTOR
        )

    def flush(self, *, free: int = 0) -> None:
        """Write to the index all that it lacks, and free so many nodes of removed directories.

        Raises:
            IndexRefused: it was not written; memory has everything, so call it again.
            CorruptIndex, lmdb.Error: damage, one of `BROKEN`.
        """
        if not (self.is_behind or free):
            return
        self._end_view()
        bulk = self._bulk
        # Of old rows only the heads are looked at: no copies.
        txn = bulk or cast("Transaction", self._env.begin(write=True, buffers=True))
        try:
            flush = Flush(txn, self._tables, self.sums, self.scanned)
            applied, history = self._write(flush)
            has_garbage = flush.free(free) if free else self.has_garbage
            flush.finish(applied)
            if bulk is None:
                reach_commit()
                txn.commit()
        except BaseException as error:
            if bulk is None:
                txn.abort()
            if isinstance(error, IndexRefused):
                self.refused = error
            raise
        self.refused = None
        self.sums = flush.sums
        if flush.nodes_behind or flush.ttl_behind:
            self.scanned.nodes += flush.nodes_behind
            self.scanned.ttl += flush.ttl_behind
        if history is not None:
            history.named.update(flush.named)
            history.named.difference_update(flush.unnamed)
        self._history, self.has_garbage = history, has_garbage
        self.applied = self.stored = applied
        self._kept_bytes += self._bytes
        is_much = self.is_heavy or self._kept_bytes > _KEPT_BYTES_MAX
        if is_much or len(self.nodes) > _KEPT_NODES_MAX:
            self.nodes.clear()
            self._kept_bytes = 0
        self._begin_period()

    def _write(self, flush: Flush) -> tuple[Applied, History | None]:
        if self._dirty:
            flush.write_nodes(self.nodes, self._dirty, self._paths)
        if self._dropped:
            flush.drop(self._dropped)
        for row_key in self._stale:
            flush.delete_expiration(row_key)
        if self._entered:
            flush.enter(self._entered.values())
        if self._new_bytes_max is not None:
            flush.set_history_bytes_max(self._new_bytes_max)
        applied, history = self.applied, self._history
        if (
            self._events
            or applied.history_limit != self.stored.history_limit
            or self._new_bytes_max
        ):
            if history is None:
                history = flush.history(self.stored.oldest_event, self._history_bytes_max)
            history = history._replace(bytes_max=self._history_bytes_max)
            history = flush.write_history(self._events, self.stored, applied, history)
            if history.oldest_event != applied.oldest_event:
                applied = applied._replace(oldest_event=history.oldest_event)
        return applied, history

    def begin_bulk(self) -> None:
        """Have flushes write to one transaction, until `end_bulk`; for a replay."""
        self._end_view()
        self._bulk = self._env.begin(write=True)

    def end_bulk(self) -> None:
        """Flush, and commit that transaction.

        Raises:
            IndexRefused: nothing of it has happened, and the state cannot be used any more.
        """
        self.flush()
        assert self._bulk is not None
        self._view = None
        self._bulk.commit()
        self._bulk = None

    def end(self) -> None:
        """Let go of the index; what has not been flushed is lost to it."""
        self._end_view()
        if self._bulk is not None:
            self._bulk.abort()
            self._bulk = None

    def late_nodes(self) -> dict[bytes, Node | None]:
        """Return the nodes that are not in the index as they are now, by their keys."""
        return {key: self.nodes[key] for key in self._dirty}

    def late_path(self, key: bytes) -> bytes:
        """Return the path of such a node, of one that expires."""
        return self._paths[key]

    def is_stale(self, path: bytes, key: bytes, expiration_ns: int) -> bool:
        """Return whether a row of `ttl` speaks of a node that cannot be reached."""
        return self._reached(path, key, expiration_ns) is None

    def pass_over(self, row_key: bytes) -> None:
        """Have a row of `ttl` deleted that speaks of nothing any more."""
        self._stale.add(row_key)

    def is_passed_over(self, row_key: bytes) -> bool:
        """Return whether a row of `ttl` waits to be deleted, because the index refuses that."""
        return row_key in self._stale


class Pending(Nodes):
    """One batch over the committed state, invisible until it is merged.

    Nothing of it has to be undone: it is dropped.

    Attributes:
        nodes: The nodes that it changed, by their keys; None for one that is there no more.
        events: Its events, each with the record of its change where that was at hand.
        due_ns: As in `State`; the caller sets it after expiring all that was due.
        replaced: The bytes of the large values that its events replaced, which they hold.
        is_plain: Whether it changed nothing but nodes.
        base: What `Applied` will say once it is merged, but for what each batch changes.
        seq, time_ns, chain: As in `Applied`, once it is to be merged.
        payload, records, size: What it is in the log, of how many records and bytes.
        paths, dropped, entered, new_bytes_max: As in `State`.
    """

    # What is rare stands here until it comes.
    _seen = _NOTHING_SEEN
    _by_directory: dict[bytes, list[bytes]] | None = None
    """By directory the keys in `nodes`; once that was asked for."""
    _directories: dict[bytes, bytes] = {}  # noqa: RUF012 -- as the next two: never changed here
    paths: dict[bytes, bytes] = {}  # noqa: RUF012
    entered: dict[bytes, Entry] = {}  # noqa: RUF012
    dropped: tuple[int, ...] = ()
    new_bytes_max: int | None = None
    replaced = 0
    is_plain = True
    # What the log says of it stands here until it is encoded.
    seq = time_ns = records = size = 0
    chain = payload = b""

    def __init__(self, state: State) -> None:
        self._state = state
        self._kept = state.nodes
        self._known = state.directories
        self.nodes: dict[bytes, Node | None] = {}
        self.events: list[LateEvent] = []
        self.due_ns = state.due_ns
        self.base = applied = state.applied
        self.index = applied.index
        self.pos = applied.pos

    # Reading.

    def find(self, path: bytes) -> Node | None:
        """Return the node at a cleaned path, or None."""
        parent, _, name = path.rpartition(b"/")
        if not name:
            return ROOT
        prefix = self._known.get(parent) or self._directory(parent)
        if prefix is None:
            self._seen = (path, None, None)
            return None
        key = prefix + name if len(name) <= NAME_BYTES_MAX else child_key(prefix, name)
        # As `node` does, without a call.
        node = self.nodes.get(key, _UNKNOWN)
        if node is _UNKNOWN:
            node = self._kept.get(key, _UNKNOWN)
            if node is _UNKNOWN:
                node = self._state.load(key)
        self._seen = (path, key, node)  # type: ignore[assignment]
        return node  # type: ignore[return-value]

    def node(self, key: bytes) -> Node | None:
        """Return the node under a key, or None."""
        node = self.nodes.get(key, _UNKNOWN)
        if node is _UNKNOWN:
            node = self._kept.get(key, _UNKNOWN)
            if node is _UNKNOWN:
                return self._state.load(key)
        return node  # type: ignore[return-value]

    def _directory(self, path: bytes) -> bytes | None:
        return self._known.get(path) or self._directories.get(path) or self._walk(path)

    def _remember(self, path: bytes, length: int, prefix: bytes) -> None:
        if not self._directories:
            self._directories = {b"": ROOT_PREFIX}
            self.is_plain = False
        super()._remember(path, length, prefix)

    @property
    def made(self) -> dict[bytes, bytes]:
        """The directories that it made, or met, by their paths."""
        return self._directories

    def obstacle(self, path: bytes) -> Obstacle:
        """Return what keeps a path that `find` does not know from leading anywhere."""
        seen = self._seen
        if seen[0] is path and seen[1] is not None:
            return Obstacle(False, path)
        return super().obstacle(path)

    def has_children(self, dir_id: int) -> bool:
        """Return whether a directory has a child, hidden or not."""
        return next(self._below(dir_id), None) is not None

    def has_living_children(self, dir_id: int, now_ns: int, limit: int) -> bool | None:
        """Return whether a directory has a child that has not ended; None if not among `limit`."""
        for _, node in islice(self._below(dir_id), limit):
            if not has_ended(node, now_ns):
                return True
            limit -= 1
        return False if limit else None

    def _below(self, dir_id: int) -> Iterator[tuple[bytes, Node]]:
        nodes = self.nodes
        prefix = id_prefix(dir_id)
        if self._by_directory is None:
            self._by_directory = {}
            for key in nodes:
                self._by_directory.setdefault(key[:8], []).append(key)
        for key in self._by_directory.get(prefix, ()):
            node = nodes[key]
            if node is not None:
                yield key, node
        for key, data in self._state.flushed().rows(b"nodes", prefix):
            if key not in nodes:
                yield key, decode_node(key, data)

    def entry(self, what: str, name: str) -> Entry | None:
        """Return the entry of a name, or None."""
        entry = self.entered.get(entry_key(what, name))
        if entry is not None:
            return None if entry.document is None else entry
        return self._state.entry(what, name)

    def entries(self, what: str = "") -> list[Entry]:
        """Return all entries of one sort, or of all, by their names."""
        found = {(entry.what, entry.name): entry for entry in self._state.entries(what)}
        for entry in self.entered.values():
            if not what or entry.what == what:
                found[entry.what, entry.name] = entry
        return [found[name] for name in sorted(found) if found[name].document is not None]

    def due(self, now_ns: int, limit: int) -> tuple[list[tuple[bytes, Node]], int]:
        """Return path and node of what has ended by `now_ns`, the earliest first.

        Returns:
            At most `limit` of them, fewer where they are large; and what `due_ns` will be once all
            of them have expired.
        """
        due: list[tuple[bytes, Node]] = []
        if not 0 < self.due_ns <= now_ns:
            return due, self.due_ns
        state = self._state
        stored = state.flushed().expirations()
        late = state.late_nodes() | self.nodes
        ours = sorted((node[3], key) for key, node in late.items() if node is not None and node[3])
        size = 0
        rows = (
            (expiration_of(row_key), row_key[8:], row)
            for row_key, row in stored
            if row_key[8:] not in late and not state.is_passed_over(row_key)
        )
        met = merge(rows, ((*born, None) for born in ours))
        for count, (expiration_ns, key, row) in enumerate(met):
            if expiration_ns > now_ns or count >= limit or size > READ_BYTES_MAX:
                return due, expiration_ns
            row_key = expiration_key(expiration_ns, key)
            path = self._late_path(key) if row is None else decode_path(row_key, row)
            node = self._reached(path, key, expiration_ns)
            if node is not None:
                due.append((path, node))
                size += len(path) + len(node.value or b"")
            elif row is not None and state.is_stale(path, key, expiration_ns):
                state.pass_over(row_key)
        return due, 0

    def _late_path(self, key: bytes) -> bytes:
        path = self.paths.get(key)
        return self._state.late_path(key) if path is None else path

    # Writing.

    def perform(self, record: Record, time_ns: int, encoded: bytes | None = None) -> Event | None:
        """Turn a decided record into nodes; return the event that a change makes.

        It checks nothing: that the change is allowed was decided when it was logged. `encoded` is
        the record as the log has it, where that is at hand.
        """
        if type(record) is Change:
            return self.change(record, time_ns, encoded)
        self.pos += 1
        self.is_plain = False
        if isinstance(record, Term):
            self.base = self.base._replace(term=record.term)
        elif isinstance(record, Entry):
            if not self.entered:
                self.entered = {}
            self.entered[entry_key(record.what, record.name)] = record
        elif isinstance(record, ClockOffset):
            self.base = self.base._replace(clock_offset_ns=record.offset_ns)
        elif isinstance(record, Setting):
            self._set(record)
        return None

    def _set(self, setting: Setting) -> None:
        # The events so far are trimmed by the limits under which they were made.
        self._state.flushed()
        self.end_batch()
        if setting.name == HISTORY_LIMIT:
            self.base = self.base._replace(history_limit=setting.value)
        elif setting.name == HISTORY_BYTES_MAX:
            self.new_bytes_max = setting.value

    def change(self, change: Change, time_ns: int, encoded: bytes | None = None) -> Event:
        """As `perform`, for a change."""
        self.pos += 1
        kind, index, path, value, is_dir, created, expiration_ns, _ = change
        # What was looked at last, to decide this very change, need not be looked up again.
        if self._seen[0] is not path:
            self.find(path)
        _, key, prev = self._seen
        self._seen = _NOTHING_SEEN
        if key is None:
            parent, _, name = path.rpartition(b"/")
            key = child_key(self._make_directories(parent, index), name)
        node: Node | None = None
        if kind in REMOVALS:
            if prev is not None and prev[4]:
                self._drop(prev[4])
        elif is_dir:
            node = self._make_directory(prev, change)
        else:
            node = _new(Node, (value, created, index, expiration_ns, 0))
        if expiration_ns or key[8]:
            self._note_path(key, path, expiration_ns)
        self.nodes[key] = node
        if self._by_directory is not None:
            self._by_directory.setdefault(key[:8], []).append(key)
        if prev is not None and (replaced := prev[0]) and replaced[_LARGE:_LARGE_END]:
            self.replaced += len(replaced)
        event = _new(Event, (change, prev, time_ns))
        self.events.append((event, encoded))
        self.index = index
        return event

    def _make_directory(self, prev: Node | None, change: Change) -> Node:
        if prev is not None and prev.dir_id:
            # An update of a directory changes its TTL; the node itself keeps its index.
            return prev._replace(
                created_index=change.created_index, expiration_ns=change.expiration_ns
            )
        return Node(
            None, change.created_index, change.index, change.expiration_ns, self._take_dir_id()
        )

    def _note_path(self, key: bytes, path: bytes, expiration_ns: int) -> None:
        """Keep what is needed beside the node to write its row, or that of its expiration."""
        if not self.paths:
            self.paths = {}
            self.is_plain = False
        self.paths[key] = path
        if expiration_ns and not 0 < self.due_ns <= expiration_ns:
            self.due_ns = expiration_ns

    def _drop(self, dir_id: int) -> None:
        self.dropped += (dir_id,)
        self.is_plain = False
        self._known = {b"": ROOT_PREFIX}
        self._directories = {}

    def _make_directories(self, path: bytes, index: int) -> bytes:
        """Make what is missing of a path of directories; return the `parent_prefix` of the last."""
        prefix = ROOT_PREFIX
        length = 0
        for name in path[1:].split(b"/"):
            key = child_key(prefix, name)
            node = self.node(key)
            length += 1 + len(name)
            if node is None:
                node = Node(None, index, index, 0, self._take_dir_id())
                self.nodes[key] = node
                if key[8]:
                    self._note_path(key, path[:length], 0)
                if self._by_directory is not None:
                    self._by_directory.setdefault(key[:8], []).append(key)
            prefix = parent_prefix(node.dir_id)
            self._remember(path, length, prefix)
        return prefix

    def _take_dir_id(self) -> int:
        dir_id = self.base.next_dir_id
        self.base = self.base._replace(next_dir_id=dir_id + 1)
        return dir_id

    def end_batch(self) -> None:
        """Note that a batch ends here: what the history is too short for is forgotten now."""
        base = self.base
        oldest = self.index - base.history_limit + 1
        if oldest > base.oldest_event:
            self.base = base._replace(oldest_event=oldest)
        if len(self.events) > _LATE_MAX:
            kept = max(self.index - self.base.oldest_event + 1, 0)
            if len(self.events) > 2 * kept:
                del self.events[: len(self.events) - kept]

    def end(self) -> None:
        """Drop it: nothing of it has happened, but for what it has learned."""
        if not self.nodes:
            self._state.due_ns = self.due_ns

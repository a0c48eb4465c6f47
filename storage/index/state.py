"""The committed state, ahead of the index in memory.

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
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import lmdb

from kvd.storage.format.applied import Applied
from kvd.storage.format.document import encode_entry, entry_key
from kvd.storage.format.event import Event
from kvd.storage.format.frame import Position
from kvd.storage.format.node import (
    ROOT_PREFIX,
    Node,
    decode_node,
    seal_node,
)
from kvd.storage.format.records import Entry
from kvd.storage.format.sums import Scanned
from kvd.storage.index.batch import Batch
from kvd.storage.index.environment import Index, reach_commit
from kvd.storage.index.errors import BROKEN, IndexRefused
from kvd.storage.index.flush import Flush, History, LateEvent
from kvd.storage.index.index_view import IndexView, Late, Transaction
from kvd.storage.index.view import CACHED_PATHS_MAX, Passed, View, forget_directories

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

_new = tuple.__new__


class Unknown:
    """Stands for a node that is not in memory."""


UNKNOWN = Unknown()
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
        self.directories = {b"": ROOT_PREFIX}
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
        node = self.nodes.get(key, UNKNOWN)
        return self.load(key) if node is UNKNOWN else node  # type: ignore[return-value]

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

    def merge(self, pending: Batch, position: Position) -> None:
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

    def _merge_rest(self, pending: Batch) -> None:
        self._paths.update(pending.paths)
        if pending.dropped:
            self._dropped += pending.dropped
            self.has_garbage = True
            forget_directories(self.directories)
        self.directories.update(pending.directories)
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

"""The committed state, ahead of the index in memory.

    log (durable)  ->  State, in memory (visible)  ->  LMDB (some hundred changes later)

Invariants:

- The index is never ahead of the log, and may be behind it: a start applies the rest again.
- A node that `State.nodes` holds is right; what it does not hold stands in the index.
- Once a batch is durable, nothing can fail: merging it is a few updates of dicts. Only `flush`
  meets a full disk or a full map, and may be called again until it succeeds.
- Single nodes are looked up in memory, then in the index. What scans the index (children,
  expirations, documents) flushes first. While the index refuses that, a scan is shown the rows that
  are late among those of the index.
- Nodes are held by the keys of their rows. A removed directory therefore needs no pass over what
  is below it: its id is never given again, so nothing finds it.
- What is too much for the loop is flushed on another thread. Until that has ended nothing is
  merged, all of it stays in memory, and what scans is shown it as above.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import lmdb

from kvd.storage.format.applied import Applied
from kvd.storage.format.document import document_key
from kvd.storage.format.event import Event
from kvd.storage.format.frame import Position
from kvd.storage.format.node import ROOT_PREFIX, Node, decode_node
from kvd.storage.format.records import Document
from kvd.storage.index.batch import Batch
from kvd.storage.index.environment import Index
from kvd.storage.index.errors import BROKEN, IndexRefused
from kvd.storage.index.flushing import Committed, IndexWriter, Written
from kvd.storage.index.index_view import IndexView, Late
from kvd.storage.index.unflushed import (
    BEHIND_FACTOR,
    FLUSH_BYTES,
    FLUSH_NODES,
    FLUSH_RECORDS,
    HEAVY_BYTES,
    HEAVY_NODES,
    Unflushed,
)
from kvd.storage.index.view import CACHED_PATHS_MAX, Passed, View, forget_directories

# A row of 10 MiB takes 27 ms to load: it is copied twice, and its checksum is computed.
_LARGE_ROW_BYTES = 256 << 10

# Written nodes that are kept for the next write of them: checked after each flush.
_KEPT_NODES_MAX = 8192
_KEPT_BYTES_MAX = 16 << 20

_new = tuple.__new__


class Unknown:
    """The value of a node that is not in memory."""


UNKNOWN = Unknown()


class State(View):
    """The committed state. Belongs to one thread, but for `write_flush`.

    Attributes:
        applied: How far the log has been applied: what readers see.
        stored: How far the index says it has been.
        writer: What flushes go through.
        nodes: Nodes by their keys, None for one that is there no more.
        due_ns: No node ends before that; 0 where none ends at all.
        has_garbage: Whether removed directories may be left to be freed.
        unflushed: What is beyond the index.
        wants_flush: Whether enough is beyond the index to be worth a flush: see `flush_in_parts`.
        is_heavy: Whether that takes so much memory that a flush should not wait.
        refused: What the index said when it was to be flushed last, None where it took it.
        is_flushing: Whether a flush is under way on another thread.
        loaded_bytes: The bytes of all large rows that were loaded so far.
    """

    def __init__(self, index: Index) -> None:
        """Raises CorruptIndex if the index is damaged, or of an older version."""
        self._env = index.env
        self._tables = index.tables
        self._table = index.tables[b"nodes"]
        self.applied = self.stored = index.applied()
        self.writer = IndexWriter(index)
        self.nodes: dict[bytes, Node | None] = {}
        self.directories = {b"": ROOT_PREFIX}
        self.refused: lmdb.Error | None = None
        self.is_flushing = False
        self.loaded_bytes = 0
        self._large_key, self._large = b"", cast("Node | None", None)
        self._written: Written | None = None
        self._view: IndexView | None = None
        self._kept_bytes, self.flush_parts = 0, 1
        self._flushed_all()
        view = self._index_view()
        self._history_bytes_max = view.history_bytes_max()
        self.due_ns = view.first_due_ns() or 0
        self.has_garbage = view.has_garbage()

    def _flushed_all(self) -> None:
        self.unflushed = Unflushed()
        self.flush_in_parts(self.flush_parts)
        self.wants_flush = self.is_heavy = False

    def flush_in_parts(self, parts: int) -> None:
        """Have `wants_flush` come after so small a part of `FLUSH_RECORDS`."""
        self.flush_parts, self._flush_pos = parts, self.stored.pos + FLUSH_RECORDS // parts

    # Reading.

    def node(self, key: bytes) -> Node | None:
        """Return the node under a key, or None."""
        node = self.nodes.get(key, UNKNOWN)
        return self.load(key) if node is UNKNOWN else node  # type: ignore[return-value]

    def load(self, key: bytes) -> Node | None:
        """Return the node under a key that is not in memory; the last large one is kept."""
        if key == self._large_key:
            return self._large
        data = self._index_view().get(key, db=self._table)
        node = None if data is None else decode_node(key, data)
        if data is not None and len(data) >= _LARGE_ROW_BYTES:
            self.loaded_bytes += len(data)
            self._large_key, self._large = key, node
        return node

    def forget_large(self) -> None:
        """Forget the large node that was loaded last."""
        self._large_key, self._large = b"", None

    def children(self, dir_id: int, first: bytes = b"") -> Iterator[tuple[bytes, Node]]:
        """Iterate over a directory's children, as `View.children`."""
        return self.flushed().children(dir_id, first)

    def names(self, dir_id: int, first: bytes, limit: int) -> list[bytes]:
        """Return the names of some children, as `View.names`."""
        return self.flushed().names(dir_id, first, limit)

    def has_children(self, dir_id: int) -> bool:
        """Return whether a directory has a child, hidden by its name or not."""
        return self.flushed().has_children(dir_id)

    def document(self, what: str, name: str) -> Document | None:
        """Return the document of a name, or None."""
        document = self.unflushed.changed_documents.get(document_key(what, name))
        if document is not None:
            return None if document.content is None else document
        return self._index_view().document(what, name)

    def documents(self, what: str = "") -> list[Document]:
        """Return all documents of one sort, or of all, by their names."""
        return self.flushed().documents(what)

    def each_document(self, what: str = "") -> Iterator[Document]:
        """Yield all documents of one sort, or of all, as `View.each_document`."""
        return self.flushed().each_document(what)

    def history_bytes_max(self) -> int:
        """Return how long the rows of the history may be together, 0 where that is not limited."""
        return self._history_bytes_max

    def events(self, first_index: int) -> Iterator[Event]:
        """Yield the events of the history from an index on, in order."""
        first = max(first_index, self.applied.oldest_event)
        late = self.unflushed
        if not late.events or first < late.first_index(0):
            yield from self._index_view().events(first)
        yield from late.events_from(first)

    def events_back(self, last_index: int, needles: Sequence[bytes]) -> Iterator[Passed]:
        """Yield the events of the history down from an index, as `IndexView.events_back`.

        The index may still hold some that are forgotten by now.
        """
        applied, late = self.applied, self.unflushed
        oldest, first_late = applied.oldest_event, late.first_index(applied.index)
        for event in late.events_back(min(last_index, applied.index)):
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
        if self.is_flushing:
            self._view = self._index_view().with_late(self.late_rows())
            return self._view
        if self.is_behind and self.refused is None:
            try:
                self.flush()
            except BROKEN:
                raise
            except IndexRefused:
                pass  # retried by the owner of the store (kvd/core/background/flusher.py)
        if self.is_behind:
            self._end_view()
            self._view = IndexView(self._env.begin(), self._tables, self.late_rows())
        return self._index_view()

    def late_rows(self) -> Late:
        """Return the rows that are not in the index as they are now."""
        return self.unflushed.rows(self.nodes, self.applied) if self.is_behind else {}

    def _index_view(self) -> IndexView:
        if self._view is None:
            self._view = IndexView(self.writer.read(), self._tables)
        return self._view

    def _end_view(self) -> None:
        if self._view is not None and not self.writer.is_bulk:
            self._view.end()
        self._view = None

    # Writing.

    def merge(self, pending: Batch, position: Position) -> None:
        """Make a batch visible that is durable up to a position. Nothing here can fail."""
        nodes, late = pending.nodes, self.unflushed
        self.nodes.update(nodes)
        late.dirty.update(nodes)
        late.events += pending.events
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
        late.size = size = late.size + pending.size + pending.replaced
        if pos >= self._flush_pos or size >= FLUSH_BYTES:
            self.wants_flush = True
            self.is_heavy = size >= HEAVY_BYTES or len(late.dirty) >= HEAVY_NODES

    def _merge_rest(self, pending: Batch) -> None:
        late = self.unflushed
        late.paths.update(pending.paths)
        if pending.dropped:
            late.dropped += pending.dropped
            self.has_garbage = True
            forget_directories(self.directories)
        self.directories.update(pending.directories)
        if len(self.directories) > CACHED_PATHS_MAX:
            forget_directories(self.directories)
        # Only batches that make directories change more nodes than they have records.
        if len(late.dirty) >= FLUSH_NODES:
            self.wants_flush, self.is_heavy = True, len(late.dirty) >= HEAVY_NODES
        late.changed_documents.update(pending.changed_documents)
        if pending.new_bytes_max is not None:
            late.new_bytes_max = self._history_bytes_max = pending.new_bytes_max

    @property
    def is_behind(self) -> bool:
        """Whether the index lacks something."""
        return self.applied is not self.stored or bool(self.unflushed.stale)

    @property
    def is_full(self) -> bool:
        """Whether so much is beyond the index that nothing more may be added before a flush."""
        return (
            self.applied.pos >= self._flush_pos + FLUSH_RECORDS * (BEHIND_FACTOR - 1)
            or self.unflushed.size >= FLUSH_BYTES * BEHIND_FACTOR
            or len(self.unflushed.dirty) >= FLUSH_NODES * BEHIND_FACTOR
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
        try:
            written = self._write(free)
        except IndexRefused as error:
            self.refused = error
            raise
        self._take(written)

    def begin_flush(self) -> None:
        """Begin a flush on another thread: nothing may be merged before `end_flush`."""
        # Readers go on with what the index held before: it fits what `applied` says.
        self._end_view()
        self._index_view()
        self.is_flushing = True

    def write_flush(self) -> None:
        """Write to the index all that it lacks. A call for another thread.

        Raises:
            IndexRefused, CorruptIndex, lmdb.Error: as for `flush`.
        """
        self._written = self._write(0)

    def end_flush(self, refused: lmdb.Error | None = None) -> None:
        """Take note of what `write_flush` has done, or of what the index said to it."""
        self.is_flushing = False
        self._end_view()
        written, self._written = self._written, None
        if written is not None:
            self._take(written)
        else:
            self.refused = refused

    def _write(self, free: int) -> Written:
        committed = Committed(
            *(self.unflushed, self.nodes, self.applied, self.stored),
            *(self._history_bytes_max, self.has_garbage),
        )
        return self.writer.write(committed, free)

    def _take(self, written: Written) -> None:
        self.refused = None
        self.forget_large()
        self.writer.take(written)
        self.has_garbage = written.has_garbage
        self.applied = self.stored = written.applied
        self._kept_bytes += self.unflushed.size
        is_much = self.is_heavy or self._kept_bytes > _KEPT_BYTES_MAX
        if is_much or len(self.nodes) > _KEPT_NODES_MAX:
            self.nodes.clear()
            self._kept_bytes = 0
        self._flushed_all()

    def begin_bulk(self) -> None:
        """Have flushes write to one transaction, until `end_bulk`; for a replay."""
        self._end_view()
        self.writer.begin_bulk()

    def end_bulk(self) -> None:
        """Flush, and commit that transaction.

        Raises:
            IndexRefused: nothing of it has happened, and the state cannot be used any more.
        """
        self.flush()
        self._view = None
        self.writer.commit_bulk()

    def end(self) -> None:
        """Let go of the index; what has not been flushed is lost to it."""
        self._end_view()
        self.writer.abort_bulk()

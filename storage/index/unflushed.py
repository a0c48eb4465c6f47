"""Changes of the committed state since the last flush.

A flush writes the rows as they are now: of a node that was changed ten times only the last one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvd.storage.format.applied import Applied
from kvd.storage.format.document import encode_document
from kvd.storage.format.event import Event
from kvd.storage.format.node import Node, seal_node
from kvd.storage.format.records import Document
from kvd.storage.index.flush import Flush
from kvd.storage.index.history import LateEvent
from kvd.storage.index.index_view import Late

FLUSH_RECORDS = 512
"""So many records beyond the index are worth a flush."""
FLUSH_BYTES = 1 << 20
"""As above, bytes of them and of what they replaced."""
FLUSH_NODES = 2048
"""As above, nodes that they changed: one record makes thousands of directories."""
BEHIND_FACTOR = 4
"""While the index refuses to take more, batches wait once so many times as much is beyond it."""

# So many bytes, or nodes, are in memory no longer than for a batch, and are too much for the loop:
# to flush a value of 10 MiB takes 90 ms. It is so much that batches wait for it.
HEAVY_BYTES = FLUSH_BYTES * BEHIND_FACTOR
HEAVY_NODES = FLUSH_NODES * BEHIND_FACTOR
_Nodes = Mapping[bytes, Node | None]


class Unflushed:
    """The changes that the next flush writes; replaced by an empty one behind it.

    Attributes:
        size: The bytes of its records, and of the large values that they replaced.
        dirty: The keys of the changed nodes, which `State.nodes` holds.
        paths: The paths of those that expire, and of those whose keys do not hold the whole name.
        events: The events, in order; they may begin with one that the history does not hold.
        dropped: The ids of removed directories.
        changed_documents: The changed documents, by the keys of their rows.
        stale: The keys of rows of `ttl` to be deleted, because they refer to no node.
        new_bytes_max: The new limit of the history's length, or None.
    """

    def __init__(self) -> None:
        self.size = 0
        self.dirty: set[bytes] = set()
        self.paths: dict[bytes, bytes] = {}
        self.events: list[LateEvent] = []
        self.dropped: list[int] = []
        self.changed_documents: dict[bytes, Document] = {}
        self.stale: set[bytes] = set()
        self.new_bytes_max: int | None = None
        self._rows: tuple[Applied, Late] | None = None

    def rows(self, nodes: _Nodes, applied: Applied) -> Late:
        """Return the rows that the index does not hold as they are now."""
        # There may be many scans while the index refuses a flush: one result for each state.
        if self._rows is None or self._rows[0] is not applied:
            late_nodes: dict[bytes, bytes | None] = {}
            for key in self.dirty:
                node = nodes[key]
                path = self.paths.get(key, b"/" + key[9:])
                name = path.rpartition(b"/")[2]
                late_nodes[key] = None if node is None else seal_node(key, name, node)[1]
            documents = {
                key: None if document.content is None else encode_document(key, document)
                for key, document in self.changed_documents.items()
            }
            self._rows = applied, {b"nodes": late_nodes, b"entries": documents}
        return self._rows[1]

    def first_index(self, last: int) -> int:
        """Return the index of its first event; the one behind `last` if it has none."""
        return self.events[0][0].change.index if self.events else last + 1

    def events_from(self, first: int) -> Iterator[Event]:
        """Yield its events from an index on."""
        if self.events:
            begin = max(first - self.events[0][0].change.index, 0)
            for event, _ in self.events[begin:]:
                yield event

    def events_back(self, last: int) -> Iterator[Event]:
        """Yield its events down from an index."""
        for place in range(last - self.first_index(last), -1, -1):
            yield self.events[place][0]

    def write(self, flush: Flush, nodes: _Nodes) -> None:
        """Write all but the events."""
        if self.dirty:
            flush.write_nodes(nodes, self.dirty, self.paths)
        if self.dropped:
            flush.drop(self.dropped)
        for row_key in self.stale:
            flush.delete_expiration(row_key)
        if self.changed_documents:
            flush.write_documents(self.changed_documents.values())
        if self.new_bytes_max is not None:
            flush.set_history_bytes_max(self.new_bytes_max)

"""The state as the commands of one batch see it: the batch over the committed state.

Nothing of it is visible until `State.merge`, and nothing has to be undone: it is dropped.
`apply` depends on the state and the record only: no clock, no setting of this process, no order
of a dict. Live, in replay and on a replica it is the same call.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from itertools import islice

from kvd.storage.format.applied import HISTORY_BYTES_MAX, HISTORY_LIMIT
from kvd.storage.format.document import document_key
from kvd.storage.format.event import Event
from kvd.storage.format.expiration import decode_path, expiration_key, expiration_of
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
)
from kvd.storage.format.records import (
    REMOVALS,
    Change,
    ClockOffset,
    Document,
    LoggedSetting,
    Record,
    Term,
)
from kvd.storage.index.batch import Batch
from kvd.storage.index.flush import READ_BYTES_MAX
from kvd.storage.index.history import LateEvent
from kvd.storage.index.state import UNKNOWN, State
from kvd.storage.index.view import Nodes

# More events are dropped if the history would forget them before they are written.
_LATE_MAX = 4000
# A replaced value is counted if it has a byte here: a slice costs less than a call of `len`.
_LARGE, _LARGE_END = 1024, 1025

_new = tuple.__new__

_Seen = tuple[bytes, bytes | None, Node | None]
"""The last path looked up: its key, None if its directory does not exist; and its node."""
_NOTHING_SEEN: _Seen = (b"", None, None)


class Pending(Batch, Nodes):
    """One batch over the committed state, invisible until it is merged."""

    _seen = _NOTHING_SEEN
    _by_directory: dict[bytes, list[bytes]] | None = None
    """The keys in `nodes` by directory; made when first needed."""

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
        node = self.nodes.get(key, UNKNOWN)
        if node is UNKNOWN:
            node = self._kept.get(key, UNKNOWN)
            if node is UNKNOWN:
                node = self._state.load(key)
        self._seen = (path, key, node)  # type: ignore[assignment]
        return node  # type: ignore[return-value]

    def node(self, key: bytes) -> Node | None:
        """Return the node under a key, or None."""
        node = self.nodes.get(key, UNKNOWN)
        if node is UNKNOWN:
            node = self._kept.get(key, UNKNOWN)
            if node is UNKNOWN:
                return self._state.load(key)
        return node  # type: ignore[return-value]

    def _directory(self, path: bytes) -> bytes | None:
        return self._known.get(path) or self.directories.get(path) or self._walk(path)

    def _remember(self, path: bytes, length: int, prefix: bytes) -> None:
        if not self.directories:
            self.directories = {b"": ROOT_PREFIX}
            self.is_plain = False
        super()._remember(path, length, prefix)

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

    @property
    def loaded_bytes(self) -> int:
        """The bytes of all large rows that the state has loaded so far."""
        return self._state.loaded_bytes

    def document(self, what: str, name: str) -> Document | None:
        """Return the document of a name, or None."""
        document = self.changed_documents.get(document_key(what, name))
        if document is not None:
            return None if document.content is None else document
        return self._state.document(what, name)

    def documents(self, what: str = "") -> list[Document]:
        """Return all documents of one sort, or of all, by their names."""
        found = {
            (document.what, document.name): document for document in self._state.documents(what)
        }
        for document in self.changed_documents.values():
            if not what or document.what == what:
                found[document.what, document.name] = document
        return [found[name] for name in sorted(found) if found[name].content is not None]

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
        unflushed = state.unflushed
        late = {key: state.nodes[key] for key in unflushed.dirty} | self.nodes
        ours = sorted((node[3], key) for key, node in late.items() if node is not None and node[3])
        size = 0
        rows = (
            (expiration_of(row_key), row_key[8:], row)
            for row_key, row in stored
            if row_key[8:] not in late and row_key not in unflushed.stale
        )
        met = merge(rows, ((*born, None) for born in ours))
        for count, (expiration_ns, key, row) in enumerate(met):
            if expiration_ns > now_ns or count >= limit or size > READ_BYTES_MAX:
                return due, expiration_ns
            row_key = expiration_key(expiration_ns, key)
            path = self._late_path(key) if row is None else decode_path(row_key, row)
            node = self.reached(path, key, expiration_ns)
            if node is not None:
                due.append((path, node))
                size += len(path) + len(node.value or b"")
            elif row is not None and state.reached(path, key, expiration_ns) is None:
                unflushed.stale.add(row_key)
        return due, 0

    def _late_path(self, key: bytes) -> bytes:
        path = self.paths.get(key)
        return self._state.unflushed.paths[key] if path is None else path

    # Writing.

    def apply(self, record: Record, time_ns: int, encoded: bytes | None = None) -> Event | None:
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
        elif isinstance(record, Document):
            if not self.changed_documents:
                self.changed_documents = {}
            self.changed_documents[document_key(record.what, record.name)] = record
        elif isinstance(record, ClockOffset):
            self.base = self.base._replace(clock_offset_ns=record.offset_ns)
        elif isinstance(record, LoggedSetting):
            self._set(record)
        return None

    def _set(self, setting: LoggedSetting) -> None:
        # The events so far are trimmed by the limits under which they were made.
        self._state.flushed()
        self.end_batch()
        if setting.name == HISTORY_LIMIT:
            self.base = self.base._replace(history_limit=setting.value)
        elif setting.name == HISTORY_BYTES_MAX:
            self.new_bytes_max = setting.value

    def change(self, change: Change, time_ns: int, encoded: bytes | None = None) -> Event:
        """As `apply`, for a change."""
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
        """Keep the path, which is needed to write the node's row or that of its expiration."""
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
        self.directories = {}

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

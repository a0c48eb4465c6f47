"""A walk through what is below a directory, in slices between which the state may change.

The order is that of a listing, each directory before what is below it. No transaction is held from
one slice to the next: the walk goes on behind the name that it has come to. What is there all the
time is visited once; what has been removed meanwhile, with all that was below it, is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple, Protocol

from kvd.handlers.extras.reading.listing import HIDDEN, Nodes, shown_children
from kvd.storage.format.node import Node


class Tree(Nodes, Protocol):
    """A state whose nodes are found by their paths, too."""

    def find(self, path: bytes) -> Node | None:
        """Return the node at a cleaned path, or None."""


class State(NamedTuple):
    """The committed state, for one slice: all its rows, and what is there of them at `now_ns`."""

    rows: Tree
    nodes: Tree
    now_ns: int


Batch = tuple[bytes, list[tuple[bytes, Node]]]
"""What the paths of some nodes begin with; their names, and they themselves."""

_BATCH_NODES_MAX = 32
LARGE_BYTES = 64 << 10
"""A value that is larger ends its batch."""


class _Level:
    """A directory on the way; `dir_id` is None until it has been opened."""

    __slots__ = ("children", "dir_id", "last", "prefix_bytes")

    def __init__(self, prefix_bytes: int, dir_id: int | None) -> None:
        self.prefix_bytes = prefix_bytes
        self.dir_id = dir_id
        self.last: bytes | None = None
        self.children: Iterator[tuple[bytes, Node]] | None = None


class Walk:
    """The nodes below a key: its children, or all.

    Args:
        key: the directory.
        recursive: whether to go down.
        hidden: whether hidden nodes are visited, too.
        prefix: what the names of the key's children begin with.
        after: the names that lead to the node behind which it begins.
    """

    def __init__(
        self,
        key: bytes,
        *,
        recursive: bool,
        hidden: bool,
        prefix: bytes = b"",
        after: Sequence[bytes] = (),
    ) -> None:
        self._recursive = recursive
        self._hidden = hidden
        self._first_prefix = prefix
        # What the paths of the present level's nodes begin with. Levels do not hold theirs: of a
        # thousand levels these would take a thousand times as much.
        self._prefix = key if key == b"/" else key + b"/"
        self._levels = [_Level(len(self._prefix), None)]
        for name in after:
            self._levels[-1].last = name
            if not recursive or (name[:1] == HIDDEN and not hidden):
                break
            self._enter(name, None)

    def go_on(self, state: State) -> Iterator[Batch]:
        """Yield what comes next, some at a time, which may be none.

        To end a slice, drop the iterator and call `pause`.
        """
        levels = self._levels
        may_have_ended = state.nodes is not state.rows
        while levels:
            level, prefix = levels[-1], self._prefix
            if level.children is None and not self._open(level, state):
                self._leave()
                continue
            assert level.children is not None
            batch = self._batch(level.children)
            if not batch:
                self._leave()
                continue
            level.last, node = batch[-1]
            if may_have_ended:
                batch = [child for child in batch if not 0 < child[1].expiration_ns <= state.now_ns]
            if node.dir_id and self._recursive and batch and batch[-1][1] is node:
                self._enter(level.last, node.dir_id)
            yield prefix, batch

    def _batch(self, children: Iterator[tuple[bytes, Node]]) -> list[tuple[bytes, Node]]:
        """Take some children, up to a directory that is entered next, or a large value."""
        batch: list[tuple[bytes, Node]] = []
        for child in children:
            batch.append(child)
            value = child[1].value
            is_last = self._recursive if value is None else len(value) > LARGE_BYTES
            if is_last or len(batch) == _BATCH_NODES_MAX:
                break
        return batch

    def pause(self) -> None:
        """End a slice."""
        for level in self._levels:
            level.children = None

    def _enter(self, name: bytes, dir_id: int | None) -> None:
        self._prefix += name + b"/"
        self._levels.append(_Level(len(self._prefix), dir_id))

    def _leave(self) -> None:
        levels = self._levels
        levels.pop()
        self._prefix = self._prefix[: levels[-1].prefix_bytes] if levels else b""

    def _open(self, level: _Level, state: State) -> bool:
        """Go on with a directory, if that is still there."""
        node = state.nodes.find(self._prefix[:-1] or b"/")
        # Ids are never given twice: the same one is the same directory.
        if node is None or not node.dir_id or level.dir_id not in (None, node.dir_id):
            return False
        level.dir_id = node.dir_id
        prefix = self._first_prefix if level is self._levels[0] else b""
        first = prefix if level.last is None else max(prefix, level.last + b"\0")
        children = shown_children(state.rows, node.dir_id, first, hidden=self._hidden)
        if prefix:
            children = takewhile(lambda child: child[0].startswith(prefix), children)
        level.children = children
        return True

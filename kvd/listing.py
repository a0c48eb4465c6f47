"""Answers to reads of a directory or of a whole subtree, as JSON in slices, and those kept.

A large subtree takes long, so it is rendered a slice at a time: whoever renders it decides what
happens in between. There is no recursion, and the text is put together once, so a tree of 2,000
levels costs what its bytes cost.

Clients of a configuration store read the same directories again and again, and seldom find them
changed. So an answer is kept until something below its directory changes, unless it shows a TTL,
which changes by itself. What is kept depends on the committed state alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Iterator
from typing import NamedTuple

from kvd.response import FILE, directory_end, directory_start, escape, is_plain, node_object
from storage.node import Node
from storage.tree import View

NODES_PER_SLICE = 2500
"""About five milliseconds of rendering."""

_FIRST = b',"nodes":['
_FIRST_FILE, _NEXT_FILE = _FIRST + FILE, b"," + FILE

_KEPT_BYTES_MAX = 32 << 20
_KEPT_BODY_BYTES_MAX = 4 << 20


class Listing(NamedTuple):
    """A body in pieces; `lasting` if it stays the same until something in it is changed."""

    pieces: list[bytes]
    lasting: bool


class Listings:
    """The bodies that are kept, by directory; those longest unread go first."""

    def __init__(self) -> None:
        self._bodies: OrderedDict[tuple[bytes, bool], bytes] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        """Return how many are kept."""
        return len(self._bodies)

    def find(self, key: bytes, *, recursive: bool) -> bytes | None:
        """Return the body that answers a read of a directory, if it is kept."""
        body = self._bodies.get((key, recursive))
        if body is not None:
            self._bodies.move_to_end((key, recursive))
        return body

    def keep(self, key: bytes, pieces: list[bytes], *, recursive: bool) -> None:
        """Keep a body of the committed state, unless it is too large."""
        if sum(map(len, pieces)) > _KEPT_BODY_BYTES_MAX:
            return
        body = b"".join(pieces)
        self._drop((key, recursive))
        self._bodies[key, recursive] = body
        self._bytes += len(body)
        while self._bytes > _KEPT_BYTES_MAX:
            self._drop(next(iter(self._bodies)))

    def changed(self, key: bytes, *, removed: bool) -> None:
        """Drop what a change of a node shows in: its directories and, if it was removed, itself."""
        if removed:
            below = key + b"/"
            for kept in [kept for kept in self._bodies if kept[0].startswith(below)]:
                self._drop(kept)
        path = key
        bodies = self._bodies
        while True:
            if (path, False) in bodies:
                self._drop((path, False))
            if (path, True) in bodies:
                self._drop((path, True))
            if path == b"/":
                return
            path = path.rpartition(b"/")[0] or b"/"

    def _drop(self, kept: tuple[bytes, bool]) -> None:
        body = self._bodies.pop(kept, None)
        if body is not None:
            self._bytes -= len(body)


def render(
    view: View, key: bytes, node: Node, now_ns: int, *, recursive: bool
) -> Generator[None, None, Listing]:
    """Return the body of a successful read, pausing after every `NODES_PER_SLICE` nodes.

    Of a directory all children are shown that are not hidden, sorted by name; with `recursive` also
    theirs. `now_ns` is what a shown `ttl` counts from.
    """
    key = escape(key)
    parts = [b'{"action":"get","node":', directory_start(key, node, now_ns)]
    level = _Level(key, node, view)
    above: list[_Level] = []
    pieces: list[bytes] = []
    rendered = 0
    lasting = not node.expiration_ns
    while True:
        prefix = level.prefix
        for name, child in level.children:
            rendered += 1
            if rendered % NODES_PER_SLICE == 0:
                pieces.append(b"".join(parts))
                parts.clear()
                yield
            if name[:1] == b"_":
                continue
            value, created, modified, expiration_ns, dir_id = child
            if value is not None and not expiration_ns and is_plain(name + value):
                # Most children are of this kind, and take half as long this way.
                form = _NEXT_FILE if level.shown else _FIRST_FILE
                level.shown = True
                parts.append(form % (prefix + name, value, modified, created))
                continue
            parts.append(b"," if level.shown else _FIRST)
            level.shown = True
            if expiration_ns:
                lasting = False
            path = prefix + escape(name)
            if not dir_id or not recursive:
                parts.append(node_object(path, child, now_ns))
                continue
            parts.append(directory_start(path, child, now_ns))
            above.append(level)
            level = _Level(path, child, view)
            break
        else:
            parts.append(directory_end(level.node, has_nodes=level.shown))
            if not above:
                parts.append(b"}\n")
                return Listing([*pieces, b"".join(parts)], lasting)
            level = above.pop()


class _Level:
    """A directory that is being listed."""

    __slots__ = ("children", "node", "prefix", "shown")

    def __init__(self, key: bytes, node: Node, view: View) -> None:
        self.node = node
        self.prefix = key if key == b"/" else key + b"/"
        self.children: Iterator[tuple[bytes, Node]] = view.children(node.dir_id)
        self.shown = False

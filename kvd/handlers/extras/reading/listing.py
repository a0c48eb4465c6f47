"""Listings that extras of reads ask for: pages, some levels only, hidden nodes, values in shapes.

They are rendered in slices, as ordinary ones are (handlers/keys/listing.py), but in shorter ones,
and nothing of them is kept. A page ends with a header line that names the child behind which the
next one begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from typing import Protocol
from urllib.parse import quote_from_bytes

from kvd.handlers.extras.reading.nodes import node_slices, node_text
from kvd.handlers.keys.listing import Listing, Slices
from kvd.json_text import escape
from kvd.storage.format.node import Node
from kvd.v2.extras.parameters import ReadExtras
from kvd.v2.response import directory_end, directory_start

NODES_PER_SLICE = 100
"""About a quarter of a millisecond of rendering."""

# What is longer counts as more nodes than one.
_BYTES_PER_NODE = 256
HIDDEN = b"_"
"""What the names of hidden nodes begin with."""
# Names that do not begin so come before those that do, and from here on.
BEHIND_HIDDEN = b"`"
_START = b'{"action":"get","node":'
_END = b"}\n"
_FIRST = b',"nodes":['


class Nodes(Protocol):
    """A state whose directories are listed."""

    def children(self, dir_id: int, first: bytes = b"") -> Iterator[tuple[bytes, Node]]:
        """Iterate over a directory's children from a name on, in the byte order of their names."""

    def names(self, dir_id: int, first: bytes, limit: int) -> list[bytes]:
        """Return the names of some of them, up to so many, without looking at their nodes."""


class _Level:
    """A directory that is being listed."""

    __slots__ = ("children", "lead", "node", "prefix_bytes", "weight")

    def __init__(self, prefix: bytes, node: Node, children: Iterator[tuple[bytes, Node]]) -> None:
        self.node = node
        self.prefix_bytes = len(prefix)
        self.weight = 1 + len(prefix) // _BYTES_PER_NODE
        self.children = children
        self.lead = _FIRST


def render(
    view: Nodes,
    key: bytes,
    node: Node,
    extras: ReadExtras,
    *,
    recursive: bool,
    now_ns: int,
    offset_ns: int = 0,
) -> Slices:
    """Yield the body of a read of a directory in slices, and return the last one.

    The arguments are those of `kvd.handlers.keys.listing.render`, and the extras.
    What has ended by `now_ns` is left out, here and not by the view, so that there are pauses among
    many of these.
    """
    times = now_ns, offset_ns
    return _Rendering(view, key, node, extras, times, recursive=recursive).slices()


class _Rendering:
    """A listing that is being rendered: the level that it is in, and those above.

    There is one loop over all levels, as in `kvd.handlers.keys.listing`.
    """

    def __init__(
        self,
        view: Nodes,
        key: bytes,
        node: Node,
        extras: ReadExtras,
        times: tuple[int, int],
        *,
        recursive: bool,
    ) -> None:
        self._view, self._extras = view, extras
        self._now_ns, self._offset_ns = times
        self._deepest = extras.levels(recursive=recursive)
        path = escape(key)
        self._prefix = path if path == b"/" else path + b"/"
        children = chosen_children(view, node.dir_id, extras)
        self._level: _Level | None = _Level(self._prefix, node, children)
        self._above: list[_Level] = []
        self._texts = [_START, directory_start(path, node, *times)]
        # How much more the slice takes.
        self._left = NODES_PER_SLICE
        self._lines = self._last = b""
        self._shown = 0

    def slices(self) -> Slices:
        """As `render`."""
        while self._level is not None:
            large = self._show_children(self._level)
            if large is not None:
                yield [taken(self._texts)]
                yield from node_slices(*large, self._extras.shape, self._now_ns, self._offset_ns)
            elif self._left <= 0:
                self._left = NODES_PER_SLICE
                yield [taken(self._texts)]
        self._texts.append(_END)
        return Listing([taken(self._texts)], None, self._lines)

    def _show_children(self, level: _Level) -> tuple[bytes, Node] | None:
        """Render children: up to the end of the slice or of the level, or to one to descend to.

        Returns:
            Path and node of the last one, if its value is large: it is not rendered.
        """
        limit, now_ns = self._extras.limit, self._now_ns
        for name, child in level.children:
            self._left -= level.weight
            if 0 < child.expiration_ns <= now_ns:
                pass
            elif self._shown == limit:
                # Only a listing of one level has a limit.
                self._lines = next_line(self._last)
                break
            elif (large := self._show(level, name, child)) or self._level is not level:
                return large
            if self._left <= 0:
                return None
        self._ascend(level)
        return None

    def _show(self, level: _Level, name: bytes, child: Node) -> tuple[bytes, Node] | None:
        """Render a child, as `_show_children`; descend to it if its children are shown, too."""
        self._shown, self._last = self._shown + 1, name
        self._texts.append(level.lead)
        level.lead = b","
        path = self._prefix + escape(name)
        if child.dir_id and (self._deepest is None or len(self._above) + 1 < self._deepest):
            self._descend(level, path, child)
            return None
        text = node_text(path, child, self._extras.shape, self._now_ns, self._offset_ns)
        if text is None:
            return path, child
        self._texts.append(text)
        self._left -= len(text) // _BYTES_PER_NODE
        return None

    def _descend(self, level: _Level, path: bytes, child: Node) -> None:
        self._texts.append(directory_start(path, child, self._now_ns, self._offset_ns))
        self._above.append(level)
        self._prefix = path + b"/"
        children = shown_children(self._view, child.dir_id, hidden=self._extras.hidden)
        self._level = _Level(self._prefix, child, children)

    def _ascend(self, level: _Level) -> None:
        self._texts.append(directory_end(level.node, has_nodes=level.lead == b","))
        self._level = above = self._above.pop() if self._above else None
        self._prefix = self._prefix[: above.prefix_bytes] if above else b""


def chosen_children(view: Nodes, dir_id: int, extras: ReadExtras) -> Iterator[tuple[bytes, Node]]:
    """Iterate over the children of a directory that extras choose, but for their limit."""
    prefix = first = extras.prefix
    if extras.after is not None:
        first = max(prefix, extras.after + b"\0")
    children = shown_children(view, dir_id, first, hidden=extras.hidden)
    return takewhile(lambda child: child[0].startswith(prefix), children) if prefix else children


def shown_children(
    view: Nodes, dir_id: int, first: bytes = b"", *, hidden: bool
) -> Iterator[tuple[bytes, Node]]:
    """Iterate over the children from a name on; without `hidden`, those that are not hidden.

    The others are not looked at, however many there are.
    """
    for child in view.children(dir_id, first):
        if not hidden and child[0][:1] == HIDDEN:
            break
        yield child
    else:
        return
    yield from view.children(dir_id, max(first, BEHIND_HIDDEN))


def next_line(place: bytes) -> bytes:
    """Return the header line that names the place behind which the next page begins."""
    return b"X-Kvd-Next: %b\r\n" % quote_from_bytes(place, safe="/").encode()


def taken(texts: list[bytes]) -> bytes:
    """Take what has been rendered, as one piece."""
    piece = b"".join(texts)
    texts.clear()
    return piece

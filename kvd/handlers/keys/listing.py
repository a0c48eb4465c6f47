"""Listings: the response to a read of a directory or of a whole subtree, as JSON in slices.

A large subtree takes long, so it is rendered by a generator: its caller decides what happens
between two slices. There is no recursion, and the text is put together once, so a tree of 2,000
levels costs what its bytes cost.

The JSON of each child is kept in `Directory`, so that a cached response can be brought up to date
instead of being rendered again (listing_cache.py).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from time import monotonic
from typing import NamedTuple

from kvd.json_text import Parts, escape, is_plain, joined
from kvd.storage.format.node import Node
from kvd.storage.index.view import View
from kvd.v2.response import FILE, directory_end, directory_start, node_parts

NODES_PER_SLICE = 250
"""About half a millisecond of rendering."""

# What a directory counts for more whose children are shown, too.
_DESCENT = 2

# What is longer counts as more nodes than one; a slice ends with each large value, too.
_BYTES_PER_NODE = 256
_SHORT_BYTES_MAX = 1024
_SHORT_END = _SHORT_BYTES_MAX + 1

KEPT_BODY_BYTES_MAX = 4 << 20
"""Of a larger answer, or of one nested deeper, no parts are kept."""
KEPT_LEVELS_MAX = 100

_BODY_START = b'{"action":"get","node":'
_BODY_END = b"}\n"
_FIRST = b',"nodes":['


class Listing(NamedTuple):
    """The last pieces of a body, and its parts where it lasts: until something in it is changed.

    What shows a TTL does not last: it changes with time. `lines` are further header lines.
    """

    pieces: Parts
    parts: Directory | None
    lines: bytes = b""


Slices = Generator[Parts, None, Listing]


class Directory:
    """A directory that is listed: what its listing is put together from.

    Attributes:
        start: its JSON as far as its children.
        prefix: what the keys of its children begin with, escaped.
        shown: the children that are not hidden, in their order: name, raw, and JSON; or, where it
            is listed, too, its own parts.
    """

    __slots__ = ("_node", "_text", "prefix", "shown", "start")

    def __init__(self, key: bytes, node: Node, now_ns: int, offset_ns: int) -> None:
        self._node = node
        self._text: bytes | None = None
        self.start = directory_start(key, node, now_ns, offset_ns)
        self.prefix = key if key == b"/" else key + b"/"
        self.shown: list[tuple[bytes, bytes | Directory]] = []

    def end(self, *, has_nodes: bool) -> bytes:
        """Return what ends its JSON."""
        return directory_end(self._node, has_nodes=has_nodes)

    def body(self) -> bytes:
        """Return the body that shows it; only what was touched in it is joined again."""
        return b"".join((_BODY_START, *self._pieces(), _BODY_END))

    def touch(self) -> None:
        """Note that something in it has changed."""
        self._text = None

    def _pieces(self) -> tuple[bytes, ...]:
        if not self.shown:
            return self.start, self.end(has_nodes=False)
        nodes = [
            part if isinstance(part, bytes) else part._put_together() for _, part in self.shown
        ]
        return self.start, _FIRST, b",".join(nodes), self.end(has_nodes=True)

    def _put_together(self) -> bytes:
        if self._text is None:
            self._text = b"".join(self._pieces())
        return self._text


def render(
    view: View,
    key: bytes,
    node: Node,
    now_ns: int,
    offset_ns: int = 0,
    *,
    recursive: bool,
    ended_ns: int = 0,
) -> Slices:
    """Yield the body of a successful read in slices, and return the last one.

    Of a directory all children are shown that are not hidden, sorted by name; with `recursive` also
    theirs. `now_ns` is what a shown `ttl` counts from, `offset_ns` what a shown `expiration` is
    later than the store's. What has ended by `ended_ns` is not shown, but counts as what is hidden
    does: there may be many. Of slices that were yielded nothing is kept, unless the whole may be:
    paths are long where levels are many.
    """
    times = now_ns, offset_ns, ended_ns
    return _Rendering(view, key, node, times, recursive=recursive).slices()


class _Rendering:
    """A listing that is being rendered: the level that it is in, and those above.

    There is one loop over all levels, so no recursion, whatever the depth.
    """

    def __init__(
        self, view: View, key: bytes, node: Node, times: tuple[int, int, int], *, recursive: bool
    ) -> None:
        self._view, self._node = view, node
        self._now_ns, self._offset_ns, self._ended_ns = times
        self._recursive = recursive
        self._root = Directory(escape(key), node, self._now_ns, self._offset_ns)
        self._texts = [_BODY_START, self._root.start]
        self._prefix = self._root.prefix
        self._level: _Level | None = None
        self._above: list[_Level] = []
        # What the slice counts, and the bytes of those before it.
        self._rendered = self._size = 0
        self._lasting = not node.expiration_ns

    def slices(self) -> Slices:
        """As `render`: nothing is read before the first slice is taken."""
        self._level = _Level(self._node, self._view, self._prefix, self._root)
        while self._level is not None:
            large = self._show_children(self._level)
            if large:
                self._rendered = 0
                yield [_taken(self._texts), *large]
            elif self._rendered >= NODES_PER_SLICE:
                yield [self._taken_slice()]
        self._texts.append(_BODY_END)
        return Listing([_taken(self._texts)], self._root if self._lasting else None)

    def _taken_slice(self) -> bytes:
        self._rendered = 0
        piece = _taken(self._texts)
        self._size += len(piece)
        self._lasting = self._lasting and self._size <= KEPT_BODY_BYTES_MAX
        return piece

    def _show_children(self, level: _Level) -> Parts:
        """Render children: up to the end of the slice or of the level, or to one to descend to.

        Returns:
            What is left of the last one, where its value is large.
        """
        prefix, shown, texts, weight = self._prefix, level.shown, self._texts, level.weight
        ended_ns, rendered, lasting = self._ended_ns, self._rendered, self._lasting
        for name, child in level.children:
            rendered += weight
            value, created, modified, expiration_ns, _ = child
            if name[:1] == b"_":
                pass
            elif (
                value is not None
                and not expiration_ns
                and not (raw := name + value)[_SHORT_BYTES_MAX:_SHORT_END]
                and is_plain(raw)
            ):
                # Most are of this kind, and take half as long this way (measured).
                text = FILE % (prefix + name, value, modified, created)
                texts += (level.lead, text)
                level.lead = b","
                if lasting:
                    shown.append((name, text))
            elif not 0 < expiration_ns <= ended_ns:
                self._rendered = rendered
                if (large := self._show(level, name, child)) or self._level is not level:
                    return large
                rendered, lasting = self._rendered, self._lasting
            if rendered >= NODES_PER_SLICE:
                self._rendered = rendered
                return []
        self._rendered = rendered
        self._ascend(level)
        return []

    def _show(self, level: _Level, name: bytes, child: Node) -> Parts:
        """Render a child of any kind, as `_show_children`; descend to it if its are shown, too."""
        self._lasting = self._lasting and not child.expiration_ns
        path = self._prefix + escape(name)
        self._texts.append(level.lead)
        level.lead = b","
        if child.dir_id and self._recursive:
            self._descend(level, name, path, child)
            return []
        start, *rest = node_parts(path, child, self._now_ns, self._offset_ns)
        assert isinstance(start, bytes)
        self._texts.append(start)
        self._rendered += len(start) // _BYTES_PER_NODE
        if rest:
            self._lasting = False
        elif self._lasting:
            level.shown.append((name, start))
        return rest

    def _descend(self, level: _Level, name: bytes, path: bytes, child: Node) -> None:
        below = Directory(path, child, self._now_ns, self._offset_ns)
        self._texts.append(below.start)
        if self._lasting:
            level.shown.append((name, below))
        self._above.append(level)
        self._lasting = self._lasting and len(self._above) < KEPT_LEVELS_MAX
        self._prefix = path + b"/"
        self._rendered += _DESCENT
        self._level = _Level(child, self._view, self._prefix, below if self._lasting else None)

    def _ascend(self, level: _Level) -> None:
        self._texts.append(directory_end(level.node, has_nodes=level.lead == b","))
        self._level = above = self._above.pop() if self._above else None
        self._prefix = self._prefix[: above.prefix_bytes] if above else b""
        self._rendered += 1


def advance(slices: Slices, *, until: float) -> tuple[Parts, Listing | None]:
    """Return the next parts of a body, and the listing if they are the last.

    At least one slice, then as many as there are until a time (monotonic). A large value ends them.
    """
    parts: Parts = []
    try:
        while True:
            piece = next(slices)
            parts += piece
            if len(piece) > 1 or monotonic() >= until:
                return joined(parts), None
    except StopIteration as end:
        listing: Listing = end.value
        return joined([*parts, *listing.pieces]), listing


def _taken(texts: list[bytes]) -> bytes:
    piece = b"".join(texts)
    texts.clear()
    return piece


class _Level:
    """A directory that is being listed; `shown` is that of its parts, while they are kept."""

    __slots__ = ("children", "lead", "node", "prefix_bytes", "shown", "weight")

    def __init__(self, node: Node, view: View, prefix: bytes, directory: Directory | None) -> None:
        self.node = node
        self.prefix_bytes = len(prefix)
        self.weight = 1 + len(prefix) // _BYTES_PER_NODE
        self.shown = [] if directory is None else directory.shown
        self.children: Iterator[tuple[bytes, Node]] = view.children(node.dir_id)
        self.lead = _FIRST

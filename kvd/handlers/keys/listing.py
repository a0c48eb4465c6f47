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

    What shows a TTL does not last, it changes by itself. `lines` are further header lines.
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


# One loop over all levels, whose directories above are on a stack (`above`): there is no recursion,
# whatever the depth, and a call for each child would cost a tenth of the time (measured). The inner
# `for` goes through the children of one level; it breaks to descend, and its `else` is the end of a
# level, from which the loop ascends.
def render(  # noqa: C901, PLR0912, PLR0915 -- see above
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
    root = Directory(escape(key), node, now_ns, offset_ns)
    texts = [_BODY_START, root.start]
    prefix = root.prefix
    level: _Level | None = _Level(node, view, prefix, root)
    above: list[_Level] = []
    rendered = size = 0
    lasting = not node.expiration_ns
    while level:
        weight, shown = level.weight, level.shown
        for name, child in level.children:
            rendered += weight
            if rendered >= NODES_PER_SLICE:
                rendered = 0
                piece = _taken(texts)
                size += len(piece)
                lasting = lasting and size <= KEPT_BODY_BYTES_MAX
                yield [piece]
            if name[:1] == b"_":
                continue
            value, created, modified, expiration_ns, dir_id = child
            if (
                value is not None
                and not expiration_ns
                and not (raw := name + value)[_SHORT_BYTES_MAX:_SHORT_END]
                and is_plain(raw)
            ):
                # Most children are of this kind, and take half as long this way.
                text = FILE % (prefix + name, value, modified, created)
                texts += (level.lead, text)
                level.lead = b","
                if lasting:
                    shown.append((name, text))
                continue
            if 0 < expiration_ns <= ended_ns:
                continue
            lasting = lasting and not expiration_ns
            path = prefix + escape(name)
            texts.append(level.lead)
            level.lead = b","
            if dir_id and recursive:
                below = Directory(path, child, now_ns, offset_ns)
                texts.append(below.start)
                if lasting:
                    shown.append((name, below))
                above.append(level)
                lasting = lasting and len(above) < KEPT_LEVELS_MAX
                prefix = path + b"/"
                rendered += _DESCENT
                level = _Level(child, view, prefix, below if lasting else None)
                break
            start, *rest = node_parts(path, child, now_ns, offset_ns)
            assert isinstance(start, bytes)
            texts.append(start)
            rendered += len(start) // _BYTES_PER_NODE
            if rest:
                lasting = False
                rendered = 0
                yield [_taken(texts), *rest]
            elif lasting:
                shown.append((name, start))
        else:
            texts.append(directory_end(level.node, has_nodes=level.lead == b","))
            level = above.pop() if above else None
            prefix = prefix[: level.prefix_bytes] if level else b""
            rendered += 1
            if rendered >= NODES_PER_SLICE:
                rendered = 0
                piece = _taken(texts)
                size += len(piece)
                lasting = lasting and size <= KEPT_BODY_BYTES_MAX
                yield [piece]
    texts.append(_BODY_END)
    return Listing([_taken(texts)], root if lasting else None)


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

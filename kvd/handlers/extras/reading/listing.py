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


# One loop over all levels, as in `kvd.handlers.keys.listing`: the inner `for` breaks to descend,
# and its `else` is the end of a level, from which the loop ascends.
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
    shape, hidden, limit = extras.shape, extras.hidden, extras.limit
    deepest = extras.levels(recursive=recursive)
    path = escape(key)
    prefix = path if path == b"/" else path + b"/"
    level: _Level | None = _Level(prefix, node, chosen_children(view, node.dir_id, extras))
    above: list[_Level] = []
    texts = [_START, directory_start(path, node, now_ns, offset_ns)]
    left = NODES_PER_SLICE
    lines = last = b""
    shown = 0
    while level is not None:
        for name, child in level.children:
            left -= level.weight
            if left <= 0:
                left = NODES_PER_SLICE
                yield [taken(texts)]
            if 0 < child.expiration_ns <= now_ns:
                continue
            if shown == limit:
                # Only a listing of one level has a limit.
                lines = next_line(last)
                level.children = iter(())
                break
            shown, last = shown + 1, name
            texts.append(level.lead)
            level.lead = b","
            path = prefix + escape(name)
            if child.dir_id and (deepest is None or len(above) + 1 < deepest):
                texts.append(directory_start(path, child, now_ns, offset_ns))
                above.append(level)
                prefix = path + b"/"
                level = _Level(prefix, child, shown_children(view, child.dir_id, hidden=hidden))
                break
            text = node_text(path, child, shape, now_ns, offset_ns)
            if text is not None:
                texts.append(text)
                left -= len(text) // _BYTES_PER_NODE
            else:
                yield [taken(texts)]
                yield from node_slices(path, child, shape, now_ns, offset_ns)
        else:
            texts.append(directory_end(level.node, has_nodes=level.lead == b","))
            level = above.pop() if above else None
            prefix = prefix[: level.prefix_bytes] if level else b""
    texts.append(_END)
    return Listing([taken(texts)], None, lines)


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

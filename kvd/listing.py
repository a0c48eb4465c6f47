"""Answers to reads of a directory or of a whole subtree, as JSON in slices.

A large subtree takes long, so it is rendered a slice at a time: whoever renders it decides what
happens in between. There is no recursion, and the text is put together once, so a tree of 2,000
levels costs what its bytes cost.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

from kvd.response import directory_end, directory_start, escape, node_object
from storage.node import Node
from storage.tree import View

NODES_PER_SLICE = 2500
"""About five milliseconds of rendering."""


def render(
    view: View, key: bytes, node: Node, now_ns: int, *, recursive: bool
) -> Generator[None, None, list[bytes]]:
    """Return the body of a successful read in pieces, pausing after every `NODES_PER_SLICE` nodes.

    Of a directory all children are shown that are not hidden, sorted by name; with `recursive` also
    theirs. `now_ns` is what a shown `ttl` counts from.
    """
    key = escape(key)
    parts = [b'{"action":"get","node":', directory_start(key, node, now_ns)]
    level = _Level(key, node, view)
    above: list[_Level] = []
    pieces: list[bytes] = []
    rendered = 0
    while True:
        for name, child in level.children:
            rendered += 1
            if rendered % NODES_PER_SLICE == 0:
                pieces.append(b"".join(parts))
                parts.clear()
                yield
            if name.startswith(b"_"):
                continue
            parts.append(b"," if level.shown else b',"nodes":[')
            level.shown = True
            path = level.prefix + escape(name)
            if not child.dir_id or not recursive:
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
                return [*pieces, b"".join(parts)]
            level = above.pop()


class _Level:
    """A directory that is being listed."""

    __slots__ = ("children", "node", "prefix", "shown")

    def __init__(self, key: bytes, node: Node, view: View) -> None:
        self.node = node
        self.prefix = key if key == b"/" else key + b"/"
        self.children: Iterator[tuple[bytes, Node]] = view.children(node.dir_id)
        self.shown = False

"""The answer to a read of a directory or of a whole subtree, as JSON in slices.

A large subtree takes long, so it is rendered a slice at a time: whoever renders it decides what
happens in between. There is no recursion, and the text is put together once, so a tree of 2,000
levels costs what its bytes cost.

What is rendered of each child stays at hand in `Directory`, so that an answer can be kept and
brought up to date instead of being made anew (kept.py).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import NamedTuple

from kvd.response import FILE, directory_end, directory_start, escape, is_plain, node_object
from storage.node import Node
from storage.tree import View

NODES_PER_SLICE = 2500
"""About five milliseconds of rendering."""

KEPT_BODY_BYTES_MAX = 4 << 20
"""Of a larger answer, or of one nested deeper, no parts are kept."""
KEPT_LEVELS_MAX = 100

_BODY_START = b'{"action":"get","node":'
_BODY_END = b"}\n"
_FIRST = b',"nodes":['


class Listing(NamedTuple):
    """A body in pieces, and its parts where it lasts: until something in it is changed.

    What shows a TTL does not last, it changes by itself.
    """

    pieces: list[bytes]
    parts: Directory | None


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
        """Return the answer that shows it; what was touched in it is put together anew."""
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
    view: View, key: bytes, node: Node, now_ns: int, offset_ns: int = 0, *, recursive: bool
) -> Generator[None, None, Listing]:
    """Return the body of a successful read, pausing after every `NODES_PER_SLICE` nodes.

    Of a directory all children are shown that are not hidden, sorted by name; with `recursive` also
    theirs. `now_ns` is what a shown `ttl` counts from, `offset_ns` what a
    shown `expiration` is later than the store's.
    """
    root = Directory(escape(key), node, now_ns, offset_ns)
    texts = [_BODY_START, root.start]
    level = _Level(root, node, view)
    above: list[_Level] = []
    pieces: list[bytes] = []
    rendered = size = 0
    lasting = not node.expiration_ns
    while True:
        prefix, shown = level.prefix, level.shown
        for name, child in level.children:
            rendered += 1
            if rendered % NODES_PER_SLICE == 0:
                pieces.append(b"".join(texts))
                texts.clear()
                size += len(pieces[-1])
                lasting = lasting and size <= KEPT_BODY_BYTES_MAX
                yield
            if name[:1] == b"_":
                continue
            value, created, modified, expiration_ns, dir_id = child
            below = None
            if value is not None and not expiration_ns and is_plain(name + value):
                # Most children are of this kind, and take half as long this way.
                text = FILE % (prefix + name, value, modified, created)
            else:
                lasting = lasting and not expiration_ns
                path = prefix + escape(name)
                if dir_id and recursive:
                    below = Directory(path, child, now_ns, offset_ns)
                    text = below.start
                else:
                    text = node_object(path, child, now_ns, offset_ns)
            texts += (level.lead, text)
            level.lead = b","
            if lasting:
                shown.append((name, below or text))
            if below:
                above.append(level)
                lasting = lasting and len(above) < KEPT_LEVELS_MAX
                level = _Level(below, child, view)
                break
        else:
            texts.append(level.directory.end(has_nodes=level.lead == b","))
            if not above:
                texts.append(_BODY_END)
                return Listing([*pieces, b"".join(texts)], root if lasting else None)
            level = above.pop()


class _Level:
    """A directory that is being listed."""

    __slots__ = ("children", "directory", "lead", "prefix", "shown")

    def __init__(self, directory: Directory, node: Node, view: View) -> None:
        self.directory = directory
        self.prefix, self.shown = directory.prefix, directory.shown
        self.children: Iterator[tuple[bytes, Node]] = view.children(node.dir_id)
        self.lead = _FIRST

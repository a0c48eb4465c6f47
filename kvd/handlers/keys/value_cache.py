"""Cache of the JSON of files, each rendered once: for the response to its write, and for reads.

Clients of a configuration store read the same keys again and again, and write them again: the text
of a file is the node of the answer to its write, what reads of it show, and the `prevNode` of the
next write. A file that expires has none here: its `ttl` changes with time.

Invariants:

- A text is that of the committed state. The texts of changed files are corrected with the events
  of a batch, one after the other, before any further request is served
  (`kvd.handlers.keys.short_way`).
- Their memory is bounded. When there is no room for more, all are dropped: to keep track of the
  least recently used one would cost more than it spares.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvd.json_text import LARGE_VALUE_BYTES, escape
from kvd.storage.format.event import Event
from kvd.storage.format.node import Node
from kvd.storage.format.records import REMOVALS
from kvd.v2.response import node_object

TEXT_BYTES_MAX = 32 << 10
"""A longer one is not kept; two of these are sent at once."""

_BYTES_MAX = 16 << 20
# So many are looked at when a directory is removed, which takes a millisecond.
_TEXTS_MAX = 16_384
_REMOVED_MAX = 16
# What one takes beside the bytes of text and path: the heads of both, and its place.
_OVERHEAD_BYTES = 256


class ValueCache:
    """The texts that are kept, of one store.

    Attributes:
        kept: Texts by path. An addition is reported to `wrote`.
    """

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}
        # How many bytes it has now, or more: those of what was replaced may be among them.
        self._written = 0

    def keep(self, path: bytes, node: Node) -> bytes | None:
        """Return the text of a committed file and keep it; None of what expires or is large."""
        text = text_of(path, node)
        if text is not None and len(text) <= TEXT_BYTES_MAX:
            self.kept[path] = text
            self.wrote(len(text))
        return text

    def wrote(self, size: int) -> None:
        """Note that up to so many bytes have been put into `kept`; drop all if that is too much."""
        # A text holds its path: the two take at most twice its length.
        self._written += 2 * size
        if self._written >= _BYTES_MAX or len(self.kept) >= _TEXTS_MAX:
            self._make_room()

    def _make_room(self) -> None:
        kept = self.kept
        size = sum(map(len, kept)) + sum(map(len, kept.values())) + len(kept) * _OVERHEAD_BYTES
        self._written = size
        if size > _BYTES_MAX // 2 or len(kept) >= _TEXTS_MAX:
            kept.clear()
            self._written = 0

    def forget_changed(self, events: Iterable[tuple[Event, object]]) -> None:
        """Forget what events have changed, and what was below directories that they removed."""
        removed = []
        for (change, *_), _ in events:
            self.kept.pop(change.key, None)
            if change.dir and change.kind in REMOVALS:
                removed.append(change.key + b"/")
        if len(removed) > _REMOVED_MAX:
            self.kept.clear()
        below = tuple(removed)
        for path in [path for path in self.kept if path.startswith(below)]:
            del self.kept[path]


def text_of(path: bytes, node: Node) -> bytes | None:
    """Return the JSON of a file that does not expire and is not large; None of another node."""
    value = node.value
    if value is None or node.expiration_ns or len(value) > LARGE_VALUE_BYTES:
        return None
    return node_object(escape(path), node, 0)

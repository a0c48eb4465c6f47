"""Searching keys and values for a text, without regard to case.

The case of letters beyond ASCII counts for nothing only where the text has such letters itself:
looking for them takes longer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from kvd.handlers.extras.reading.walk import LARGE_BYTES
from kvd.json_text import cut, escape
from kvd.storage.format.node import Node
from kvd.v2.extras.parameters import LIMIT_MAX, ReadExtras

# What is shown of a value before and behind the text, and in place of what is not.
_AROUND_BYTES = 40
_CUT_OFF = "\N{HORIZONTAL ELLIPSIS}".encode()
# An answer of so many bytes is ended, and goes on with the next page.
_FOUND_BYTES_MAX = 1 << 20


class Text:
    """The text of a search."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self._lower = raw.lower() if raw.isascii() else b""
        self._pattern = re.compile(re.escape(_decoded(raw)), re.IGNORECASE)

    def find(self, raw: bytes) -> int:
        """Return its first place, -1 if there is none."""
        if self._lower:
            return raw.lower().find(self._lower)
        # Its characters have other bytes in the other case, but at least one that is no ASCII.
        match = None if raw.isascii() else self._pattern.search(_decoded(raw))
        return -1 if match is None else len(_encoded(match.string[: match.start()]))

    def is_in(self, raw: bytes) -> bool:
        """Return whether it occurs."""
        if self._lower:
            return self._lower in raw.lower()
        return self.find(raw) >= 0

    def places(self, raw: bytes) -> Iterator[int]:
        """Yield its first place in each piece of a large value, -1 if there is none."""
        # A character takes up to four bytes, in either case.
        overlap = 4 * len(self.raw)
        for start in range(0, len(raw), LARGE_BYTES):
            place = self.find(raw[start : start + LARGE_BYTES + overlap])
            yield place if place < 0 else start + place


def _decoded(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


class Search:
    """A search: what has been found so far, as JSON.

    Attributes:
        found: The nodes.
        size: Their bytes.
        scanned: How many nodes were looked at.
        place: The path of the last of them.
    """

    def __init__(self, extras: ReadExtras) -> None:
        self._text = Text(extras.find)
        self._in_keys, self._in_values = extras.in_keys, extras.in_values
        self._in_paths = b"/" in extras.find
        self._left = extras.limit or LIMIT_MAX
        self._large: Node | None = None
        self.found: list[bytes] = []
        self.size = self.scanned = 0
        self.place = b""

    @property
    def is_full(self) -> bool:
        """Whether it has found as much as an answer holds."""
        return not self._left or self.size > _FOUND_BYTES_MAX

    def look_at(self, prefix: bytes, nodes: list[tuple[bytes, Node]]) -> None:
        """Look at nodes of one directory until it is full, but not yet into a large value."""
        contains, in_keys, in_values = self._text.is_in, self._in_keys, self._in_values
        for name, node in nodes:
            self.place = prefix + name
            self.scanned += 1
            value = node.value
            if in_keys and contains(self.place if self._in_paths else name):
                self._add(node, b'"in":"keys"')
            elif in_values and value is not None:
                if len(value) > LARGE_BYTES:
                    self._large = node
                elif contains(value):
                    self._add_value(node, value, self._text.find(value))
            if self.is_full:
                break

    def look_at_large(self) -> Iterator[None]:
        """Look into a large value, if that of the last node is one, piece by piece."""
        node, self._large = self._large, None
        if node is None or node.value is None:
            return
        for place in self._text.places(node.value):
            if place >= 0:
                self._add_value(node, node.value, place)
                return
            yield

    def _add_value(self, node: Node, value: bytes, place: int) -> None:
        start = cut(value, max(place - _AROUND_BYTES, 0))
        end = cut(value, place + len(self._text.raw) + _AROUND_BYTES)
        before = _CUT_OFF if start else b""
        behind = _CUT_OFF if end < len(value) else b""
        around = escape(before + value[start:end] + behind)
        self._add(node, b'"around":"%b","in":"values"' % around)

    def _add(self, node: Node, where: bytes) -> None:
        kind = b'"dir":true' if node.value is None else b'"size":%d' % len(node.value)
        indexes = b'"modifiedIndex":%d,"createdIndex":%d' % (
            node.modified_index,
            node.created_index,
        )
        text = b'{"key":"%b",%b,%b,%b}' % (escape(self.place), kind, where, indexes)
        self.found.append(text)
        self.size += len(text)
        self._left -= 1

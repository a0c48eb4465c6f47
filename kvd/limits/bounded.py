"""A cache that is bounded by the memory that it takes.

Values are found in `kept`, a plain dictionary, because the hot path looks there. When there is no
room for another one, all are dropped: which of them was used longest ago is not worth being known.
"""

from __future__ import annotations

from typing import Generic, TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")

OVERHEAD_BYTES = 256
"""What an entry takes beside its key and value: two objects' heads and its place."""


class Bounded(Generic[_K, _V]):
    """The cache.

    Attributes:
        kept: what is kept; to be read only.
        bytes: what it takes, as was said of each entry.
    """

    def __init__(self, bytes_max: int) -> None:
        self.kept: dict[_K, _V] = {}
        self.bytes = 0
        self._sizes: dict[_K, int] = {}
        self._bytes_max = bytes_max

    def keep(self, key: _K, value: _V, size: int) -> None:
        """Keep a value that takes, with its key, so many bytes; or not, if that is too much."""
        size += OVERHEAD_BYTES
        self.drop(key)
        if self.bytes + size > self._bytes_max:
            self.clear()
        if size <= self._bytes_max:
            self.kept[key] = value
            self._sizes[key] = size
            self.bytes += size

    def drop(self, key: _K) -> None:
        """Keep a value no longer, if it is kept."""
        if key in self.kept:
            del self.kept[key]
            self.bytes -= self._sizes.pop(key)

    def clear(self) -> None:
        """Drop everything."""
        self.kept.clear()
        self._sizes.clear()
        self.bytes = 0

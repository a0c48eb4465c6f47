"""Cache bounded by the memory that its entries take.

Values are in `kept`, a plain dictionary, because the hot path reads it. When there is no room for
another value all are dropped: tracking which was used last would cost more than it saves.
"""

from __future__ import annotations

from typing import Generic, TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")

OVERHEAD_BYTES = 256
"""Memory of an entry in addition to its key and value: two object headers and a table slot."""


class Bounded(Generic[_K, _V]):
    """The cache.

    Attributes:
        kept: the values by their keys; read-only.
        bytes: the sum of the sizes that were given.
    """

    def __init__(self, bytes_max: int) -> None:
        self.kept: dict[_K, _V] = {}
        self.bytes = 0
        self._sizes: dict[_K, int] = {}
        self._bytes_max = bytes_max

    def keep(self, key: _K, value: _V, size: int) -> None:
        """Keep a value; key and value take `size` bytes. One above the limit is not kept."""
        size += OVERHEAD_BYTES
        self.drop(key)
        if self.bytes + size > self._bytes_max:
            self.clear()
        if size <= self._bytes_max:
            self.kept[key] = value
            self._sizes[key] = size
            self.bytes += size

    def drop(self, key: _K) -> None:
        """Remove a value, if it is kept."""
        if key in self.kept:
            del self.kept[key]
            self.bytes -= self._sizes.pop(key)

    def clear(self) -> None:
        """Remove all values."""
        self.kept.clear()
        self._sizes.clear()
        self.bytes = 0

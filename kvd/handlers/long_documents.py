"""Long bodies of users and roles, read and rendered in turns while other clients are served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from time import monotonic

from kvd.http.connection import Connection
from kvd.limits.memory_budget import SMALL_BYTES, MemoryBudget, NoRoom
from kvd.storage.index.view import View
from kvd.storage.store import Store
from kvd.v2.errors import RouteError

# Limit of a response that lists users or roles, which is in memory twice for a moment.
_LIST_BYTES_MAX = 64 << 20
# How long one is rendered in one turn of the loop.
_SLICE_S = 0.004

Render = Callable[[View, Callable[[int], None]], Iterator[bytes]]
"""Renders pieces of a body; its second argument takes the size of what it keeps in memory."""


class LongDocuments:
    """Long bodies of one store: one is read and one is rendered at a time.

    Attributes:
        reading: Held while the body of a change is read, which takes long.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.reading = asyncio.Lock()
        self._rendering = asyncio.Lock()

    async def render(self, connection: Connection, render: Render) -> bytes:
        """Return a rendered body; empty if the client has gone meanwhile.

        Raises:
            RouteError: as `render`; 500, it is too long; 503, there is no memory for it.
        """
        held = _Held(connection.memory)
        async with self._rendering:
            try:
                with self._store.long_view() as view:
                    return await _rendered(connection, render(view, held.keep), held)
            except NoRoom:
                raise RouteError(503, "no memory for the response") from None
            finally:
                held.give_back()


class _Held:
    """Counted memory of a response that is being rendered: its text, and what renders it."""

    def __init__(self, memory: MemoryBudget) -> None:
        self._memory = memory
        self._bytes_max = min(_LIST_BYTES_MAX, memory.answer_bytes_max)
        self._text = self._kept = 0

    def add(self, size: int) -> None:
        """Count a piece of the text."""
        self._text += size
        self._memory.take(size)
        if self._text > self._bytes_max:
            raise RouteError(500, f"the response is larger than {self._bytes_max} bytes")

    def keep(self, size: int) -> None:
        """Count what the renderer keeps."""
        self._kept += size
        self._memory.take(size)
        if self._kept > self._bytes_max:
            raise RouteError(500, f"the names take more than {self._bytes_max} bytes of memory")

    def give_back(self) -> None:
        """Discount all of it."""
        self._memory.give_back(self._text + self._kept)


async def _rendered(connection: Connection, slices: Iterator[bytes], held: _Held) -> bytes:
    pieces: list[bytes] = []
    until = monotonic() + _SLICE_S
    for piece in slices:
        pieces.append(piece)
        held.add(len(piece))
        if monotonic() > until:
            await connection.memory.room(SMALL_BYTES)
            await asyncio.sleep(0)
            until = monotonic() + _SLICE_S
        if connection.gone:
            return b""
    return b"".join(pieces)

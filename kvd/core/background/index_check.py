"""Proving, while requests are served, that an index that is used again lacks nothing.

The start has proved the history, users, roles and members, and in a small store everything. Here
nodes and expirations follow, in slices with pauses between them, so that no request waits for
longer than a slice (storage/index/integrity/completeness.py). A missing row ends the process: the
next start builds the index again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kvd.storage.index.errors import BROKEN
from kvd.storage.store import Store

# A tenth of what the loop can do: some thousand rows a second for each millisecond.
_SLICE_S = 0.001
_PAUSE_S = 0.009


class IndexCheck:
    """Has the store prove its index, a slice at a time."""

    def __init__(
        self,
        store: Store,
        loop: asyncio.AbstractEventLoop,
        on_damage: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._loop = loop
        self._on_damage = on_damage
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, if there is anything to prove."""
        self._go_on()

    def stop(self) -> None:
        """Leave the rest to the next start."""
        if self._timer is not None:
            self._timer.cancel()

    def _go_on(self) -> None:
        if self._store.proof.rows_left is None:
            return
        try:
            self._store.proof.go_on(_SLICE_S)
        except BROKEN as damage:
            self._on_damage(damage)
        self._timer = self._loop.call_later(_PAUSE_S, self._go_on)

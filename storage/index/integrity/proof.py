"""The proof that an index that is reused lacks no node and no expiration, while it is in use."""

from __future__ import annotations

import logging

from kvd.storage.format.sums import ONE
from kvd.storage.index.environment import Index
from kvd.storage.index.integrity.completeness import Scan
from kvd.storage.index.state import State

log = logging.getLogger(__name__)


class Proof:
    """A scan of the index, a slice at a time; there is none where the start has proved it all."""

    def __init__(self, index: Index, state: State) -> None:
        self._state = state
        self._scan = None if index.is_proved else Scan(index.env, index.tables)
        if self._scan is not None:
            state.writer.scanned = self._scan.scanned

    @property
    def rows_left(self) -> int | None:
        """The number of nodes and expirations still to be proved; None once all are."""
        if self._scan is None:
            return None
        nodes, ttl, *_ = self._state.writer.sums
        return max((nodes + ttl) // ONE - self._scan.rows, 0)

    def go_on(self, for_s: float) -> None:
        """Continue for so many seconds.

        Raises:
            CorruptIndex, lmdb.Error: damage, one of `BROKEN`: the process must end.
        """
        # During a flush on another thread the sums may be those before it, or after.
        if self._scan is None or self._state.is_flushing:
            return
        if self._scan.go_on(self._state.writer.sums, for_s):
            log.info("the index is complete: %d nodes and expirations", self._scan.rows)
            self._scan = None

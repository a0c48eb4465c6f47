"""Low-space mode: refuse writes, and reserve the end of the log for removals and expiry.

While there is none, writes are refused (HTTP 500, error 300) and reads go on. Removals and expiry
go on too, as long as the log has a frame left for them: they are what makes room. The state begins
when the log was refused space or the file system has less than `Store.low_water_bytes` left, and it
ends automatically, once a frame can be written again; each is one line of the log.
"""

from __future__ import annotations

import logging
import os
import sys
import time

from kvd.storage.errors import LogFull
from kvd.storage.store import Store
from kvd.v2.errors import RAFT_INTERNAL, ApiError

log = logging.getLogger(__name__)

# The end of the log that only removals may use, when the next segment could not be reserved.
_RESERVE_BYTES = 1 << 20


class DiskSpace:
    """The room for one store on its disk.

    Attributes:
        refusal: what users' writes are answered with while there is no room, else None.
        limit: the same, of another log that has no room, though this disk has.
    """

    def __init__(self, store: Store) -> None:
        self.refusal: ApiError | None = None
        self.limit: ApiError | None = None
        self._store = store
        self._wal = store.wal
        self._reserve_bytes = min(_RESERVE_BYTES, store.wal.max_payload // 4)
        self._since = 0.0

    @property
    def room(self) -> int:
        """The bytes that a batch may have before `check` is necessary."""
        if self.refusal is not None:
            return 0
        return sys.maxsize if self._wal.refusal is None else self._wal.room - self._reserve_bytes

    def poll(self) -> None:
        """Poll the file system, and enter low-space mode if room has become scarce."""
        if self.refusal is None and self._store.is_low_on_space():
            self._begin("no space left on device")

    def enter(self, error: LogFull) -> None:
        """Enter low-space mode: the log was refused space."""
        self._begin(os.strerror(error.errno).lower())

    def leave(self) -> None:
        """Leave low-space mode: the log takes frames again."""
        if self.refusal is not None:
            self.refusal = None
            log.warning(
                "disk space is available again after %.1f s: accepting writes",
                time.monotonic() - self._since,
            )

    def leave_with_room(self) -> None:
        """Leave low-space mode after a frame was written, if the file system has room again."""
        if self.refusal is not None and not self._store.is_low_on_space():
            self.leave()

    def check(self, size: int) -> ApiError | None:
        """Return what keeps a batch from growing to `size` bytes by a user's write, or None."""
        refusal = self._wal.refusal
        if refusal is not None and size > self._wal.room - self._reserve_bytes:
            self.enter(refusal)
        return self.refusal or self.limit

    def _begin(self, reason: str) -> None:
        if self.refusal is None:
            self._since = time.monotonic()
            log.warning(
                "%s: writes are refused until there is room; reads, removals and expiry go on",
                reason,
            )
        self.refusal = ApiError(RAFT_INTERNAL, f"{reason} (wal)".encode())

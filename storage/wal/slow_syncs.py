"""Syncs of the log that took long: counted, and logged now and then."""

import logging
import time

log = logging.getLogger(__name__)

SLOW_SYNC_S = 1.0
"""A longer sync is slow."""
# Not each of them is logged.
_QUIET_S = 30.0


class SlowSyncs:
    """The slow syncs of one log.

    Attributes:
        count: How many there were.
    """

    def __init__(self) -> None:
        self.count = 0
        self._logged_at = float("-inf")

    def note(self, took_s: float) -> None:
        """Count one that took longer than `SLOW_SYNC_S`; log it unless one was a moment ago."""
        self.count += 1
        now = time.monotonic()
        if now - self._logged_at > _QUIET_S:
            self._logged_at = now
            log.warning(
                "the disk is slow: a sync of the log took %.1f s, writes wait for it", took_s
            )

"""Failures that end a server: one line of the log, and an exit status for each."""

from __future__ import annotations

import logging

from kvd.storage.errors import DirectoryLost, StorageError
from kvd.storage.index.errors import BROKEN, IndexRefused

log = logging.getLogger(__name__)

EXIT_UNAVAILABLE = 69
EXIT_BUG = 70
EXIT_IO = 74
EXIT_TRY_AGAIN = 75


def report(error: BaseException) -> int:
    """Log a failure that ends the server; return its exit status."""
    if isinstance(error, BROKEN):
        log.critical("the index is damaged, stopping; the next start rebuilds it: %s", error)
        return EXIT_TRY_AGAIN
    if isinstance(error, IndexRefused):
        log.critical(
            "the index could not be written though there is room, stopping; the log has all "
            "that was acknowledged, the next start rebuilds the index: %s",
            error,
        )
        return EXIT_IO
    if isinstance(error, DirectoryLost):
        log.critical("%s; stopping at once, nothing more is acknowledged", error)
        return error.exit_status
    if isinstance(error, StorageError):
        log.critical("stopping, this replica cannot go on: %s", error)
        return error.exit_status
    if isinstance(error, OSError):
        log.critical("the disk failed, stopping at once: %s", error)
        return EXIT_IO
    log.critical("stopping at once", exc_info=error)
    return EXIT_BUG

"""Division of RLIMIT_NOFILE between the store and client connections.

A log segment that cannot be opened because clients hold all files would look like a full disk.
"""

from __future__ import annotations

import logging
import resource
from typing import NamedTuple

log = logging.getLogger(__name__)

# Files that are not of clients: the log, the index, the listeners, a snapshot.
_RESERVED = 64
_BACKLOG_MAX = 4096
_LINGERING_MAX = 256
_UNLIMITED = 1 << 20


class Files(NamedTuple):
    """Numbers of client connections that may be open, by their state."""

    backlog: int
    """Pending at the listening socket; all of them may be accepted in one turn of the loop."""
    lingering_max: int
    """Refused, and not closed yet."""
    connections_max: int
    """Served."""

    @property
    def watchers_max(self) -> int:
        """Limit of watchers: the other connections are left to requests."""
        return self.connections_max - max(self.connections_max // 16, 1)


def open_files_max() -> int:
    """Return how many files the process may open now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else _UNLIMITED


def raise_limit() -> int:
    """Raise the soft limit of open files to the hard one; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else _UNLIMITED


def divide(files: int, wanted: int | None) -> Files:
    """Divide a number of files; `wanted` is the limit of connections that the flag sets."""
    backlog = min(_BACKLOG_MAX, max(files // 8, 1))
    lingering_max = min(_LINGERING_MAX, files // 8)
    most = max(files - _RESERVED - backlog - lingering_max, 1)
    if wanted is not None and wanted > most:
        log.warning(
            "--max-connections %d: this process may open %d files, so there will be %d at most",
            wanted,
            files,
            most,
        )
    return Files(backlog, lingering_max, min(wanted or most, most))

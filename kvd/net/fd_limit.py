"""How the files that the process may open are divided, so that the store never lacks one.

A segment of the log that could not be opened because of clients would look like a full disk.
"""

from __future__ import annotations

import logging
import resource
from typing import NamedTuple

log = logging.getLogger(__name__)

# Files that are open beside those of clients: the log, the index, the listeners, a snapshot.
_RESERVED = 64
_BACKLOG_MAX = 4096
_LINGERING_MAX = 256
_UNLIMITED = 1 << 20


class Files(NamedTuple):
    """The shares of clients."""

    backlog: int
    """Of those who wait to be accepted, and may all be accepted in one turn of the loop."""
    lingering_max: int
    """Of those who are being turned away."""
    connections_max: int
    """Of those who are served."""

    @property
    def watchers_max(self) -> int:
        """How many of them may wait for events: the rest is left to requests."""
        return self.connections_max - max(self.connections_max // 16, 1)


def raise_limit() -> int:
    """Raise the limit of open files as far as it goes; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else _UNLIMITED


def divide(files: int, wanted: int | None) -> Files:
    """Return the shares of a number of files; `wanted` is what the flag says of connections."""
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

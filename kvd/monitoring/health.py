"""Health of the server: the checks of `/health`, `/readyz` and `/livez`.

One table of checks. Each returns what is wrong in a few words, or nothing:

    startup    the store is still being recovered
    log        a sync of a batch has lasted longer than a disk takes
    space      no disk space for writes; reads, removals and expiry continue
    index      the index cannot take a batch that is durable already
    damage     the log behind the index or a snapshot has rotted, or the snapshots have gone, and
               no new snapshot lies behind that yet
    shutdown   the server is stopping

`/readyz` fails when any does. `/health` is etcd's: it says in one word whether writes are taken.
`/livez` fails when the log does, which a restart might mend; no restart mends a full disk.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from kvd.core.background.housekeeping import Housekeeping
from kvd.core.committer import Committer

# etcd calls itself unhealthy after one second; a disk that needs five does not flap.
_SYNC_S_MAX = 5.0

CHECKS = ("startup", "log", "space", "index", "damage", "shutdown")


class Check(NamedTuple):
    """One check's name, and what is wrong; empty if nothing is."""

    name: str
    problem: str


class Health:
    """The state of one server, from its first moment to its last."""

    def __init__(self) -> None:
        self._committer: Committer | None = None
        self._housekeeping: Housekeeping | None = None
        self._stopping = False
        self.successes = 0
        """Number of requests of `/health` that were answered with true."""
        self.failures = 0

    def set_serving(self, committer: Committer, housekeeping: Housekeeping) -> None:
        """Report the state of these parts from now on: the store is recovered."""
        self._committer = committer
        self._housekeeping = housekeeping

    def set_stopping(self) -> None:
        """Report that the server is stopping."""
        self._stopping = True

    def checks(self, exclude: Collection[str] = ()) -> list[Check]:
        """Return the result of every check but the excluded ones."""
        problems = {
            "startup": "" if self._committer else "the store is being recovered",
            "log": self._log_problem(),
            "space": self._committer.no_room if self._committer else "",
            "index": self._index_problem(),
            "damage": self._housekeeping.damage if self._housekeeping else "",
            "shutdown": "the server is stopping" if self._stopping else "",
        }
        return [Check(name, problems[name]) for name in CHECKS if name not in exclude]

    def is_ready(self) -> bool:
        """Return whether nothing is wrong."""
        return not any(check.problem for check in self.checks())

    def is_healthy(self, exclude: Collection[str] = ()) -> bool:
        """Return whether writes are accepted, and count the request of `/health`."""
        healthy = not any(check.problem for check in self.checks(exclude))
        if healthy:
            self.successes += 1
        else:
            self.failures += 1
        return healthy

    def _log_problem(self) -> str:
        waited = self._committer.syncing_s if self._committer else 0.0
        return f"a sync has been taking {waited:.0f} s" if waited > _SYNC_S_MAX else ""

    def _index_problem(self) -> str:
        waits = self._committer is not None and self._committer.flusher.waits
        return "changes wait in memory for room in the index" if waits else ""

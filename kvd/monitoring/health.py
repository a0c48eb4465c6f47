"""Health of the server: the checks of `/health`, `/readyz` and `/livez`.

One table of checks. Each returns what is wrong in a few words, or nothing:

    startup    the store is still being recovered
    log        a sync of a batch has lasted longer than a disk takes
    space      no disk space for writes; reads, removals and expiry continue
    index      the index cannot take a batch that is durable already
    damage     the log behind the index or a snapshot has rotted, or the snapshots have gone, and
               no new snapshot lies behind that yet
    shutdown   the server is stopping

and of a replica only:

    engine     the consensus engine has been silent for longer than a change of its leader takes
    behind     frames of the log wait to be applied for that long
    detached   the replica has left the log of the others, and serves nothing

`/readyz` fails when any does. `/health` is etcd's: it says in one word whether writes are taken; a
replica asks its engine for that, instead of the checks `engine` and `behind`. `/livez` fails when
the log does, which a restart might mend; no restart mends a full disk, or a silent engine.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from kvd.core.background.housekeeping import Housekeeping
from kvd.core.committer import Committer
from kvd.core.standing import EngineFigures, Role, Standing

# etcd calls itself unhealthy after one second; a disk that needs five does not flap.
_SYNC_S_MAX = 5.0

_ENGINE_S_MAX = _BEHIND_S_MAX = 5.0
# What `/health` has looked up instead.
_LOOKED_UP = frozenset(("engine", "behind"))


class Check(NamedTuple):
    """One check's name, and what is wrong; empty if nothing is."""

    name: str
    problem: str


class Health:
    """The state of one server, from its first moment to its last."""

    def __init__(self) -> None:
        self._committer: Committer | None = None
        self._housekeeping: Housekeeping | None = None
        self._standing: Standing | None = None
        self._stopping = False
        self.successes = 0
        """Number of requests of `/health` that were answered with true."""
        self.failures = 0

    def set_serving(self, committer: Committer, housekeeping: Housekeeping) -> None:
        """Report the state of these parts from now on: the store is recovered."""
        self._committer = committer
        self._housekeeping = housekeeping

    def set_standing(self, standing: Standing) -> None:
        """Report that of a replica, from now on."""
        self._standing = standing

    def set_stopping(self) -> None:
        """Report that the server is stopping."""
        self._stopping = True

    def checks(self, exclude: Collection[str] = ()) -> list[Check]:
        """Return the result of every check but the excluded ones."""
        problems = {
            "startup": self._start_problem(),
            "log": self._log_problem(),
            "space": self._space_problem(),
            "index": self._index_problem(),
            "damage": self._housekeeping.damage if self._housekeeping else "",
            "shutdown": "the server is stopping" if self._stopping else "",
        }
        problems |= self._replica_problems()
        return [Check(name, problem) for name, problem in problems.items() if name not in exclude]

    def is_ready(self) -> bool:
        """Return whether nothing is wrong."""
        return not any(check.problem for check in self.checks())

    async def is_healthy(self, exclude: Collection[str] = ()) -> bool:
        """Return whether writes are accepted, and count the request of `/health`."""
        standing = self._standing
        if standing is not None:
            exclude = _LOOKED_UP.union(exclude)
        healthy = not any(check.problem for check in self.checks(exclude))
        if healthy and standing is not None:
            healthy = standing.leader is not None and await standing.is_reachable()
        if healthy:
            self.successes += 1
        else:
            self.failures += 1
        return healthy

    def _start_problem(self) -> str:
        if self._standing is not None and self._standing.role is Role.JOINING:
            return "the replica fetches what it lacks of the log"
        return "" if self._committer else "the store is being recovered"

    def _log_problem(self) -> str:
        waited = self._committer.syncing_s if self._committer else 0.0
        engine = self._engine
        if engine is not None:  # its part of the time is no fault of the disk
            waited -= engine.append_wait_s
        return f"a sync has been taking {waited:.0f} s" if waited > _SYNC_S_MAX else ""

    def _space_problem(self) -> str:
        engine = self._engine
        if engine is not None and engine.refusal:
            return engine.refusal
        return self._committer.no_room if self._committer else ""

    def _replica_problems(self) -> dict[str, str]:
        standing, engine = self._standing, self._engine
        if standing is None or engine is None:
            return {}
        silent_s, behind_s = engine.silent_s, standing.behind_s
        late = f"{standing.behind_frames} frames are not applied, for {behind_s:.0f} s"
        return {
            "engine": f"no answer for {silent_s:.0f} s" if silent_s > _ENGINE_S_MAX else "",
            "behind": late if behind_s > _BEHIND_S_MAX else "",
            "detached": standing.problem,
        }

    @property
    def _engine(self) -> EngineFigures | None:
        return None if self._standing is None else self._standing.engine

    def _index_problem(self) -> str:
        waits = self._committer is not None and self._committer.flusher.waits
        return "changes wait in memory for room in the index" if waits else ""

"""A server's place among replicas, as routes, health, metrics and the page show it.

`Standing` is all that they know of replication. A server without replicas is `Alone`: it leads
itself, follows no other, and waits for no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

from kvd.core.histogram import Histogram


class Role(StrEnum):
    """The state of a replica, as it is shown."""

    JOINING = "joining"
    FOLLOWING = "following"
    PROMOTING = "promoting"
    LEADING = "leading"
    FENCED = "fenced"
    DETACHED = "detached"

    @property
    def raft_state(self) -> str:
        """The word of etcd for it."""
        match self:
            case Role.LEADING:
                return "StateLeader"
            case Role.PROMOTING:
                return "StateCandidate"
            case _:
                return "StateFollower"


class Leader(NamedTuple):
    """The replica that leads, and since when (Unix time)."""

    member_id: int
    since_ns: int


class Traffic(NamedTuple):
    """Frames that were received from the log, or sent to it; rates are those of the last second.

    A rate is None where nothing was measured lately.
    """

    frames: int = 0
    frames_per_s: float | None = None
    bytes_per_s: float | None = None


class Latency(NamedTuple):
    """From the end of an append to the response of a follower, in seconds."""

    current: float
    average: float
    standard_deviation: float
    minimum: float
    maximum: float


class Follower(NamedTuple):
    """A follower in the eyes of the leader; `latency` is None before its first response."""

    member_id: int
    latency: Latency | None
    successes: int
    failures: int


class Replica(NamedTuple):
    """A replica by its own last report, which changed `seen_s` ago; None where that is not known.

    `applied` and `durable` are frames; `durable` is None for one that holds nothing yet.
    """

    member_id: int
    name: str
    role: str
    applied: int
    durable: int | None
    client_urls: tuple[str, ...]
    version: str
    seen_s: float | None


class EngineFigures(NamedTuple):
    """The consensus engine that keeps the log, as this replica has met it.

    `append_wait_s` is how long the append of the batch under way has waited for the engine, also
    after that has answered, until the batch ends; 0 without one. `silent_s`: since the last answer
    to anything. `used_bytes`, `quota_bytes`: 0 while unknown, and for no quota. `refusal`: why
    there is no room for users' writes, empty if there is.
    """

    append_s: Histogram
    append_wait_s: float
    silent_s: float
    used_bytes: int
    quota_bytes: int
    refusal: str = ""


class Standing(Protocol):
    """A server's place among replicas, as it is now."""

    @property
    def started_ns(self) -> int:
        """When this server began (Unix time)."""

    @property
    def engine(self) -> EngineFigures | None:
        """The engine; None for a server without replicas."""

    @property
    def role(self) -> Role:
        """The state."""

    @property
    def leader(self) -> Leader | None:
        """The leader, as far as this server knows it."""

    @property
    def leader_changes(self) -> int:
        """Number of leaders that it has seen."""

    @property
    def received(self) -> Traffic:
        """Frames of other leaders that it has applied."""

    @property
    def sent(self) -> Traffic:
        """Frames that it has appended as the leader."""

    @property
    def behind_frames(self) -> int:
        """Number of frames of the log that are not applied here yet, when last looked up."""

    @property
    def behind_s(self) -> float:
        """For how long there have been such frames; 0 without."""

    @property
    def problem(self) -> str:
        """Why it is detached; empty if it is not."""

    def followers(self) -> Sequence[Follower]:
        """The other replicas, in any order; of interest while this one leads."""

    def replicas(self) -> Sequence[Replica]:
        """All that have reported, in any order."""

    async def is_reachable(self) -> bool:
        """Whether the engine answers a linearizable request within a second."""

    async def hand_over(self) -> bool:
        """End what is in flight, and let another replica lead; False if this one does not lead."""


class Alone:
    """The standing of a server without replicas."""

    role = Role.LEADING
    engine: EngineFigures | None = None
    leader_changes = 1
    received = Traffic()
    sent = Traffic()
    behind_frames = 0
    behind_s = 0.0
    problem = ""

    def __init__(self, member_id: int, started_ns: int) -> None:
        self.started_ns = started_ns
        self._leader = Leader(member_id, started_ns)

    @property
    def leader(self) -> Leader | None:
        """The server itself, since its start."""
        return self._leader

    def followers(self) -> Sequence[Follower]:
        """There are none."""
        return ()

    def replicas(self) -> Sequence[Replica]:
        """There are none."""
        return ()

    async def is_reachable(self) -> bool:
        """There is nothing to reach."""
        return True

    async def hand_over(self) -> bool:
        """There is no other to lead."""
        return False

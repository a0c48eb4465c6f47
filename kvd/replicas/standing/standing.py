"""`kvd.core.standing.Standing` of a replica: its parts note what happens, routes read it.

Each second it reads the end of the log: how far this replica is behind, and for how long the engine
has been silent. The lag is that of the frames that were seen there and are not applied yet, so one
of less than a second may not show.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from kvd.core.histogram import Histogram
from kvd.core.standing import EngineFigures, Follower, Leader, Replica, Role, Traffic
from kvd.replicas.engine import NO_LIMIT, Engine, Leadership, Room
from kvd.replicas.standing.meters import Ends, LatencyMeter, TrafficMeter
from kvd.replicas.upkeep.upkeep import Seen

WATCH_S = 1.0
REACH_S = 1.0
"""How long `/health` waits for the engine, as in etcd."""
MISSING_S = 2.5
"""A follower that has not reported for so long has failed once."""


class Upkeep(Protocol):
    """The part of a replica that knows the reports of all, and the engine's room."""

    @property
    def reports(self) -> Mapping[int, Seen]:
        """By the ids of the replicas."""

    @property
    def room(self) -> Room | None:
        """Bytes of the engine; None before the first look."""

    @property
    def refusal(self) -> str:
        """The reason why users' writes are refused; empty if they are not."""


class _Followed:
    """A follower, as the leader counts it since `at_s`."""

    def __init__(self, at_s: float) -> None:
        self.latency = LatencyMeter()
        self.successes = 0
        self.failures = 0
        self.missed_at = at_s


class ReplicaStanding:
    """The standing of one replica.

    Attributes:
        started_ns: When it began (Unix time).
        role: The state.
        leader: The leader, since this replica has known it.
        leader_changes: Number of leaders that it has seen.
        problem: Why it is detached.
        upkeep: The reports of all replicas; None before it begins.
        resign: Lets another replica lead; None before the replica runs.
    """

    def __init__(
        self,
        member_id: int,
        *,
        now: Callable[[], float],
        clock_ns: Callable[[], int],
        timer: Callable[[], float] | None = None,
    ) -> None:
        """Begin to join.

        Args:
            member_id: of this replica.
            now: the time of the loop in seconds.
            clock_ns: Unix time.
            timer: seconds for durations, where the loop counts in milliseconds.
        """
        timer = timer or now
        self._member_id = member_id
        self._now = now
        self._clock_ns = clock_ns
        self.started_ns = clock_ns()
        self.role = Role.JOINING
        self.leader: Leader | None = None
        self.leader_changes = 0
        self.problem = ""
        self.upkeep: Upkeep | None = None
        self.resign: Callable[[], Awaitable[None]] | None = None
        self._epoch = 0
        self._received = TrafficMeter(now)
        self._sent = TrafficMeter(now)
        self._ends = Ends(timer)
        self._timer = timer
        self._followed: dict[int, _Followed] = {}
        self._applied = 0
        self._behind: tuple[int, float] | None = None
        self._end = 0
        self._engine: Engine | None = None
        self._append_s = Histogram()
        self._append_began: float | None = None
        self._append_answered: float | None = None
        self._answered = now()

    # Notes

    def enter(self, state: str) -> None:
        """The replica is in another state."""
        self.role = Role(state)

    def detached(self, reason: str) -> None:
        """The replica serves nothing any more."""
        self.role = Role.DETACHED
        self.problem = reason

    def led_by(self, leadership: Leadership) -> None:
        """The leader is this one, or there is none; all frames before are applied."""
        if self.role is Role.JOINING:
            self.role = Role.FOLLOWING
        if leadership.leader is None or leadership.lead is None:
            self.leader = None
        elif leadership.lead.epoch != self._epoch:
            self._epoch = leadership.lead.epoch
            self.leader = Leader(leadership.leader.id, self._clock_ns())
            self.leader_changes += 1
            self._followed.clear()
        else:
            self.leader = self.leader or Leader(leadership.leader.id, self._clock_ns())

    def append_began(self) -> None:
        """A batch goes to the engine."""
        self._append_began, self._append_answered = self._timer(), None

    def append_answered(self, seq: int, size: int) -> None:
        """The engine has written frame `seq`."""
        self._answered = self._now()
        now = self._append_answered = self._timer()
        if self._append_began is not None:
            self._append_s.observe(now - self._append_began)
        self._sent.note(size)
        self._ends.note(seq)

    def append_ended(self) -> None:
        """The batch has ended, written or not."""
        self._append_began = None

    def applied(self, seq: int, size: int) -> None:
        """Frame `seq` is visible here."""
        self._applied = seq
        if self.role is not Role.LEADING:
            self._received.note(size)
        if self._behind is not None and seq >= self._behind[0]:
            self._behind = None

    def follower_applied(self, replica: int, seq: int) -> None:
        """A follower has frame `seq`."""
        followed = self._followed.setdefault(replica, _Followed(self._now()))
        followed.successes += 1
        latency_s = self._ends.since(seq)
        # The first one says where a new link begins: that may have been there for long.
        if latency_s is not None and followed.successes > 1:
            followed.latency.note(latency_s)

    async def watch(self, engine: Engine) -> None:
        """Look at the end of the log each second, until it is cancelled.

        Raises:
            EngineError: the engine cannot be used.
        """
        self._engine = engine
        while True:
            before = self._now()
            self._note_end((await engine.end()).seq, before)
            self._note_missing()
            await asyncio.sleep(WATCH_S)

    def _note_end(self, seq: int, at_s: float) -> None:
        self._answered = self._now()
        self._end = seq
        if self._behind is None and seq > self._applied:
            self._behind = seq, at_s

    def _note_missing(self) -> None:
        if self.upkeep is None or self.role is not Role.LEADING:
            return
        now = self._now()
        for replica, seen in self.upkeep.reports.items():
            if replica == self._member_id:
                continue
            followed = self._followed.setdefault(replica, _Followed(now))
            if now - max(seen.at_s, followed.missed_at) > MISSING_S:
                followed.failures += 1
                followed.missed_at = now

    # Figures

    @property
    def received(self) -> Traffic:
        """Frames of other leaders that it has applied."""
        return self._received.traffic()

    @property
    def sent(self) -> Traffic:
        """Frames that it has appended as the leader."""
        return self._sent.traffic()

    @property
    def behind_frames(self) -> int:
        """Number of frames that were seen in the log and are not applied."""
        return max(0, self._end - self._applied)

    @property
    def behind_s(self) -> float:
        """Time since the first of them was seen that is not applied yet."""
        return 0.0 if self._behind is None else self._now() - self._behind[1]

    @property
    def engine(self) -> EngineFigures | None:
        """The engine, as this replica has met it."""
        room = self.upkeep.room if self.upkeep is not None else None
        return EngineFigures(
            append_s=self._append_s,
            append_wait_s=self._append_wait_s(),
            silent_s=self._now() - self._answered,
            used_bytes=room.allocated if room else 0,
            quota_bytes=room.limit if room and room.limit != NO_LIMIT else 0,
            refusal=self.upkeep.refusal if self.upkeep is not None else "",
        )

    def followers(self) -> Sequence[Follower]:
        """The others that have responded or are registered."""
        return [
            Follower(replica, each.latency.latency(), each.successes, each.failures)
            for replica, each in sorted(self._followed.items())
        ]

    def replicas(self) -> Sequence[Replica]:
        """All that have reported."""
        if self.upkeep is None:
            return ()
        return [
            Replica(
                member_id,
                seen.report.name,
                seen.report.state,
                seen.report.applied,
                seen.report.durable,
                seen.report.urls,
                seen.report.version,
                None if math.isinf(seen.at_s) else self._now() - seen.at_s,
            )
            for member_id, seen in sorted(self.upkeep.reports.items())
        ]

    async def hand_over(self) -> bool:
        """End what is in flight, and let another replica lead; False if this one does not lead."""
        if self.role is not Role.LEADING or self.resign is None:
            return False
        await self.resign()
        return True

    async def is_reachable(self) -> bool:
        """Whether the engine answers a linearizable request within a second."""
        if self._engine is None:
            return False
        with suppress(TimeoutError):
            async with asyncio.timeout(REACH_S):
                self._note_end((await self._engine.end()).seq, self._now())
                return True
        return False

    def _append_wait_s(self) -> float:
        if self._append_began is None:
            return 0.0
        until = self._timer() if self._append_answered is None else self._append_answered
        return until - self._append_began

"""Upkeep of the engine's log: reports of all replicas, trimming by the leader, the engine's room.

A frame may be removed from the engine once the replicas' own disks have it, for it is the engine
that keeps an acknowledged write until then. So the leader trims what is durable at every replica
that was seen lately, and nothing while these are no majority of the registered ones. A replica that
is away holds nothing up: it installs a snapshot when it returns.

While room is scarce, durable at a majority is enough, so that a slow disk does not fill the engine.
"""

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import NamedTuple

from kvd.replicas.engine import Engine, EngineFull, Room
from kvd.replicas.upkeep.report import JOINING, Report, decode, encode

log = logging.getLogger(__name__)

REPORT_S = 2.0
SEEN_S = 10.0
"""A replica whose report has not changed for so long is away."""
TRIM_BYTES = 16 << 20
"""Payload that the leader appends between two trims."""
KEPT_FRAMES = 500
KEPT_BYTES = 16 << 20
"""Frames that stay although all have them, so many bytes of them: a replica that restarts needs no
snapshot."""
ROOM_S = 10.0
SCARCE = 0.6
FULL = 0.8
"""Parts of the engine's limit: above the first it warns, above the second users' writes end."""


class Seen(NamedTuple):
    """The last report of a replica, and when it changed, in seconds of the event loop's time.

    Minus infinity while it has not changed since it was read first.
    """

    report: Report
    at_s: float


class Upkeep:
    """The upkeep of one replica.

    Attributes:
        reports: The last report of each registered replica.
        room: The engine's, as of the last 10 s; None before the first look.
    """

    def __init__(
        self,
        engine: Engine,
        replica: int,
        describe: Callable[[], Report],
        *,
        leads: Callable[[], bool],
        on_room: Callable[[str], None],
        is_removed: Callable[[int], bool],
    ) -> None:
        """Begin with `run`.

        Args:
            engine: where reports and the log are.
            replica: the id of this one.
            describe: the report of the moment.
            leads: whether this one is the leader.
            on_room: gets the reason why users' writes are to be refused, and "" when that ends.
            is_removed: whether a replica is one no more, by the last state; the leader removes
                its report, so that it counts no longer.
        """
        self._engine = engine
        self._replica = replica
        self._describe = describe
        self._leads = leads
        self._on_room = on_room
        self._is_removed = is_removed
        self._reports: dict[int, Seen] = {}
        self._appended = TRIM_BYTES  # the first trim tells what an earlier leader has left
        self._sizes: deque[int] = deque(maxlen=KEPT_FRAMES)
        self._below = 0
        self._is_scarce = False
        self._refusal = ""
        self.room: Room | None = None

    @property
    def reports(self) -> Mapping[int, Seen]:
        """By the ids of the replicas."""
        return self._reports

    @property
    def refusal(self) -> str:
        """The reason why users' writes are refused; empty if they are not."""
        return self._refusal

    @property
    def reads(self) -> int:
        """The highest payload version that all registered replicas understand."""
        reads = [seen.report.reads for seen in self._reports.values()]
        return min([self._describe().reads, *reads])

    def appended(self, size: int) -> None:
        """Count the payload bytes of a frame that this leader has appended."""
        self._appended += size
        self._sizes.append(size)

    async def run(self) -> None:
        """Report, trim and look for room until it is cancelled.

        Raises:
            EngineError: the engine cannot be used.
        """
        looks = 0.0
        while True:
            now = asyncio.get_running_loop().time()
            await self._report()
            if now >= looks:
                looks = now + ROOM_S
                self._take_room(await self._engine.room())
            if self._leads():
                await self._lead()
            await asyncio.sleep(REPORT_S)

    async def _report(self) -> None:
        with contextlib.suppress(EngineFull):  # `room` says so too
            await self._engine.report(self._replica, encode(self._describe()))
        now = asyncio.get_running_loop().time()
        reports: dict[int, Seen] = {}
        for replica, document in (await self._engine.reports()).items():
            try:
                report = decode(document)
            except ValueError:
                log.warning("the report of replica %x is ignored: it is damaged", replica)
                continue
            known = self._reports.get(replica)
            if known is None:  # it may be as old as the log
                reports[replica] = Seen(report, -math.inf)
            else:
                reports[replica] = known if known.report == report else Seen(report, now)
        self._reports = reports

    async def _lead(self) -> None:
        for replica in [replica for replica in self._reports if self._is_removed(replica)]:
            await self._engine.forget(replica)
            del self._reports[replica]
        if self._appended >= TRIM_BYTES:
            await self._trim()

    async def _trim(self) -> None:
        """Remove from the engine what the replicas have on their disks."""
        below = self._durable() - self._kept
        if below <= self._below:
            return
        await self._engine.trim(below)
        self._below, self._appended = below, 0
        log.debug("frames below %d were removed from the engine", below)

    @property
    def _kept(self) -> int:
        """The number of frames that stay: fewer, where the last ones were large."""
        within = sum(total <= KEPT_BYTES for total in accumulate(reversed(self._sizes)))
        return within if within < len(self._sizes) else KEPT_FRAMES

    def _durable(self) -> int:
        """Return the last frame that need not be in the engine; 0 if no majority was seen."""
        since = asyncio.get_running_loop().time() - SEEN_S
        seen = [seen.report for seen in self._reports.values() if seen.at_s >= since]
        known = [report for report in seen if report.durable is not None]
        # What joins needs the log from there on, and has nothing on its disk yet.
        joining = [report.durable or 0 for report in known if report.state == JOINING]
        others = [report.durable or 0 for report in known if report.state != JOINING]
        durable = sorted(others, reverse=True)
        majority = len(self._reports) // 2 + 1
        if len(durable) < majority:
            return 0
        return durable[majority - 1] if self._is_scarce else min([durable[-1], *joining])

    def _take_room(self, room: Room) -> None:
        self.room = room
        was_scarce, self._is_scarce = self._is_scarce, room.used > SCARCE * room.limit
        if self._is_scarce:
            self._appended = TRIM_BYTES
        if self._is_scarce and not was_scarce:
            log.warning(
                "the engine holds %d MiB of at most %d MiB: make room in it, or writes are refused",
                room.used >> 20,
                room.limit >> 20,
            )
        refusal = ""
        if room.is_full or room.used > FULL * room.limit:
            refusal = "the replication engine has no space left"
        if refusal == self._refusal:
            return
        self._refusal = refusal
        self._on_room(refusal)

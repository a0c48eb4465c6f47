"""A consensus engine in memory, with faults: `kvd.replicas.engine.Engine` for tests.

`MemoryLog` is what all replicas share, `MemoryEngine` is one replica's way to it, `Faults` what may
happen on that way. Time is the event loop's: on `simulated_loop`, a run with the same seed takes
the same course.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from random import Random
from typing import TypeVar

from kvd.replicas.engine import (
    Candidate,
    End,
    EngineFull,
    Fenced,
    Frame,
    Lead,
    Leadership,
    Meta,
    OtherHistory,
    OutcomeUnknown,
    Room,
    Trimmed,
)

T = TypeVar("T")

LEASE_S = 3.0
CALL_S = 1.0
"""How long a replica waits for a response before it sends its request again."""


class MemoryLog:
    """The log, its leader and its leases; each method is one step that all replicas see at once."""

    def __init__(self, random: Random | None = None) -> None:
        self.random = random or Random(0)
        self.revision = 0
        self.is_full = False
        self.meta: Meta | None = None
        self.head = End(0, b"")
        self.frames: dict[int, Frame] = {}
        self.leadership = Leadership(0)
        self.leases: dict[int, asyncio.TimerHandle] = {}
        self.reports: dict[int, bytes] = {}
        self._changed: asyncio.Future[None] | None = None

    def open(self, meta: Meta, end: End) -> Meta:
        if self.meta is None:
            self.meta, self.head = meta, end
        return self.meta

    def grant(self) -> int:
        if self.is_full:
            raise EngineFull("no room")
        lease = self.random.getrandbits(62) + 1
        self._extend(lease)
        return lease

    def _extend(self, lease: int) -> None:
        loop = asyncio.get_running_loop()
        self.leases[lease] = loop.call_later(LEASE_S, self.revoke, lease)

    def renew(self, lease: int) -> bool:
        if lease not in self.leases:
            return False
        self.leases[lease].cancel()
        self._extend(lease)
        return True

    def revoke(self, lease: int) -> None:
        timer = self.leases.pop(lease, None)
        if timer is not None:
            timer.cancel()
        if self.leadership.lead is not None and self.leadership.lead.lease == lease:
            self._lead(Leadership(self._next_revision()))

    def elect(self, me: Candidate, lease: int) -> Lead | None:
        if self.leadership.lead is None and lease in self.leases:
            epoch = self._next_revision()
            self._lead(Leadership(epoch, me, Lead(epoch, lease)))
        lead = self.leadership.lead
        return lead if lead is not None and lead.lease == lease else None

    @property
    def epoch(self) -> int:
        return self.leadership.lead.epoch if self.leadership.lead else 0

    def append(self, epoch: int, before: End, chain: bytes, payload: bytes) -> bool:
        """Write the frame after `before` if the fence holds."""
        if self.is_full:
            raise EngineFull("no room")
        if (self.epoch, self.head) != (epoch, before):
            return False
        self.head = End(before.seq + 1, chain)
        frame = Frame(self.head.seq, payload, self._next_revision())
        self.frames[frame.seq] = frame
        self._change()
        return True

    def trim(self, below: int) -> None:
        below = min(below, self.head.seq)
        self.frames = {seq: frame for seq, frame in self.frames.items() if seq >= below}

    def changed(self) -> asyncio.Future[None]:
        """Done at the next change."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        return self._changed

    def _next_revision(self) -> int:
        self.revision += 1
        return self.revision

    def _lead(self, leadership: Leadership) -> None:
        self.leadership = leadership
        self._change()

    def _change(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set_result(None)


class Faults:
    """The faults that one replica's requests meet; probabilities are per attempt."""

    def __init__(self, log: MemoryLog) -> None:
        self.random = Random(log.random.getrandbits(64))
        self.delay_s = (0.0, 0.0)
        """The least and the most, each way."""
        self.lost = 0.0
        """The request does not arrive."""
        self.unanswered = 0.0
        """It takes effect, and the response is lost."""
        self.doubled = 0.0
        """It arrives a second time, up to 10 s late."""
        self._open = asyncio.Event()
        self._open.set()

    def mute(self) -> None:
        """Lose every response until `heal`."""
        self.unanswered = 1.0

    def part(self) -> None:
        """Let nothing through until `heal`."""
        self._open.clear()

    def heal(self) -> None:
        self.unanswered = 0.0
        self._open.set()

    def has(self, probability: float) -> bool:
        return self.random.random() < probability

    async def passing(self) -> None:
        """Return when a message has gone one way."""
        await self._open.wait()
        await asyncio.sleep(self.random.uniform(*self.delay_s))


class MemoryEngine:
    """The engine of one replica."""

    def __init__(self, log: MemoryLog, faults: Faults | None = None) -> None:
        self.log = log
        self.faults = faults or Faults(log)

    async def _settle(self, effect: Callable[[], T]) -> tuple[T, bool]:
        """The result of a step, tried until it is known; whether an attempt before was not."""
        faults = self.faults
        is_unsure = False
        while True:
            await faults.passing()
            if not faults.has(faults.lost):
                if faults.has(faults.doubled):
                    again_s = faults.random.uniform(0, 10)
                    asyncio.get_running_loop().call_later(again_s, _ignoring_full, effect)
                result = effect()
                if not faults.has(faults.unanswered):
                    await faults.passing()
                    return result, is_unsure
            is_unsure = True
            await asyncio.sleep(CALL_S)

    async def _call(self, effect: Callable[[], T]) -> T:
        return (await self._settle(effect))[0]

    async def open(
        self, cluster_id: int, seq: int, chain: bytes, *, made_by: str, made_at_ns: int
    ) -> Meta:
        secret = self.faults.random.randbytes(32)
        meta = Meta(cluster_id, secret, made_by, made_at_ns)
        return await self._call(lambda: self.log.open(meta, End(seq, chain)))

    async def campaign(self, me: Candidate) -> Lead | None:
        lease = await self._call(self.log.grant)
        lead = await self._call(lambda: self.log.elect(me, lease))
        if lead is None:
            await self.revoke(lease)
        return lead

    async def append(
        self, epoch: int, seq: int, prev_chain: bytes, chain: bytes, payload: bytes
    ) -> None:
        log = self.log
        is_unsure = False

        def attempt() -> tuple[bool | None, Frame | None, End, int]:
            try:
                is_in = log.append(epoch, End(seq - 1, prev_chain), chain, payload)
            except EngineFull:
                return None, log.frames.get(seq), log.head, log.epoch
            return is_in, log.frames.get(seq), log.head, log.epoch

        while True:
            (is_in, slot, head, current), was_unsure = await self._settle(attempt)
            is_unsure |= was_unsure
            if is_in or (slot and slot.payload == payload) or head == End(seq, chain):
                return
            if is_in is None and not is_unsure:
                raise EngineFull("no room")
            if head.seq > seq and slot is None and is_unsure:
                raise OutcomeUnknown(f"frame {seq} is trimmed")
            if head.seq >= seq or current != epoch:
                raise Fenced(f"the log ends with frame {head.seq}, the epoch is {current}")
            if head != End(seq - 1, prev_chain):
                raise OtherHistory(f"the log ends with frame {head.seq}")
            await asyncio.sleep(CALL_S)

    async def tail(self, after: int) -> AsyncGenerator[Frame | Leadership, None]:
        log = self.log
        returned: Leadership | None = None
        while True:
            await self.faults.passing()
            if log.head.seq < after:
                raise OtherHistory(f"the log ends with frame {log.head.seq}")
            frame = log.frames.get(after + 1)
            leadership = log.leadership
            if frame is None and log.head.seq > after:
                raise Trimmed(f"frame {after + 1} is gone")
            is_next = frame is None or frame.revision > leadership.revision
            if is_next and (returned is None or returned.lead != leadership.lead):
                returned = leadership
                yield leadership
            elif frame is not None:
                after = frame.seq
                yield frame
            else:
                await asyncio.wait([log.changed()])

    async def end(self) -> End:
        return await self._call(self._end)

    def _end(self) -> End:
        if self.log.meta is None:
            raise OtherHistory("the log is gone")
        return self.log.head

    async def confirm(self, epoch: int) -> bool:
        return await self._call(lambda: self.log.epoch == epoch)

    async def renew(self, lead: Lead) -> bool:
        return await self._call(lambda: self.log.renew(lead.lease))

    async def resign(self, lead: Lead) -> None:
        await self.revoke(lead.lease)

    async def revoke(self, lease: int) -> None:
        await self._call(lambda: self.log.revoke(lease))

    async def trim(self, below: int) -> None:
        await self._call(lambda: self.log.trim(below))

    async def room(self) -> Room:
        used = sum(len(frame.payload) for frame in self.log.frames.values())
        return await self._call(lambda: Room(used, used, 1 << 31, self.log.is_full))

    async def report(self, replica: int, document: bytes) -> None:
        await self._call(lambda: self.log.reports.__setitem__(replica, document))

    async def reports(self) -> dict[int, bytes]:
        return await self._call(lambda: dict(self.log.reports))

    async def forget(self, replica: int) -> None:
        await self._call(lambda: self.log.reports.pop(replica, None))

    async def close(self) -> None:
        pass


def _ignoring_full(effect: Callable[[], object]) -> None:
    """Apply a request that has come twice; its response goes nowhere."""
    try:
        effect()
    except EngineFull:
        return

"""A load on the consensus engine of several replicas, which goes on over its faults."""

import asyncio
from collections.abc import Sequence

from kvd.replicas.engine import Candidate, Engine, Fenced, Frame, Lead

START = bytes(8)


def chain(seq: int) -> bytes:
    return seq.to_bytes(8, "big")


class Load:
    """One leader that appends, and followers; frames are numbered from 1, without a gap."""

    def __init__(self, leader: Engine, followers: Sequence[Engine]) -> None:
        self.leader = leader
        self.followers = followers
        self.frames: list[list[Frame]] = [[] for _ in followers]
        self.written = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self.leader.open(7, 0, START, made_by="h1", made_at_ns=17)
        lead = await self.leader.campaign(Candidate(1, "h1", "http://h1", 17))
        assert lead is not None
        self._tasks = [
            asyncio.create_task(self._append(lead)),
            asyncio.create_task(self._renew(lead)),
            *(
                asyncio.create_task(self._follow(*pair))
                for pair in zip(self.followers, self.frames, strict=True)
            ),
        ]

    async def _append(self, lead: Lead) -> None:
        while True:
            after = self.written + 1
            try:
                await self.leader.append(
                    lead.epoch, after, chain(self.written), chain(after), b"%d" % after * 100
                )
            except Fenced:
                # The lease has ended while it could not be renewed: a new election, the same frame.
                end = await self.leader.end()
                assert end.seq in (self.written, after)
                self.written = end.seq
                lead = await self.leader.campaign(Candidate(1, "h1", "http://h1", 17)) or lead
                self._tasks[1].cancel()
                self._tasks[1] = asyncio.create_task(self._renew(lead))
                continue
            self.written = after
            if after % 500 == 0:
                followed = min(len(frames) for frames in self.frames)
                await self.leader.trim(max(1, followed - 200))

    async def _renew(self, lead: Lead) -> None:
        while await self.leader.renew(lead):
            await asyncio.sleep(0.7)

    async def _follow(self, engine: Engine, frames: list[Frame]) -> None:
        async for item in engine.tail(0):
            if isinstance(item, Frame):
                frames.append(item)

    async def more(self, count: int = 100) -> None:
        """Wait until so many more frames were appended and followed."""
        target = self.written + count
        async with asyncio.timeout(60):
            while min(self.written, *(len(frames) for frames in self.frames)) < target:
                for number, task in enumerate(self._tasks):
                    if number != 1 and task.done():
                        task.result()
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for frames in self.frames:
            assert [frame.seq for frame in frames] == [*range(1, len(frames) + 1)]
            assert all(frame.payload == b"%d" % frame.seq * 100 for frame in frames)
        for engine in (self.leader, *self.followers):
            await engine.close()

"""A replica's place in the log: it follows, becomes the leader, leads, and gives that up.

    following  --no leader, campaign won-->  promoting  --own leadership read-->  leading
        ^                                                                           |
        +---------- batch in flight ended ---  fenced  <--- epoch or lease ended ---+

A follower applies each frame of the log and begins nothing. The tail has every frame of earlier
epochs before a leadership: a replica that reads its own has applied all that was written before,
and may decide. A leader skips the tail's frames, which are its own; when it is fenced, the tail
starts again after its store's last frame, so that nothing depends on what became of its last
append.

Silence of the engine is no reason to give up the lead: an append waits, and the fence decides.

What comes out of the tail is reported in its order: `on_leadership` is called when every frame of
earlier epochs is in the store, and for the own one when batches may begin. One that ends the own
lead is reported after what was in flight has ended, and the tail was read again from there.
"""

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from kvd.replicas.engine import (
    Candidate,
    End,
    Engine,
    EngineFull,
    Fenced,
    Frame,
    Lead,
    Leadership,
    OtherHistory,
    OutcomeUnknown,
    Trimmed,
)

log = logging.getLogger(__name__)

CAMPAIGN_S = 1.0
"""Between two campaigns while there is no leader: one that was lost may have been won in vain."""
PAUSE_S = 5.0
"""Without a campaign after the lead was handed over, so that another replica takes it."""


class State(StrEnum):
    """As in the picture above."""

    FOLLOWING = "following"
    PROMOTING = "promoting"
    LEADING = "leading"
    FENCED = "fenced"


class Member(Protocol):
    """The server of a replica: its store, and the gate before its batches."""

    @property
    def end(self) -> End:
        """The last frame in the store."""

    async def apply(self, payload: bytes) -> None:
        """Make the next frame of the log part of the store.

        Raises:
            OtherHistory: it does not continue the store.
        """

    def open_gate(self) -> None:
        """Let batches begin; each is given to `Replica.append`, one at a time."""

    async def close_gate(self) -> None:
        """Let no batch begin; return once the one in flight has ended, in the store or aborted."""


class Replica:
    """Runs one member on the log of an engine.

    Attributes:
        state: See above.
        leadership: The leader, as far as the tail was read.
    """

    def __init__(
        self,
        engine: Engine,
        me: Candidate,
        member: Member,
        *,
        lease_s: float = 3.0,
        on_state: Callable[[State], None] = lambda _: None,
        on_leadership: Callable[[Leadership], None] = lambda _: None,
    ) -> None:
        """`me.since_ns` tells this run from earlier ones of the same replica."""
        self._engine = engine
        self._me = me
        self._member = member
        self._lease_s = lease_s
        self._on_state = on_state
        self._on_leadership = on_leadership
        self._lead: Lead | None = None
        """The own one, from the campaign or the tail until it has ended."""
        self._fenced = asyncio.Event()
        self._is_handed_over = asyncio.Event()
        self._is_handed_over.set()
        self._campaigns_at = 0.0
        """In the loop's time."""
        self._vacant = asyncio.Event()
        self._applying: asyncio.Future[None] | None = None
        self.state = State.FOLLOWING
        self.leadership = Leadership(0)

    async def run(self) -> None:
        """Follow and lead until an error.

        Raises:
            Trimmed: the store is behind the log: a snapshot is to be installed.
            OtherHistory: the store and the log have different histories.
            EngineRefused: see there.
        """
        await self.check_history()
        while True:
            await self._term()
            await self._step_down()

    async def _term(self) -> None:
        """Follow, and lead at the end, until the lead is lost."""
        self._fenced.clear()
        parts = (self._read(), self._fenced.wait(), self._campaign(), self._renew())
        tasks = [asyncio.ensure_future(part) for part in parts]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            if self._applying is not None:
                await self._applying
                self._applying = None

    async def check_history(self) -> None:
        """Compare the store's last frame with the log's.

        Raises:
            OtherHistory: the log ends before it, or with another history at the same frame.
        """
        own, end = self._member.end, await self._engine.end()
        if end.seq < own.seq:
            raise OtherHistory(
                f"the engine's log ends with frame {end.seq}, before this replica's frame {own.seq}"
            )
        if end.seq == own.seq and end.chain != own.chain:
            raise OtherHistory(
                f"frame {end.seq} of the engine's log has chain {end.chain.hex()}, this replica's "
                f"has {own.chain.hex()}"
            )

    async def append(self, seq: int, prev_chain: bytes, chain: bytes, payload: bytes) -> None:
        """Write the member's next batch; on return it is durable, and the store may have it.

        Raises:
            Fenced: not written: its commands are to be decided by the next leader.
            OutcomeUnknown: see there: its clients are told so.
            EngineFull: not written: its commands are refused.
        """
        lead = self._lead
        if self.state is not State.LEADING or lead is None:
            raise Fenced("this replica does not lead")
        try:
            await self._engine.append(lead.epoch, seq, prev_chain, chain, payload)
        except (Fenced, OutcomeUnknown):
            self._fenced.set()
            raise

    async def confirm(self) -> bool:
        """Return whether this replica still leads; linearizable."""
        lead = self._lead
        if self.state is not State.LEADING or lead is None:
            return False
        if await self._engine.confirm(lead.epoch):
            return True
        self._fenced.set()
        return False

    async def hand_over(self, *, for_good: bool = False) -> None:
        """End what is in flight, and let another replica lead; return when it may.

        With `for_good`, at the stop of the server, this one does not campaign again.
        """
        self._pause(math.inf if for_good else PAUSE_S)
        if self._lead is not None:
            self._is_handed_over.clear()
            self._fenced.set()
        await self._is_handed_over.wait()

    async def give_up(self) -> None:
        """Let another replica lead, though a batch that the engine has is still in flight here."""
        self._pause(PAUSE_S)
        lead = self._lead
        if lead is not None:
            await self._engine.resign(lead)

    def _pause(self, seconds: float) -> None:
        now = asyncio.get_running_loop().time()
        self._campaigns_at = max(self._campaigns_at, now + seconds)

    async def _read(self) -> None:
        """Take the items of the tail, until the lead is lost."""
        while True:
            after = self._member.end.seq
            try:
                await self._read_after(after)
            except Trimmed:
                # A leader has in its store what its tail was late to read.
                if self._member.end.seq == after:
                    raise
            else:
                return

    async def _read_after(self, seq: int) -> None:
        async with contextlib.aclosing(self._engine.tail(seq)) as items:
            async for item in items:
                if isinstance(item, Leadership):
                    if not self._take_leadership(item):
                        return
                elif self.state is not State.LEADING:
                    await self._follow(item)

    async def _follow(self, frame: Frame) -> None:
        # What has begun is ended before another frame, or a batch of its own, begins.
        self._applying = asyncio.ensure_future(self._member.apply(frame.payload))
        await asyncio.shield(self._applying)
        self._applying = None

    def _take_leadership(self, leadership: Leadership) -> bool:
        """Lead if it is the own one; False when the own one has ended."""
        self.leadership = leadership
        if leadership.lead is None:
            self._vacant.set()
        if self.state is State.LEADING:
            return leadership.lead == self._lead
        if leadership.leader == self._me:
            self._lead = leadership.lead
            if self._is_paused:  # won by a campaign that has begun before
                self._is_handed_over.clear()
                return False
            self._enter(State.LEADING)
            log.info("leading from frame %d on", self._member.end.seq)
            self._member.open_gate()
        elif self._lead is not None and self._lead.epoch < leadership.revision:
            self._lead = None
            self._enter(State.FOLLOWING)
        self._on_leadership(leadership)
        return True

    async def _campaign(self) -> None:
        """Become the leader whenever there is none."""
        while True:
            self._vacant.clear()
            if self._may_campaign:
                with contextlib.suppress(EngineFull):
                    self._won(await self._engine.campaign(self._me))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CAMPAIGN_S):  # `wait_for` may lose a cancellation
                    await self._vacant.wait()

    @property
    def _may_campaign(self) -> bool:
        is_vacant = self.state is State.FOLLOWING and self.leadership.lead is None
        return is_vacant and not self._is_paused

    @property
    def _is_paused(self) -> bool:
        return asyncio.get_running_loop().time() < self._campaigns_at

    def _won(self, lead: Lead | None) -> None:
        """Wait for the own leadership in the tail, unless the tail has passed it."""
        if lead is None or self.state is not State.FOLLOWING:
            return
        if lead.epoch > self.leadership.revision:
            self._lead = lead
            self._enter(State.PROMOTING)

    async def _renew(self) -> None:
        """Keep the own lease; its end is the end of leading."""
        while True:
            await asyncio.sleep(self._lease_s / 4)
            lead = self._lead
            if lead is not None and not await self._engine.renew(lead):
                self._fenced.set()

    async def _step_down(self) -> None:
        """Leave the lead: nothing begins, and what is in flight ends by its fence."""
        self._enter(State.FENCED)
        await self._member.close_gate()
        if self._lead is not None and not self._is_handed_over.is_set():
            await self._engine.resign(self._lead)
        self._lead = None
        self._enter(State.FOLLOWING)
        self._is_handed_over.set()

    def _enter(self, state: State) -> None:
        self.state = state
        self._on_state(state)

"""Writes at a replica that does not lead: the leader decides them, the log answers them.

A command goes to the leader under a rid, and the records that come of it carry that. So a success
needs no message: this replica responds when it applies the batch, and its client then reads here
what it wrote. A refusal comes over the link, and is passed on once the state that it was decided on
is applied here.

Exactly once: a command is sent for the epoch of one leader, which decides it in that lead or never.
The tail of the log gives a leadership after every frame of earlier epochs. So a command that was
sent for an earlier epoch, and has not come out of the log when a new leadership does, was not
written and never will be: it is sent again to the new leader. Leaders are known from the tail only;
nothing else may make a command be sent again, but the loss of the link to the same leader, which
queues no rid twice in one lead (received.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from kvd.core.clock import Clock
from kvd.core.committer import Committer
from kvd.core.replicated.rids import Forwarded
from kvd.core.stats import StoreStats
from kvd.replicas.engine import Candidate, Leadership
from kvd.replicas.forwarding.command_codec import plain, refusal_from_plain
from kvd.replicas.forwarding.pending import Pending, Waiting
from kvd.replicas.forwarding.received import Received, Sender
from kvd.replicas.links import LinkError
from kvd.replicas.read_index import Applied
from kvd.replicas.replica import State
from kvd.v2.commands import Transaction

MESSAGE_BYTES = 1 << 20
"""About how much goes in one message, unless one command alone is larger."""
UNKNOWN = b"outcome unknown: this replica has installed a snapshot meanwhile"

Awaited = tuple[Any, Callable[[Any], None]]


class Found(Mapping[bytes, Awaited]):
    """The commands that a batch of the log answers: looked up by rid, and taken from the pending.

    While the batch is being applied nothing else may respond to it; without room here it goes back.
    """

    def __init__(self, pending: Pending) -> None:
        self._pending = pending
        self.taken: dict[bytes, Waiting] = {}

    def get(self, rid: bytes, default: Any = None) -> Any:
        """Return the command and its callback, or the default."""
        if not rid:
            return default
        waiting = self.taken.get(rid) or self._pending.take(rid)
        if waiting is None:
            return default
        self.taken[rid] = waiting
        return waiting.command, waiting.done

    def __getitem__(self, rid: bytes) -> Awaited:
        waiting = self.taken[rid]
        return waiting.command, waiting.done

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.taken)

    def __len__(self) -> int:
        return len(self.taken)


class Forwarding:
    """Forwards what the closed gate of a committer holds back, and takes what others forward."""

    def __init__(
        self,
        *,
        committer: Committer,
        clock: Clock,
        stats: StoreStats,
        applied: Applied,
        me: Candidate,
    ) -> None:
        """`applied` observes the batches of the committer."""
        self._committer = committer
        assert committer.leading is not None
        self._leading = committer.leading
        self._applied = applied
        self._me = me
        self._pending = Pending(clock, stats, applied.forget)
        self._received = Received(committer, lambda: applied.seq)
        self._link: Sender | None = None
        self._revision = 0
        self._reached: list[tuple[int, asyncio.Future[None]]] = []
        self.on_applied: Callable[[], object] = lambda: None
        """Called when a batch of the log was applied."""
        committer.on_held = self.on_held

    @property
    def pending(self) -> int:
        """The number of commands that wait for another replica."""
        return len(self._pending)

    @property
    def pending_bytes(self) -> int:
        """About how many bytes they have."""
        return self._pending.bytes

    async def follow(self, payload: bytes) -> bool:
        """Apply a batch of the log, and respond to those of its commands that came from here.

        Return and raise as `Committer.follow`.
        """
        found = Found(self._pending)
        is_applied = False
        try:
            is_applied = await self._committer.follow(payload, found)
        finally:
            if not is_applied:
                self._pending.put_back(found.taken.items())
        if is_applied:
            self.on_applied()
        return is_applied

    def on_held(self) -> None:
        """Take what the closed gate holds back: forward it, or give it back to its replica."""
        commands, documents = self._committer.take_held()
        came = self._leading.came
        held = [*commands, *((command, done, came(done)) for command, done in documents)]
        self._received.give_back([done.rid for _, done, _ in held if isinstance(done, Forwarded)])
        added = [
            self._pending.add(command, done, came)
            for command, done, came in held
            if not isinstance(done, Forwarded)
        ]
        self._send([item for item in added if item is not None])

    def on_leadership(self, leadership: Leadership) -> None:
        """Note a leadership that came out of the tail: nothing of earlier epochs can still come."""
        self._revision = leadership.revision
        self._pending.epoch = leadership.lead.epoch if leadership.lead is not None else 0
        self._link = None
        if leadership.leader == self._me and leadership.lead is not None:
            self._received.begin(leadership.lead.epoch)
            self._decide_here()
        for revision, future in self._reached:
            if revision <= self._revision and not future.done():
                future.set_result(None)
        self._reached = [waits for waits in self._reached if not waits[1].done()]

    def on_state(self, state: State) -> None:
        """Take nothing more from others, once the lead is being given up."""
        if state is State.FENCED:
            self._received.end()

    def lost(self) -> None:
        """Respond to what may be in the frames that a snapshot has replaced."""
        self._applied.look()
        self._pending.refuse_those(UNKNOWN, lambda waiting: waiting.epoch != 0)

    async def drain(self) -> None:
        """Wait until no own client waits for another replica; each has its time."""
        await self._pending.drained()

    def stop(self) -> None:
        """Respond to those that still wait."""
        self._received.end()
        self._pending.close()
        for _, reached in self._reached:
            reached.cancel()

    def link_up(self, link: Sender, epoch: int) -> None:
        """Send all that waits over a new link to the leader of an epoch."""
        if epoch == self._pending.epoch and epoch != self._received.epoch:
            self._link = link
            self._send(self._pending.in_order())

    def link_down(self, link: Sender) -> None:
        """Send nothing more over a link, to a leader or from another replica."""
        if self._link is link:
            self._link = None
        self._received.unlink(link)

    async def take_commands(self, link: Sender, epoch: int, items: list[Any]) -> None:
        """Queue what another replica has forwarded, once the tail has come to that epoch.

        Raises:
            LinkError: it is no such message, or the link has ended.
        """
        while self._revision < epoch:
            future = asyncio.get_running_loop().create_future()
            self._reached.append((epoch, future))
            await future
        self._received.take(link, epoch, items)

    def take_answer(self, name: str, fields: list[Any]) -> None:
        """Take a message of the leader about commands that came from here.

        Raises:
            LinkError: it is none.
        """
        epoch = fields[0]
        if name == "notleader":
            for rid in fields[1]:
                waiting = self._sent(rid, epoch)
                if waiting is not None:
                    waiting.epoch = 0
            return
        rid, seq = fields[1:3]
        waiting = self._sent(rid, epoch)
        if waiting is None or waiting.refusal is not None:
            return
        call = partial(self._done, rid) if name == "done" else self._refusal(rid, fields[3])
        waiting.refusal = self._applied.when(seq, call)

    def _refusal(self, rid: bytes, item: Any) -> Callable[[], None]:
        try:
            refusal = refusal_from_plain(item)
        except ValueError as error:
            raise LinkError(str(error)) from None
        return partial(self._pending.refuse, rid, refusal)

    def _sent(self, rid: Any, epoch: int) -> Waiting | None:
        """Return what was sent for this epoch under a rid, and has no outcome yet."""
        waiting = self._pending.find(rid) if isinstance(rid, bytes) else None
        return waiting if waiting is not None and waiting.epoch == epoch else None

    def _done(self, rid: bytes) -> None:
        """Respond to a transaction without operations, whose conditions hold."""
        waiting = self._pending.find(rid)
        if waiting is not None and isinstance(waiting.command, Transaction):
            self._pending.take(rid)
            waiting.done([])

    def _send(self, items: list[tuple[bytes, Waiting]]) -> None:
        """Send commands to the leader, in their order; what cannot be sent goes by a new link."""
        link, epoch = self._link, self._pending.epoch
        if link is None:
            return
        message: list[Any] = []
        size = 0
        with suppress(LinkError):
            for rid, waiting in items:
                message.append([rid, plain(waiting.command)])
                waiting.epoch = epoch
                size += waiting.size
                if size >= MESSAGE_BYTES:
                    link.send("cmd", epoch, message)
                    message, size = [], 0
            if message:
                link.send("cmd", epoch, message)

    def _decide_here(self) -> None:
        """Queue what waits here: nothing of it was written, and the own gate has just opened."""
        waited = [waiting for _, waiting in self._pending.take_all()]
        self._leading.put_back(
            [(one.command, one.done, one.came) for one in waited if one.is_of_keys],
            [(one.command, one.done, one.came) for one in waited if not one.is_of_keys],
        )

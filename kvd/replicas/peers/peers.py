"""The links of one replica: to the leader while it follows, from its followers while it leads.

A follower keeps a link to the leader that the tail of the log names, and makes it again whenever it
ends. Both sides send something each second; a link on which nothing came for `SILENCE_S` ends, so
that what waits for a machine that has gone is sent again.

Where the leader's process is gone, and its machine is there, connections to it are refused. Three
of them in a row, after a link to that process, and its lease is revoked: another replica leads a
second or two sooner than without. If that was wrong it costs a change of leader and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from kvd.logs import RateLimit
from kvd.replicas.engine import Candidate, EngineError, Leadership
from kvd.replicas.links import LinkError, LinkRefused
from kvd.replicas.peers.interfaces import AnyLink, Follower, Forwards, Network

log = logging.getLogger(__name__)

ALIVE_S = 1.0
"""How often each side sends something."""
SILENCE_S = 4.0
"""A link on which nothing comes for so long has ended."""
REFUSALS = 3
"""So many refused connections in a row mean that no process listens there."""
REFUSED_S = 0.02
"""The time between them."""
REVOKE_S = 10.0
"""How long a revocation is tried: the engine may be electing a leader of its own."""
LASTING_S = 0.5
"""A link that ends sooner is not made again at once."""
WARN_S = 2.0
"""A leader that has just ended is replaced before that."""
_RETRY_S_MIN, _RETRY_S_MAX = 0.05, 1.0
_QUIET_S = 60.0


class Peers:
    """Makes the links, and passes on what comes.

    Attributes:
        followers: Those that are linked to this replica, by id.
    """

    def __init__(
        self,
        *,
        me: Candidate,
        forwarding: Forwards,
        network: Network,
        revoke: Callable[[int], Awaitable[None]],
        applied_seq: Callable[[], int],
        durable: Callable[[], int],
        on_applied: Callable[[int, int, int], object] = lambda *_: None,
        serve_snapshot: Callable[[Any, int], Awaitable[None]] | None = None,
    ) -> None:
        """Begin without any link.

        Args:
            me: this replica, as in its campaigns.
            forwarding: gets the messages about commands.
            network: connects.
            revoke: ends a lease.
            applied_seq: the last frame that is applied here.
            durable: the last one on the disk here.
            on_applied: gets the id of a follower with what it has applied, and has on its disk.
            serve_snapshot: sends a snapshot that reaches a frame over a link.
        """
        self._me = me
        self._forwarding = forwarding
        self._network = network
        self._revoke = revoke
        self._applied_seq = applied_seq
        self._durable = durable
        self._on_applied = on_applied
        self._serve_snapshot = serve_snapshot
        self._loop = asyncio.get_running_loop()
        self._leadership = Leadership(0)
        # The leader's process to which there was a link.
        self._met: Candidate | None = None
        self._link: AnyLink | None = None
        self._heard = 0.0
        self._is_due = False
        self._dialing: asyncio.Task[None] | None = None
        self._revoking: set[asyncio.Task[None]] = set()
        self._warnings = RateLimit(_QUIET_S)
        self.followers: dict[int, Follower] = {}
        self._ticking: asyncio.Task[None] | None = None
        forwarding.on_applied = self.note_applied

    async def listen(self, urls: Sequence[Any]) -> None:
        """Accept links, before this replica can be a leader."""
        self._ticking = self._loop.create_task(self._tick())
        await self._network.listen(urls, self._serve)

    def on_leadership(self, leadership: Leadership) -> None:
        """Keep a link to the leader that the tail of the log names."""
        if self._link is not None and leadership.lead == self._leadership.lead:
            self._forwarding.link_up(self._link, self._epoch)
            return
        self._leadership = leadership
        if self._dialing is not None:
            self._dialing.cancel()
            self._dialing = None
        leader, lead = leadership.leader, leadership.lead
        if leader is None or lead is None or leader == self._me:
            return
        if leader.id == self._me.id:
            # An earlier process of this replica, which has ended: the data directory is locked.
            self._end_lease(lead.lease)
        else:
            self._dialing = self._loop.create_task(self._keep_link(leader))

    def note_applied(self) -> None:
        """Report what is applied here to the leader, once in this turn of the loop."""
        if self._link is not None and not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._report)

    async def dial(self, url: str) -> AnyLink:
        """Connect to another replica, for a snapshot.

        Raises:
            LinkError: it cannot be reached.
        """
        return await self._network.dial(url)

    async def close(self) -> None:
        """End all links, and make none."""
        tasks = [task for task in (self._ticking, self._dialing, *self._revoking) if task]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._network.close()

    @property
    def _epoch(self) -> int:
        lead = self._leadership.lead
        return lead.epoch if lead is not None else 0

    async def _keep_link(self, leader: Candidate) -> None:
        """Have a link to the leader, until this is cancelled."""
        refusals, wait_s, since = 0, _RETRY_S_MIN, self._loop.time()
        while True:
            error = await self._try_link(leader)
            is_refused = isinstance(error, LinkRefused)
            refusals = refusals + 1 if is_refused else 0
            if refusals == REFUSALS and self._met == leader:
                self._vacate(leader)
            if error is None:
                wait_s, since = _RETRY_S_MIN, self._loop.time()
            elif self._loop.time() - since >= WARN_S:
                self._warn(leader, error)
            if (error is None or is_refused) and refusals < REFUSALS and self._met == leader:
                await asyncio.sleep(REFUSED_S)
            else:
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, _RETRY_S_MAX)

    async def _try_link(self, leader: Candidate) -> LinkError | None:
        """Forward over a link until it ends; return why there was none, or None."""
        try:
            link = await self._network.dial(leader.peer)
        except LinkError as error:
            return error
        if link.peer.id != leader.id:
            link.close()
            return LinkError(f"replica {link.peer.id:x} is there")
        began = self._loop.time()
        await self._use(link, leader)
        lasted_s = self._loop.time() - began
        return None if lasted_s >= LASTING_S else LinkError("the link has ended at once")

    def _warn(self, leader: Candidate, error: LinkError) -> None:
        if self._warnings.allow():
            log.warning(
                "the leader %s at %s cannot be reached, writes wait for it: %s%s",
                leader.name,
                leader.peer,
                error,
                self._warnings.suppressed(),
            )

    async def _use(self, link: AnyLink, leader: Candidate) -> None:
        """Forward over a link until it ends."""
        try:
            self._met, self._link, self._heard = leader, link, self._loop.time()
            self._report()
            self._forwarding.link_up(link, self._epoch)
            while True:
                name, fields = await link.receive()
                self._heard = self._loop.time()
                if name in ("no", "done", "notleader"):
                    self._forwarding.take_answer(name, fields)
                elif name != "alive":
                    self._warn(leader, LinkError(f"its message {name!r} is for no follower"))
                    return
        except LinkError as error:
            log.debug("the link to %s has ended: %s", leader.name, error)
        finally:
            self._link = None
            self._forwarding.link_down(link)
            link.close()

    def _report(self) -> None:
        self._is_due = False
        if self._link is not None:
            with suppress(LinkError):
                self._link.send("applied", self._applied_seq(), self._durable())

    def _vacate(self, leader: Candidate) -> None:
        """End the lease of a leader whose process is gone."""
        log.info("the process of the leader %s has ended: another replica may lead", leader.name)
        assert self._leadership.lead is not None
        self._end_lease(self._leadership.lead.lease)

    def _end_lease(self, lease: int) -> None:
        task = self._loop.create_task(self._try_to_end(lease))
        self._revoking.add(task)
        task.add_done_callback(self._revoking.discard)

    async def _try_to_end(self, lease: int) -> None:
        with suppress(TimeoutError, EngineError):  # then the lease ends with its time
            async with asyncio.timeout(REVOKE_S):
                await self._revoke(lease)

    async def _serve(self, link: AnyLink) -> None:
        """Take what another replica sends, until its link ends."""
        peer = Follower(link, self._loop.time())
        try:
            name, fields = await link.receive()
            if name == "snapshot":
                if self._serve_snapshot is not None:
                    await self._serve_snapshot(link, fields[0])
                return
            self.followers[peer.hello.id] = peer
            while True:
                await self._take(peer, name, fields)
                name, fields = await link.receive()
        except LinkError as error:
            log.debug("the link from replica %x has ended: %s", peer.hello.id, error)
        finally:
            if self.followers.get(peer.hello.id) is peer:
                del self.followers[peer.hello.id]
            self._forwarding.link_down(link)
            link.close()

    async def _take(self, peer: Follower, name: str, fields: list[Any]) -> None:
        peer.heard = self._loop.time()
        if name == "cmd":
            await self._forwarding.take_commands(peer.link, *fields)
        elif name == "applied":
            peer.applied, peer.durable = fields
            self._on_applied(peer.hello.id, *fields)
        else:
            raise LinkError(f"a message {name!r} of a follower")

    async def _tick(self) -> None:
        """Each second, send something on each link, and end those on which nothing comes."""
        while True:
            await asyncio.sleep(ALIVE_S)
            before = self._loop.time() - SILENCE_S
            self._report()
            if self._link is not None and self._heard < before:
                self._link.close()
            for follower in [*self.followers.values()]:
                if follower.heard < before:
                    follower.link.close()
                with suppress(LinkError):
                    follower.link.send("alive")

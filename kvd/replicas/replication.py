"""One replica, put together: its engine, its place in the log, and the parts of its server.

In the order of a server's life:

    meet       the engine has a log, or makes one; the ids of a new store are those of the log
    enter      the store that was opened belongs to the log, or gets a snapshot of another's
    member_of  what the committer appends to
    attach     the parts of the server are made
    start      links, reports, the tail; it returns when the store has all that the log had
    hand_over  stop: what is in flight ends, another replica leads and gets what is left
    stop       the rest

An error of the engine that ends a replica is `Detached`: it serves nothing, and says why.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from kvd.core.background.housekeeping import Housekeeping
from kvd.core.clock import Clock
from kvd.core.committer import Committer
from kvd.core.stats import StoreStats
from kvd.core.ticker import Ticker
from kvd.replicas.engine import Candidate, Engine, EngineError, Leadership, Meta, Trimmed
from kvd.replicas.entry import Detached, Entry, detached
from kvd.replicas.forwarding.forwarding import Forwarding
from kvd.replicas.joining import NoSource, install_newest
from kvd.replicas.links import Hello
from kvd.replicas.member import OwnLog, StoreMember
from kvd.replicas.peers.interfaces import Network
from kvd.replicas.peers.network import TcpNetwork
from kvd.replicas.peers.peers import Peers
from kvd.replicas.read_index import Applied, ReadIndex
from kvd.replicas.registration import Registration
from kvd.replicas.replica import Replica, State
from kvd.replicas.settings import MakeNetwork, Settings
from kvd.replicas.snapshots import Snapshots
from kvd.replicas.standing.standing import ReplicaStanding
from kvd.replicas.upkeep.report import JOINING, Report
from kvd.replicas.upkeep.upkeep import Upkeep
from kvd.storage.format.identity import NewIds
from kvd.storage.format.payload import VERSION_SHA256
from kvd.storage.store import Store
from kvd.v2.documents.members import Member, is_removed

log = logging.getLogger(__name__)

T = TypeVar("T")

DEADLINES_S = 0.25
"""How often it is looked for clients that have waited for too long."""
STOP_S = 2.0
"""How long a stop waits for an engine that is silent: the lease ends anyway."""


class _Notes:
    """Notes of batches, for those that make figures of them."""

    def __init__(self, standing: ReplicaStanding, upkeep: Upkeep) -> None:
        self._upkeep = upkeep
        self._standing = standing
        self.append_began = standing.append_began
        self.append_ended = standing.append_ended
        self.applied = standing.applied

    def append_answered(self, seq: int, size: int) -> None:
        """The engine has written frame `seq`."""
        self._standing.append_answered(seq, size)
        self._upkeep.appended(size)


class Replication:
    """One replica, from the start of its server to its stop.

    Attributes:
        applied: Calls back when a frame is applied: an observer of the committer's batches.
        standing: The place among the replicas, as routes show it.
        replica: The place in the log.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        *,
        fail: Callable[[BaseException], None],
        on_behind: Callable[[], object],
        network: MakeNetwork | None = None,
    ) -> None:
        """`fail` ends the server; `on_behind` is called once a snapshot has to be installed."""
        self._settings = settings
        self._engine = engine
        self._fail = fail
        self._on_behind = on_behind
        self._new_network = network or self._tcp
        self._entry = Entry(settings.place, engine)
        self._network: Network
        self._store: Store
        self._me: Candidate
        self._own_log: OwnLog
        self._member: StoreMember
        self._upkeep: Upkeep
        self._forwarding: Forwarding
        self._peers: Peers
        self._registration: Registration
        self._reads: ReadIndex
        self._is_attached = self._is_interrupted = False
        self._starting: asyncio.Future[Any] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._tickers: list[Ticker] = []
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.applied: Applied
        self.standing: ReplicaStanding
        self.replica: Replica

    # Start

    async def meet(self, proposed: NewIds | None) -> NewIds | None:
        """Return the ids of the store, if it is to be made; as `Entry.meet`.

        Raises:
            Detached: as there.
        """
        return await self._unless_interrupted(self._entry.meet(proposed))

    async def enter(self, store: Store, reopen: Callable[[], Store]) -> None:
        """Take a store that goes on with the log; `reopen` opens it again, on a thread.

        If the log was trimmed past it, it is closed, and gets the content of another replica.

        Raises:
            Detached: as for `Entry.enter`, or no other replica gives a snapshot.
            StorageError, OSError: a snapshot could not be installed.
        """
        meta = await self._unless_interrupted(self._entry.enter(store))
        place, member_id = self._settings.place, store.identity.member_id
        self._me = Candidate(
            member_id, place.member, self._settings.peer_urls[0], since_ns=time.time_ns()
        )
        hello = Hello(member_id, self._settings.version, VERSION_SHA256)
        self._network = self._new_network(meta, hello)
        while await self._unless_interrupted(self._entry.is_behind(store)):
            store = await self._install(store, reopen)
        self._store = store
        now = asyncio.get_running_loop().time
        self.standing = ReplicaStanding(
            member_id, now=now, clock_ns=time.time_ns, timer=time.monotonic
        )
        self.applied = Applied(store)

    async def _install(self, store: Store, reopen: Callable[[], Store]) -> Store:
        dial: Any = self._network.dial
        try:
            describe, wait = partial(self._report_of, JOINING), self._unless_interrupted
            return await install_newest(
                store, reopen, self._engine, self._me, dial, describe=describe, wait=wait
            )
        except NoSource as error:
            raise Detached(f"{self._settings.place.data_dir}: {error}") from error

    def member_of(self, own_log: OwnLog) -> StoreMember:
        """Return what the committer appends to."""
        limits = self._settings.history_limit, self._settings.history_bytes
        self._own_log = own_log
        self._member = StoreMember(
            self._store,
            own_log,
            first_records=lambda: tuple(self._store.start_records(*limits)),
            on_fatal=self._end,
        )
        return self._member

    def attach(
        self, committer: Committer, clock: Clock, stats: StoreStats, housekeeping: Housekeeping
    ) -> None:
        """Connect the parts of the server."""
        assert committer.leading is not None
        engine = self._engine
        self._is_attached = True
        self.replica = Replica(
            engine,
            self._me,
            self._member,
            lease_s=self._settings.lease_s,
            on_state=self._on_state,
            on_leadership=self._on_leadership,
        )
        self.standing.resign = self.replica.hand_over
        self._upkeep = self.standing.upkeep = Upkeep(
            engine,
            self._me.id,
            self._describe,
            leads=lambda: self.replica.state is State.LEADING,
            on_room=committer.leading.refuse_writes,
            is_removed=lambda replica: is_removed(self._store.view, replica),
        )
        self._forwarding = Forwarding(
            committer=committer, clock=clock, stats=stats, applied=self.applied, me=self._me
        )
        self._peers = self._make_peers(housekeeping)
        own = Member(
            self._me.name, self._me.id, self._settings.client_urls, self._settings.peer_urls
        )
        self._registration = Registration(self._store, committer, own, self._removed)
        self._reads = ReadIndex(engine, self.applied)
        notes = _Notes(self.standing, self._upkeep)
        self._member.connect(committer, self.replica, notes, self._forwarding.follow)
        loop = asyncio.get_running_loop()
        deadlines = Ticker(loop, DEADLINES_S, {"deadlines": committer.leading.tick}, self._fail)
        self._tickers.append(deadlines)

    def _make_peers(self, housekeeping: Housekeeping) -> Peers:
        return Peers(
            me=self._me,
            forwarding=self._forwarding,
            network=self._network,
            revoke=self._engine.revoke,
            applied_seq=lambda: self._store.applied.seq,
            durable=lambda: self._own_log.durable,
            on_applied=lambda replica, seq, _: self.standing.follower_applied(replica, seq),
            serve_snapshot=Snapshots(self._store, housekeeping).serve,
        )

    def _tcp(self, meta: Meta, hello: Hello) -> Network:
        return TcpNetwork(meta.secret, hello, self._settings.peer_tls)

    async def start(self) -> None:
        """Take part; return when the store has all that the log had, or the replica has ended.

        Raises:
            OSError: an address for other replicas cannot be listened on.
            Detached: the engine cannot be used.
        """
        await self._unless_interrupted(self._start())

    def interrupt(self) -> None:
        """End a start that waits for the engine: it raises CancelledError."""
        self._is_interrupted = True
        if self._starting is not None:
            self._starting.cancel()

    async def _unless_interrupted(self, part: Coroutine[Any, Any, T]) -> T:
        """Wait for a part of the start that may take as long as the engine is silent."""
        starting: asyncio.Task[T] = asyncio.ensure_future(part)
        self._starting = starting
        if self._is_interrupted:
            starting.cancel()
        try:
            return await starting
        finally:
            self._starting = None

    async def _start(self) -> None:
        self._registration.look()
        await self._peers.listen(self._settings.listen_peers)
        self._run(self.replica.run())
        self._run(self._upkeep.run())
        self._run(self.standing.watch(self._engine))
        try:
            end = await self._engine.end()
        except EngineError as error:
            raise detached(error) from error
        caught_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.applied.when(end.seq, partial(caught_up.set_result, None))
        await asyncio.wait([caught_up, self._ended], return_when=asyncio.FIRST_COMPLETED)

    async def catch_up(self) -> None:
        """Return once all that was acknowledged before this call is visible here.

        Raises:
            ApiError: it took too long.
        """
        await self._reads.catch_up()

    # Stop

    async def hand_over(self) -> None:
        """End what is in flight; let another replica lead, and decide what waits here."""
        try:
            async with asyncio.timeout(STOP_S):
                await self.replica.hand_over(for_good=True)
        except TimeoutError:
            log.warning("the engine is silent: the lead ends with its lease")
            self._member.abandon()
        await self._forwarding.drain()

    async def stop(self) -> None:
        """End all that runs, and the connections to the engine and to other replicas."""
        for ticker in self._tickers:
            ticker.stop()
        if self._is_attached:
            self._member.stop()
            self._registration.stop()
            self._forwarding.stop()
            self._reads.close()
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._is_attached:
            await self._peers.close()
        await self._engine.close()

    # What happens

    def _on_state(self, state: State) -> None:
        self.standing.enter(state)
        self._forwarding.on_state(state)

    def _on_leadership(self, leadership: Leadership) -> None:
        self.standing.led_by(leadership)
        self._forwarding.on_leadership(leadership)
        self._peers.on_leadership(leadership)
        self._registration.on_leadership(leadership)

    def _removed(self) -> None:
        data_dir = self._settings.place.data_dir
        self._end(Detached(f"{data_dir}: this replica was removed from the cluster"))

    def _describe(self) -> Report:
        applied, durable = self._store.applied.seq, self._own_log.durable
        return self._report_of(self.replica.state, durable, applied)

    def _report_of(self, state: str, durable: int, applied: int = 0) -> Report:
        name, peer, urls = self._me.name, self._me.peer, self._settings.client_urls
        version, at_ns = self._settings.version, time.time_ns()
        return Report(
            name, peer, urls, state, applied, durable, version, reads=VERSION_SHA256, at_ns=at_ns
        )

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._end(error)

    def _end(self, error: BaseException) -> None:
        if not self._ended.done():
            self._ended.set_result(None)
        if isinstance(error, Trimmed):
            self._on_behind()
            return
        error = detached(error)
        if isinstance(error, Detached):
            self.standing.detached(str(error))
        self._fail(error)

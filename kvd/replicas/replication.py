"""One replica, put together: its engine, its place in the log, and the server's parts that meet it.

In the order of a server's life:

    meet      the engine has a log, or makes one; the ids of a new store are those of the log
    enter     the store that was opened is the beginning of the log, or a snapshot takes its place
    member    what the committer appends to
    attach    the parts of the server are made
    start     links, reports, the tail; it returns when the store has all that the log had
    hand_over stop: what is in flight ends, and another replica leads
    stop      the rest

An error of the engine that ends a replica is `Detached`: it serves nothing, and says why.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from kvd.core.committer import Committer
from kvd.core.ticker import Ticker
from kvd.replicas.engine import Candidate, Engine, EngineError, Leadership, Meta, Trimmed
from kvd.replicas.member import LocalLog, StoreMember
from kvd.replicas.read_index import Applied, ReadIndex
from kvd.replicas.replica import Replica, State
from kvd.replicas.standing.standing import ReplicaStanding
from kvd.replicas.upkeep.report import Report
from kvd.replicas.upkeep.upkeep import Upkeep
from kvd.storage.errors import EX_CONFIG, OtherHistory, StorageError
from kvd.storage.format.identity import NewIds
from kvd.storage.format.payload import CHAIN_START, VERSION_SHA256
from kvd.storage.format.records import UnknownRecord
from kvd.storage.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")

DEADLINES_S = 0.25
"""How often it is looked for clients that have waited for too long."""
_STOP_S = 2.0
"""How long a stop waits for an engine that is silent: the lease ends anyway."""


class Detached(StorageError):
    """This replica and the log have parted: it must not serve, and only a person can say how on."""

    exit_status = EX_CONFIG


class Settings(NamedTuple):
    """The settings of one replica.

    Attributes:
        name: That of the member.
        data_dir: The data directory.
        version: The program's.
        peer_urls: Where other replicas reach this one.
        client_urls: Where clients do.
        lease_s: How long a leader that is silent keeps the lead.
        history_limit: How many events the history has while this replica leads.
        history_bytes: How many bytes they have.
    """

    name: str
    data_dir: Path
    version: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    lease_s: float
    history_limit: int
    history_bytes: int | None


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
    """

    applied: Applied
    standing: ReplicaStanding

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        *,
        fail: Callable[[BaseException], None],
        on_behind: Callable[[], object],
    ) -> None:
        """`fail` ends the server; `on_behind` is called once a snapshot has to be installed."""
        self._settings = settings
        self._engine = engine
        self._fail = fail
        self._on_behind = on_behind
        self._meta: Meta | None = None
        self._store: Store
        self._me: Candidate
        self._replica: Replica
        self._upkeep: Upkeep
        self._member: StoreMember | None = None
        self._reads: ReadIndex | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._tickers: list[Ticker] = []
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # Start

    async def meet(self, proposed: NewIds | None) -> NewIds | None:
        """Return the ids of the store, if it is to be made: the cluster's id is that of the log.

        Args:
            proposed: the ids that it would have alone; random ones without.

        Raises:
            Detached: the engine cannot be used.
        """
        if (self._settings.data_dir / "FORMAT").exists():
            return None
        ids = proposed or NewIds(secrets.randbits(63) + 1, secrets.randbits(63) + 1)
        meta = await self._open(ids.cluster_id, 0, CHAIN_START)
        return ids._replace(cluster_id=meta.cluster_id)

    async def enter(self, store: Store) -> Store:
        """Return the store that goes on with the log: this one, or what a snapshot has made of it.

        Raises:
            Detached: it belongs to another log, or ends after it.
        """
        own = store.applied
        identity = store.identity
        meta = await self._open(identity.cluster_id, own.seq, own.chain)
        if meta.cluster_id != identity.cluster_id:
            raise Detached(
                f"{self._settings.data_dir}: this store is of cluster {identity.cluster_id:x}, the "
                f"engine's log of cluster {meta.cluster_id:x}, made by {meta.made_by}"
            )
        self._store = store
        self._me = Candidate(
            identity.member_id, self._settings.name, self._settings.peer_urls[0], time.time_ns()
        )
        loop = asyncio.get_running_loop()
        self.standing = ReplicaStanding(identity.member_id, now=loop.time, clock_ns=time.time_ns)
        self.applied = Applied(store)
        return store

    async def _open(self, cluster_id: int, seq: int, chain: bytes) -> Meta:
        if self._meta is None:
            name, now = self._settings.name, time.time_ns()
            with_log = self._engine.open(cluster_id, seq, chain, made_by=name, made_at_ns=now)
            self._meta = await _checked(with_log)
        return self._meta

    def member(self, own_log: LocalLog) -> StoreMember:
        """Return what the committer appends to; to be attached."""
        limits = self._settings.history_limit, self._settings.history_bytes
        self._member = StoreMember(
            self._store,
            own_log,
            first_records=lambda: tuple(self._store.start_records(*limits)),
            on_fatal=self._end,
        )
        return self._member

    def attach(self, committer: Committer) -> None:
        """Connect the parts of the server."""
        assert self._member is not None
        assert committer.leading is not None
        self._replica = Replica(
            self._engine,
            self._me,
            self._member,
            lease_s=self._settings.lease_s,
            on_state=self._on_state,
            on_leadership=self._on_leadership,
        )
        upkeep = self._upkeep = Upkeep(
            self._engine,
            self._me.id,
            self._describe,
            leads=lambda: self._replica.state is State.LEADING,
            on_room=committer.leading.refuse_writes,
        )
        self.standing.upkeep = upkeep
        notes = _Notes(self.standing, upkeep)
        self._member.connect(committer, self._replica, notes, committer.follow)
        self._reads = ReadIndex(self._engine, self.applied)
        loop = asyncio.get_running_loop()
        deadlines = Ticker(loop, DEADLINES_S, {"deadlines": committer.leading.tick}, self._fail)
        self._tickers.append(deadlines)

    async def start(self) -> None:
        """Take part; return when the store has all that the log had."""
        self._run(self._replica.run())
        self._run(self._upkeep.run())
        self._run(self.standing.watch(self._engine))
        end = await _checked(self._engine.end())
        caught_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.applied.when(end.seq, partial(caught_up.set_result, None))
        await asyncio.wait([caught_up, self._ended], return_when=asyncio.FIRST_COMPLETED)

    async def catch_up(self) -> None:
        """Return once all that was acknowledged before this call is visible here.

        Raises:
            ApiError: it took too long.
        """
        assert self._reads is not None
        await self._reads.catch_up()

    # Stop

    async def hand_over(self) -> None:
        """End what is in flight, and let another replica lead, which gets what is left."""
        try:
            async with asyncio.timeout(_STOP_S):
                await self._replica.hand_over(for_good=True)
        except TimeoutError:
            log.warning("the engine is silent: the lead ends with its lease")

    async def stop(self) -> None:
        """End all that runs, and the connections to the engine."""
        self._halt()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._engine.close()

    def _halt(self) -> None:
        for ticker in self._tickers:
            ticker.stop()
        if self._member is not None:
            self._member.stop()
        if self._reads is not None:
            self._reads.close()
        for task in self._tasks:
            task.cancel()

    # What happens

    def _on_state(self, state: State) -> None:
        self.standing.enter(state)

    def _on_leadership(self, leadership: Leadership) -> None:
        self.standing.led_by(leadership)

    def _describe(self) -> Report:
        applied = self._store.applied.seq
        return Report(
            name=self._settings.name,
            peer=self._me.peer,
            urls=self._settings.client_urls,
            state=self._replica.state,
            applied=applied,
            durable=applied,
            version=self._settings.version,
            reads=VERSION_SHA256,
            at_ns=time.time_ns(),
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


def detached(error: BaseException) -> BaseException:
    """Return what an error of the engine or of its log means to the server."""
    if isinstance(error, EngineError | OtherHistory | UnknownRecord):
        return Detached(str(error))
    return error


async def _checked(call: Awaitable[T]) -> T:
    try:
        return await call
    except EngineError as error:
        raise Detached(str(error)) from error

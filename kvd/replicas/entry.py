"""A store and the log of the engine, before the one serves what the other orders.

They belong together by the id of the cluster, which the log was made with, and by the history: the
log goes on where the store ends. A store that has been part of the log once (its file REPLICA says
so) never makes the log again: an engine without it has lost it, and what others have written with
it.
"""

import secrets
import time
from collections.abc import Awaitable
from contextlib import aclosing
from pathlib import Path
from typing import NamedTuple, TypeVar

from kvd.replicas.engine import Engine, EngineError, Meta, Trimmed
from kvd.storage.directory import replica_file
from kvd.storage.directory.replica_file import Replica
from kvd.storage.errors import EX_CONFIG, OtherHistory, StorageError
from kvd.storage.format.identity import NewIds
from kvd.storage.format.payload import CHAIN_START
from kvd.storage.format.records import UnknownRecord
from kvd.storage.store import Store

T = TypeVar("T")


class Detached(StorageError):
    """The store and the log have parted: it must not be served, and a person has to say how on."""

    exit_status = EX_CONFIG


def detached(error: BaseException) -> BaseException:
    """Return the meaning of an error of the engine, or of its log, to the server."""
    if isinstance(error, EngineError | OtherHistory | UnknownRecord):
        return Detached(str(error))
    return error


class Place(NamedTuple):
    """A data directory, and where its log is to be.

    Attributes:
        data_dir: The directory.
        engine_url: The engine, and the place in it; without a user or a password.
        member: The name of the member, for people.
    """

    data_dir: Path
    engine_url: str
    member: str


class Entry:
    """The way of one store into the log.

    Attributes:
        meta: The values that the log was made with, once they are known.
    """

    def __init__(self, place: Place, engine: Engine) -> None:
        self._place = place
        self._engine = engine
        self.meta: Meta | None = None

    async def meet(self, proposed: NewIds | None) -> NewIds | None:
        """Return the ids of the store, if it is to be made: the cluster's id is that of the log.

        Args:
            proposed: the ids that it would have alone; random ones without.

        Raises:
            Detached: the engine cannot be used.
        """
        if (self._place.data_dir / "FORMAT").exists():
            return None
        ids = proposed or NewIds(secrets.randbits(63) + 1, secrets.randbits(63) + 1)
        meta = await self._open(ids.cluster_id, 0, CHAIN_START)
        return ids._replace(cluster_id=meta.cluster_id)

    async def enter(self, store: Store) -> Meta:
        """Make the log, beginning behind a store, or find that the store is of this log.

        Raises:
            Detached: it is not, or the engine has lost the log, or cannot be used.
        """
        place, own, identity = self._place, store.applied, store.identity
        known = replica_file.read(place.data_dir)
        if known is not None and known.joined:
            await self._checked(self._engine.end())  # makes nothing
        meta = await self._open(identity.cluster_id, own.seq, own.chain)
        if meta.cluster_id != identity.cluster_id:
            raise Detached(
                f"{place.data_dir}: this store is of cluster {identity.cluster_id:x}, the log in "
                f"{place.engine_url} of cluster {meta.cluster_id:x}, made by {meta.made_by}"
            )
        entered = Replica(place.engine_url, meta.cluster_id, joined=True)
        if known != entered:
            replica_file.write(place.data_dir, entered)
        return meta

    async def is_behind(self, store: Store) -> bool:
        """Return whether the log has been trimmed past the end of a store.

        Raises:
            Detached: the engine cannot be used.
        """
        async with aclosing(self._engine.tail(store.applied.seq)) as items:
            try:
                await self._checked(anext(items))
            except Trimmed:
                return True
        return False

    async def _open(self, cluster_id: int, seq: int, chain: bytes) -> Meta:
        if self.meta is None:
            opened = self._engine.open(
                cluster_id, seq, chain, made_by=self._place.member, made_at_ns=time.time_ns()
            )
            self.meta = await self._checked(opened)
        return self.meta

    async def _checked(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except Trimmed:
            raise
        except EngineError as error:
            raise Detached(f"{self._place.data_dir}: {error}") from error

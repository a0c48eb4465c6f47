"""The log of several replicas in a PostgreSQL: `kvd.replicas.engine.Engine` by SQL.

The fence of an append is one statement (`statements.APPEND`): it locks the row of `head` where its
epoch is the current one, and inserts the frame after the one with the chain value before. What it
finds unwritten is looked at: an earlier attempt may have written it before its connection broke.

What durable means is the administrator's to say:

- One server: on its disk. Commits return after that, or the server is refused (synchronous_commit,
  fsync).
- Synchronous standbys (synchronous_standby_names): on the disk of as many of them as it names,
  too. A fail-over to one of these loses nothing, and nothing is confirmed by a primary that was
  replaced: what is read there is returned after a commit that its standbys have.
- Asynchronous standbys: a fail-over loses what they had not received yet, also acknowledged
  writes. A replica that has such a frame finds that the log ends before it or goes on otherwise:
  OtherHistory. So it is never served as if it were in the log; but it is lost.
"""

import asyncio
import secrets
from typing import Any, TypeVar

import asyncpg

from kvd.replicas.engine import (
    NO_LIMIT,
    SECRET_BYTES,
    Access,
    Candidate,
    End,
    Engine,
    EngineFull,
    EngineRefused,
    Fenced,
    Lead,
    Meta,
    OtherHistory,
    OutcomeUnknown,
    Room,
)
from kvd.replicas.postgres import statements
from kvd.replicas.postgres.client import Client
from kvd.replicas.postgres.session import Connection, NoSpace, Work
from kvd.replicas.postgres.statements import BASE_STEP_MAX, FORMAT, ID_BYTES, Look, look_of
from kvd.replicas.postgres.tail import Items, Tail
from kvd.replicas.postgres.url import PostgresUrl

T = TypeVar("T")

PAYLOAD_BYTES_MAX = 1 << 29
"""The server takes 1 GiB for a value, and twice for a message."""
FULL_PAUSE_S = 0.2


class PostgresLog(Engine):
    """The engine of one replica; `Engine` says what each call promises.

    `limit_bytes` is what `Room` has as its limit; the server has none of its own but its disk.
    """

    def __init__(
        self,
        url: PostgresUrl,
        access: Access | None = None,
        *,
        lease_s: float = 3,
        limit_bytes: int | None = None,
    ) -> None:
        self._client = Client(url, access)
        self._schema = url.schema
        self._lease_s = float(lease_s)
        self._limit_bytes = NO_LIMIT if limit_bytes is None else limit_bytes
        self._is_full = False

    async def open(
        self, cluster_id: int, seq: int, chain: bytes, *, made_by: str, made_at_ns: int
    ) -> Meta:
        number, secret = _id(cluster_id), secrets.token_bytes(SECRET_BYTES)
        values = (FORMAT, number, secret, made_by, made_at_ns, seq, chain)

        async def work(connection: Connection) -> asyncpg.Record | None:
            there = await connection.fetchrow(statements.IS_THERE, self._schema)
            assert there is not None
            if not there["has_log"]:
                await self._make(connection, has_schema=there["has_schema"])
            await connection.execute(statements.FOUND, *values)
            return await connection.fetchrow(statements.META)

        row = await self._write(work)
        if row is None or row["heads"] != 1 or not row["has_frames"]:
            raise OtherHistory("the engine's log is incomplete: a table of it is empty")
        if row["format"] != FORMAT:
            raise EngineRefused(f"the log has format {row['format']}, expected {FORMAT}")
        return Meta(_number(row["cluster_id"]), row["secret"], row["made_by"], row["made_at_ns"])

    async def _make(self, connection: Connection, *, has_schema: bool) -> None:
        async with connection.transaction():
            await connection.execute(statements.LOCK_SCHEMA, self._schema)
            if not has_schema:
                await connection.execute(statements.MAKE_SCHEMA.format(self._schema))
            await connection.execute(statements.MAKE_TABLES)

    async def campaign(self, me: Candidate) -> Lead | None:
        lease = secrets.randbits(62) + 1
        step = secrets.randbelow(BASE_STEP_MAX) + 1
        values = (step, _id(me.id), me.name, me.peer, me.since_ns, lease, self._lease_s)

        async def work(connection: Connection) -> Lead | None:
            now = await _state(connection)
            if now["epoch"] and now["lease"] != lease and now["is_over"]:
                await connection.execute(statements.VACATE, now["lease"], True)
                now = await _state(connection)
            if now["epoch"]:  # by an earlier attempt, if it is the own one
                return Lead(now["epoch"], lease) if now["lease"] == lease else None
            row = await connection.fetchrow(statements.ELECT, now["base"], *values)
            return None if row is None else Lead(row["epoch"], lease)

        return await self._write(work)

    async def append(
        self, epoch: int, seq: int, prev_chain: bytes, chain: bytes, payload: bytes
    ) -> None:
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise ValueError(f"a frame of {len(payload)} bytes")
        slot = _Slot(epoch, seq, prev_chain, chain)
        values = (epoch, seq, prev_chain, chain, payload)
        is_unsure = False
        while True:
            try:
                count, was_unsure = await self._client.append(
                    lambda connection: connection.fetchval(statements.APPEND, *values), len(payload)
                )
                is_unsure |= was_unsure
                self._is_full = False
                if count or slot.is_written(await self._look(seq), is_unsure=is_unsure):
                    return
            except NoSpace as full:
                self._is_full = True
                is_unsure |= full.is_unsure
                if not is_unsure:
                    raise EngineFull(str(full)) from None
                # The attempt without a response may have been written, or may yet be.
                if slot.is_written(await self._look(seq), is_unsure=True):
                    return
            await asyncio.sleep(FULL_PAUSE_S)

    def tail(self, after: int) -> Items:
        return Tail(self._client, self._schema, after).items()

    async def end(self) -> End:
        return (await self._look(0)).end

    async def confirm(self, epoch: int) -> bool:
        return (await self._look(0)).epoch == epoch

    async def renew(self, lead: Lead) -> bool:
        values = (lead.lease, lead.epoch, self._lease_s)
        return await self._value(statements.RENEW, *values) is not None

    async def resign(self, lead: Lead) -> None:
        await self.revoke(lead.lease)

    async def revoke(self, lease: int) -> None:
        if lease:
            await self._value(statements.VACATE, lease, False)

    async def trim(self, below: int) -> None:
        first = await self._value(statements.TRIM, below)
        # The frames may go later than the promise that they are gone, and hold up no append.
        await self._value(statements.DELETE, first)

    async def room(self) -> Room:
        row = await self._client.call(lambda connection: connection.fetchrow(statements.SIZES))
        assert row is not None
        used, allocated = row["used"], row["allocated"] or 0
        return Room(min(used, allocated), allocated, self._limit_bytes, self._is_full)

    async def report(self, replica: int, document: bytes) -> None:
        await self._value(statements.REPORT, _id(replica), document)

    async def reports(self) -> dict[int, bytes]:
        rows = await self._client.call(lambda connection: connection.fetch(statements.REPORTS))
        return {_number(row["id"]): row["document"] for row in rows}

    async def forget(self, replica: int) -> None:
        await self._value(statements.FORGET, _id(replica))

    async def close(self) -> None:
        await self._client.close()

    async def _look(self, seq: int) -> Look:
        while True:
            try:
                row = await self._client.call(lambda c: c.fetchrow(statements.LOOK, seq))
            except NoSpace:  # says nothing of the frame
                await asyncio.sleep(FULL_PAUSE_S)
                continue
            if row is None:
                raise OtherHistory("the engine's log is gone: a table of it is empty")
            return look_of(row)

    async def _value(self, statement: str, *values: object) -> Any:
        """The first column of the first row of a statement that writes."""
        value = await self._write(lambda connection: connection.fetchval(statement, *values))
        self._is_full = False
        return value

    async def _write(self, work: Work[T]) -> T:
        try:
            return await self._client.call(work)
        except NoSpace as full:
            self._is_full = True
            raise EngineFull(str(full)) from None


class _Slot:
    """The place of one frame, and what a look at it means."""

    def __init__(self, epoch: int, seq: int, prev_chain: bytes, chain: bytes) -> None:
        self._seq = seq
        self._chain = chain
        self._epoch = epoch
        self._before = End(seq - 1, prev_chain)

    def is_written(self, look: Look, *, is_unsure: bool) -> bool:
        """Whether the frame is in the log; False when the fence holds, so that it may yet be.

        Raises:
            Fenced, OutcomeUnknown, OtherHistory: see there.
        """
        if look.slot == self._chain:
            return True
        end, seq = look.end, self._seq
        if end.seq > seq and look.slot is None and is_unsure:
            raise OutcomeUnknown(f"frame {seq} was trimmed before its append had a response")
        if end.seq >= seq or look.epoch != self._epoch:
            raise Fenced(f"the log ends with frame {end.seq}, the epoch is {look.epoch}")
        if end != self._before:
            raise OtherHistory(
                f"the log ends with frame {end.seq}, chain {end.chain.hex()}; expected frame "
                f"{self._before.seq}, chain {self._before.chain.hex()}"
            )
        return False


async def _state(connection: Connection) -> asyncpg.Record:
    row = await connection.fetchrow(statements.STATE)
    if row is None:
        raise OtherHistory("the engine's log is gone: its table head is empty")
    return row


def _id(number: int) -> bytes:
    return number.to_bytes(ID_BYTES, "big")


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")

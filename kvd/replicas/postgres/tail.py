"""The frames of the log in PostgreSQL, and its leaders, as they come.

Each page is one statement, so frames and leader in it are of one moment. A notification says that
another page is worth a look; it may be missing, so there is a look once a second without one, and
twenty a second from one that found what no notification came for until the next one comes. A lease
that is over at two looks is ended.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from itertools import takewhile

from kvd.replicas.engine import Frame, Leadership, OtherHistory, Trimmed
from kvd.replicas.postgres.client import CALL_S, Client
from kvd.replicas.postgres.session import Connection, Session, Unanswered
from kvd.replicas.postgres.statements import PAGE, VACATE, Row, leadership_of

LOOK_S = 1.0
SOON_S = 0.05

Items = AsyncGenerator[Frame | Leadership, None]


class Tail:
    """One run over the log; `items` is to be called once."""

    def __init__(self, client: Client, schema: str, after: int) -> None:
        self._client = client
        self._schema = schema
        self._after = after
        self._chain: bytes | None = None
        """That of the frame `after`, once it is known."""
        self._base = -1
        self._reported: Leadership | None = None
        self._hint = asyncio.Event()
        self._pause_s = LOOK_S
        self._over = 0
        """The lease that was over at the last look."""

    async def items(self) -> Items:
        """As `Engine.tail`."""
        failures = 0
        while True:
            try:
                async with aclosing(self._session_items()) as items:
                    async for item in items:
                        failures = 0
                        yield item
            except Unanswered as error:
                failures += 1
                await self._client.pause(failures, error)

    async def _session_items(self) -> Items:
        """Items until the session ends."""
        session = await self._client.begin()
        try:
            await session.run(
                lambda connection: connection.add_listener(self._schema, self._hear), CALL_S
            )
            session.connection.add_termination_listener(self._hear)
            was_hinted = True
            while True:
                self._hint.clear()
                rows = await self._page(session)
                self._client.hears()
                known = (self._after, self._reported)
                for item in self._news(rows):
                    yield item
                if (self._after, self._reported) != known:
                    self._pause_s = LOOK_S if was_hinted else SOON_S
                if self._after < rows[0]["last"]:
                    continue  # the page was full
                was_hinted = await self._rest(session, rows[0])
                if was_hinted:
                    self._pause_s = LOOK_S
        except Unanswered:
            self._client.leave(session.server)
            raise
        finally:
            session.end()

    async def _page(self, session: Session) -> Sequence[Row]:
        rows = await session.run(
            lambda connection: connection.fetch(PAGE, self._after, self._base), CALL_S
        )
        if not rows or rows[0]["last"] is None:
            raise OtherHistory("the engine's log is gone: its tables are empty")
        return rows

    def _news(self, rows: Sequence[Row]) -> "list[Frame | Leadership]":
        """The items of a page that were not returned yet."""
        frames = self._checked(rows)
        self._base = rows[0]["base"]
        leadership = leadership_of(rows[0])
        is_whole = (frames[-1]["seq"] if frames else self._after) == rows[0]["last"]
        if self._reported is not None and self._reported.lead == leadership.lead:
            before = frames
        else:
            before = list(takewhile(lambda row: row["revision"] < leadership.revision, frames))
        items: list[Frame | Leadership] = [_frame(row) for row in before]
        if before is not frames and (is_whole or len(before) < len(frames)):
            self._reported = leadership
            items += [leadership, *(_frame(row) for row in frames[len(before) :])]
        if frames:
            self._after, self._chain = frames[-1]["seq"], frames[-1]["chain"]
        return items

    def _checked(self, rows: Sequence[Row]) -> list[Row]:
        """The new frames of a page, if they continue what was returned.

        Raises:
            Trimmed, OtherHistory: they do not.
        """
        last = rows[0]["last"]
        if last < self._after:
            raise OtherHistory(f"the log ends with frame {last}, before frame {self._after}")
        found = [row for row in rows if row["seq"] is not None]
        if found and found[0]["seq"] == self._after:
            own = found.pop(0)["chain"]
            if self._chain not in (None, own):
                raise OtherHistory(
                    f"frame {self._after} of the engine's log has chain {own.hex()}; it had "
                    f"{(self._chain or b'').hex()} when it was read"
                )
            self._chain = own
        first = found[0]["seq"] if found else last + 1
        if first != self._after + 1:
            raise Trimmed(f"frame {self._after + 1} is gone: the log goes on with frame {first}")
        return found

    async def _rest(self, session: Session, now: Row) -> bool:
        """Wait for a notification or the time of a look; whether it was a notification."""
        pause_s = self._pause_s
        if now["epoch"]:
            lease, left_s = now["lease"], now["left_s"]
            is_over = left_s <= 0
            if is_over and self._over == lease:
                await session.run(lambda connection: _vacate(connection, lease), CALL_S)
                return True
            # The leader may be as late as this look, where it was the server that was frozen.
            self._over = lease if is_over else 0
            pause_s = min(pause_s, max(left_s, SOON_S))
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._hint.wait()
        return self._hint.is_set()

    def _hear(self, *_: object) -> None:
        self._hint.set()


async def _vacate(connection: Connection, lease: int) -> None:
    await connection.execute(VACATE, lease, True)


def _frame(row: Row) -> Frame:
    return Frame(row["seq"], row["payload"], row["revision"])

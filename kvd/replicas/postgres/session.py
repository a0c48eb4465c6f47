"""One connection to a PostgreSQL: statements on it, and what their errors mean.

No statement is ever cancelled: the server may answer to that, or to its own end, when the commit
has happened already. A statement that has no response is waited for while the server says that it
works on it (a commit may wait for synchronous standbys for hours); else the connection is dropped,
and what became of the statement is to be read on another one.
"""

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import asyncpg

from kvd.replicas.engine import Access, EngineRefused, OtherHistory
from kvd.replicas.postgres.statements import ACTIVE, GREET
from kvd.replicas.postgres.url import PostgresUrl

T = TypeVar("T")
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Work = Callable[[Connection], Coroutine[Any, Any, T]]

CONNECT_S = 2.0
VERSION_MIN = 12
"""The first that knows MATERIALIZED."""
DURABLE = ("on", "remote_apply")
"""Values of synchronous_commit by which a commit returns when the standbys have it on disk."""
GONE = ("42P01", "3F000")
"""No such table, no such schema."""
WARNING = "01000"
LOST = (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""Errors of a connection. InternalClientError: the server's goodbye is there, its end not yet."""


class Unanswered(Exception):
    """There is no response; `was_sent` when the statement may take, or have taken, effect."""

    def __init__(self, message: str, *, was_sent: bool = True) -> None:
        super().__init__(message)
        self.was_sent = was_sent


class Crowded(Unanswered):
    """The server responds, and has no connection to give."""


class NoSpace(Exception):
    """The server's disk is full; `is_unsure` when an earlier attempt had no response."""

    def __init__(self, message: str, *, is_unsure: bool = False) -> None:
        super().__init__(message)
        self.is_unsure = is_unsure


@dataclass(frozen=True, slots=True)
class Server:
    """One of the hosts of a URL, and what it takes to connect to it."""

    host: str
    port: int
    url: PostgresUrl
    access: Access
    tls: ssl.SSLContext | Literal["prefer"] | bool

    @property
    def name(self) -> str:
        """As people write it."""
        return f"{self.host}:{self.port}"

    async def connect(self) -> Connection:
        """Connect, whatever the server is.

        Raises:
            Unanswered: it does not respond, or not now.
            EngineRefused: it does not accept the user, or has no such database.
        """
        try:
            return await asyncpg.connect(
                host=self.host,
                port=self.port,
                user=self.access.user or None,
                password=self.access.password or None,
                database=self.url.database,
                ssl=self.tls,
                timeout=CONNECT_S,
                server_settings={"application_name": "kvd"},
            )
        except asyncpg.PostgresError as error:
            if (error.sqlstate or "")[:2] in ("28", "3D", "42"):
                raise EngineRefused(f"{self.name}: {error}") from None
            is_crowded = isinstance(error, asyncpg.TooManyConnectionsError)
            kind = Crowded if is_crowded else Unanswered
            raise kind(f"{self.name}: {error}", was_sent=False) from None
        except (asyncpg.ClientConfigurationError, KeyError) as error:
            # Of the environment. KeyError: the process's user, the default, has no name.
            raise EngineRefused(f"{self.name}: {error}; see --replicate-user") from None
        except LOST as error:
            # Also TimeoutError, which has no text.
            raise Unanswered(f"{self.name}: {error or 'no response'}", was_sent=False) from None


class Session:
    """A connection that may write: to the primary, with settings under which commits last."""

    def __init__(self, server: Server, connection: Connection) -> None:
        self.server = server
        self.connection = connection
        self._pid = connection.get_server_pid()
        self._warning = ""
        connection.add_log_listener(self._hear)

    @classmethod
    async def begin(cls, server: Server) -> "Session":
        """Connect.

        Raises:
            Unanswered, EngineRefused: see `Server.connect`; also if it is a standby, or a server
                whose commits may be lost.
        """
        session = cls(server, await server.connect())
        try:
            found = await session.run(lambda c: c.fetchrow(GREET, server.url.schema), CONNECT_S)
            assert found is not None
            _check(server, found)
        except BaseException as error:
            session.end()
            if isinstance(error, Unanswered):
                error.was_sent = False  # of the statement that waits for this connection
            raise
        return session

    @property
    def is_open(self) -> bool:
        """Whether it may be used again, as far as is known."""
        return not self.connection.is_closed()

    async def run(self, work: Work[T], patience_s: float) -> T:
        """The result of statements. Each `patience_s` the server is asked if it works on them.

        Raises:
            Unanswered: the session has ended.
            NoSpace, EngineRefused, OtherHistory: see there.
        """
        task = asyncio.ensure_future(work(self.connection))
        task.add_done_callback(_retrieve)
        try:
            while not (await asyncio.wait([task], timeout=patience_s))[0]:
                if not await self._is_at_work():
                    self.end()
            result = task.result()
        except asyncpg.PostgresError as error:
            raise self._meaning(error) from None
        except LOST as error:
            self.end()
            raise Unanswered(f"{self.server.name}: {error}") from None
        except asyncio.CancelledError:
            self.end()
            raise
        if self._warning:
            # It was committed here, and perhaps nowhere else.
            self.end()
            raise Unanswered(f"{self.server.name}: {self._warning}")
        return result

    def end(self) -> None:
        """Drop the connection; what the server works on goes on."""
        self.connection.terminate()

    async def close(self) -> None:
        """End the connection of an idle session with a goodbye."""
        try:
            await self.connection.close(timeout=CONNECT_S)
        except (asyncpg.PostgresError, *LOST):
            self.end()

    def _hear(self, _connection: object, message: Any) -> None:
        if message.sqlstate == WARNING:
            self._warning = str(message)

    async def _is_at_work(self) -> bool:
        """Whether the server responds, and says that it works for this session."""
        try:
            connection = await self.server.connect()
        except Crowded:
            return True
        except (EngineRefused, Unanswered):
            return False
        looking = asyncio.ensure_future(connection.fetchval(ACTIVE, self._pid))
        looking.add_done_callback(_retrieve)
        try:
            await asyncio.wait([looking], timeout=CONNECT_S)
            return looking.done() and not looking.exception() and looking.result() is True
        finally:
            connection.terminate()

    def _meaning(self, error: asyncpg.PostgresError) -> Exception:
        state = error.sqlstate or ""
        text = f"{self.server.name}: {error}"
        if isinstance(error, asyncpg.DiskFullError):
            return NoSpace(text)
        if state in GONE:
            return OtherHistory(f"the engine's log is gone: {text}")
        if state == asyncpg.InsufficientPrivilegeError.sqlstate:
            return EngineRefused(f"the user may not use the log: {text}")
        if state.startswith("42"):
            return EngineRefused(
                f"the schema {self.server.url.schema} is not of a log of this version: {text}"
            )
        self.end()
        if state[:2] in ("22", "23"):
            return error  # only a bug has a value that does not fit
        return Unanswered(text)


def _retrieve(task: "asyncio.Future[Any]") -> None:
    """Let asyncio know that an error that nothing waits for any more is no oversight."""
    if not task.cancelled():
        task.exception()


def _check(server: Server, found: asyncpg.Record) -> None:
    """Accept a primary that keeps what it has committed.

    Raises:
        Unanswered: it is a standby.
        EngineRefused: it is not to be used.
    """
    if found["is_read_only"]:
        raise Unanswered(f"{server.name} takes no writes: it is a standby, or set to read only")
    if found["version"] < VERSION_MIN * 10_000:
        raise EngineRefused(
            f"{server.name} is PostgreSQL {found['version'] // 10_000}; "
            f"expected {VERSION_MIN} or newer"
        )
    if found["commits"] not in DURABLE:
        raise EngineRefused(
            f"{server.name} has synchronous_commit = {found['commits']} for this user: what it has "
            "committed may be lost; expected on or remote_apply"
        )
    if found["fsync"] != "on":
        raise EngineRefused(f"{server.name} has fsync = off: a power cut ends its log; expected on")

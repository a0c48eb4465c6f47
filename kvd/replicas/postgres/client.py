"""Statements at the primary of several PostgreSQL servers: the next server when one fails.

A statement is tried until it has a definite response, and so may take effect more than once: each
that goes this way is one that may. A caller that is cancelled leaves its attempt running, so the
number of connections is limited, however long a commit waits.
"""

import asyncio
import logging
import ssl
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

from kvd.replicas.engine import Access, EngineRefused
from kvd.replicas.postgres.session import NoSpace, Server, Session, Unanswered, Work
from kvd.replicas.postgres.url import PostgresUrl

log = logging.getLogger(__name__)
T = TypeVar("T")

CALL_S = 1.0
"""Without a response for so long, the server is asked if it works on a statement."""
BYTES_PER_S = 1 << 20
"""A payload may take longer: so many bytes a second, half as many at each further attempt."""
PATIENCE_MAX_S = 60.0
PAUSE_S = 0.05
PAUSE_MAX_S = 0.5
"""Pauses between rounds over all servers: doubled from the first to the second."""
SESSIONS_MAX = 4
"""For calls; one more for appends, and one for each tail."""


class Client:
    """Sessions at the primary; `current` is the server that new ones begin at."""

    def __init__(self, url: PostgresUrl, access: Access | None = None) -> None:
        access = access or Access()
        tls = _tls(url, access)
        self._servers = [Server(host, port, url, access, tls) for host, port in url.hosts]
        self._idle: list[Session] = []
        self._attempts: set[asyncio.Task[Any]] = set()
        self._appending = asyncio.Semaphore(1)
        self._calling = asyncio.Semaphore(SESSIONS_MAX)
        self._is_silent = False
        self.current = 0

    async def call(self, work: Work[T]) -> T:
        """Return the result of statements.

        Raises:
            EngineRefused, OtherHistory, NoSpace: see there.
        """
        return (await self._settle(work, self._calling, CALL_S))[0]

    async def append(self, work: Work[T], size: int) -> tuple[T, bool]:
        """As `call`, one at a time; and whether an earlier attempt may have taken effect.

        An attempt of an append whose caller was cancelled is waited for first.
        """
        return await self._settle(work, self._appending, CALL_S + size / BYTES_PER_S)

    async def _settle(
        self, work: Work[T], lane: asyncio.Semaphore, patience_s: float
    ) -> tuple[T, bool]:
        failures = 0
        is_unsure = False
        while True:
            attempt = asyncio.ensure_future(self._attempt(work, lane, patience_s))
            self._attempts.add(attempt)
            attempt.add_done_callback(self._ended)
            try:
                result = await asyncio.shield(attempt)
            except NoSpace as full:
                raise NoSpace(str(full), is_unsure=is_unsure) from None
            except Unanswered as error:
                is_unsure |= error.was_sent
                failures += 1
                patience_s = min(2 * patience_s, max(patience_s, PATIENCE_MAX_S))
                await self.pause(failures, error)
            else:
                self.hears()
                return result, is_unsure

    async def _attempt(self, work: Work[T], lane: asyncio.Semaphore, patience_s: float) -> T:
        async with lane:
            session = self._idle.pop() if self._idle else None
            if session is None or not session.is_open:
                session = await self.begin()
            try:
                return await session.run(work, patience_s)
            except Unanswered:
                self.leave(session.server)
                raise
            finally:
                if session.is_open:
                    self._idle.append(session)

    async def begin(self) -> Session:
        """A new session at the primary; each server is tried once.

        Raises:
            Unanswered: none of them is a primary that responds.
            EngineRefused: see `Session.begin`.
        """
        problems = []
        for _ in self._servers:
            server = self._servers[self.current]
            try:
                return await Session.begin(server)
            except Unanswered as error:
                problems.append(str(error))
                self.leave(server)
        raise Unanswered("; ".join(problems), was_sent=False)

    def leave(self, server: Server) -> None:
        """Begin further sessions at the next server, if they begin at this one."""
        for session in self._idle:
            if session.server is server:
                session.end()
        self._idle = [session for session in self._idle if session.is_open]
        if self._servers[self.current] is server:
            self.current = (self.current + 1) % len(self._servers)

    async def close(self) -> None:
        """End all sessions but those of `begin`."""
        attempts = list(self._attempts)
        for attempt in attempts:
            attempt.cancel()
        if attempts:
            await asyncio.wait(attempts)
        idle, self._idle = self._idle, []
        await asyncio.gather(*(session.close() for session in idle))

    async def pause(self, failures: int, cause: Unanswered) -> None:
        """Wait before the next attempt, longer after each failure; say once why."""
        if not self._is_silent:
            self._is_silent = True
            log.warning("the consensus engine does not respond, trying again: %s", cause)
        await asyncio.sleep(min(PAUSE_MAX_S, PAUSE_S * 2 ** (min(failures, 10) - 1)))

    def hears(self) -> None:
        """Note a response."""
        if self._is_silent:
            self._is_silent = False
            log.info("the consensus engine responds again")

    def _ended(self, attempt: "asyncio.Task[Any]") -> None:
        self._attempts.discard(attempt)
        if not attempt.cancelled():
            attempt.exception()  # which is no oversight where the caller was cancelled


def _tls(url: PostgresUrl, access: Access) -> ssl.SSLContext | Literal["prefer"] | bool:
    """TLS by the rules of libpq; with a file of authorities and no mode, the strictest."""
    mode = url.tls_mode or ("verify-full" if access.ca_file else "prefer")
    if mode == "disable":
        return False
    if mode == "prefer":
        return "prefer"
    is_verified = mode != "require" or bool(access.ca_file)
    try:
        context = ssl.create_default_context(cafile=access.ca_file or None)
        context.check_hostname = mode == "verify-full"
        context.verify_mode = ssl.CERT_REQUIRED if is_verified else ssl.CERT_NONE
        if access.cert_file:
            context.load_cert_chain(access.cert_file, access.key_file or None)
    except OSError as error:
        raise EngineRefused(f"the certificates of the engine, {_names(access)}: {error}") from None
    return context


def _names(access: Access) -> str:
    files: Iterable[str] = (access.ca_file, access.cert_file, access.key_file)
    return ", ".join(filter(None, files))

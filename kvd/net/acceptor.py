"""Acceptor of one listener: accepts its connections, with TLS if the listener speaks it."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from kvd.http.connection import Connection
from kvd.http.server import HttpServer
from kvd.net.handshakes import Handshakes
from kvd.net.listeners import AddressUnavailable, Listener
from kvd.net.tls import Tls
from kvd.net.tls_connection import TlsConnection

log = logging.getLogger(__name__)

_ACCEPTED_MAX = 32
"""Connections accepted in one turn of the loop."""
# Pause after the system has run out of files or memory.
_PAUSE_S = 1.0
_TOO_MANY = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
# Errors of a connection that the client has closed before accept(2): ignored.
_GONE = frozenset(
    (errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.EHOSTDOWN, errno.EHOSTUNREACH)
)


class Acceptor:
    """Accepts the connections of one listener."""

    def __init__(
        self,
        listener: Listener,
        server: HttpServer,
        connect: Callable[[], Connection],
        tls: Tls | None,
    ) -> None:
        """Accept connections, once started.

        Args:
            listener: the bound socket and its URLs.
            server: the server that the connections belong to.
            connect: makes the protocol of a connection.
            tls: certificates, if the listener speaks TLS.
        """
        self._listener = listener
        self._backlog = server.limits.backlog
        self._connect: Callable[[], asyncio.BaseProtocol] = connect
        self._handshakes: Handshakes | None = None
        if listener.speaks_tls:
            assert tls is not None
            self._handshakes = Handshakes(tls, server, connect, listener)
            self._connect = partial(TlsConnection, self._handshakes)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._begun: set[asyncio.Task[None]] = set()

    async def start(self, what: str) -> None:
        """Listen, and log `what` with the URLs.

        Raises:
            AddressUnavailable: the system refuses.
        """
        bound, urls = self._listener.socket, self._listener.urls
        try:
            bound.setblocking(False)
            bound.listen(self._backlog)
        except OSError as error:
            raise AddressUnavailable(f"cannot listen on {urls[0]}: {error.strerror}") from None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(bound.fileno(), self._accept)
        for url in urls:
            log.info("%s on %s", what, url)

    def _accept(self) -> None:
        """Accept pending connections, in their order."""
        assert self._loop is not None
        bound = self._listener.socket
        for _ in range(_ACCEPTED_MAX):
            try:
                client, _ = bound.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _GONE:
                    continue
                if error.errno not in _TOO_MANY:
                    raise
                log.warning("accepting no connections for a second: %s", error.strerror)
                self._loop.remove_reader(bound.fileno())
                self._pause = self._loop.call_later(
                    _PAUSE_S, self._loop.add_reader, bound.fileno(), self._accept
                )
                return
            task = self._loop.create_task(self._begin(client))
            self._begun.add(task)
            task.add_done_callback(self._begun.discard)

    async def _begin(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            client.setblocking(False)
            if client.family != socket.AF_UNIX:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.connect_accepted_socket(self._connect, client)
        except OSError as error:  # the client has gone
            log.debug("a connection ended before it began: %s", error)
            client.close()

    def close(self) -> None:
        """Close the listening socket, and give up unfinished handshakes."""
        if self._handshakes is not None:
            self._handshakes.stop()
        if self._pause is not None:
            self._pause.cancel()
        if self._loop is not None:
            self._loop.remove_reader(self._listener.socket.fileno())
            self._loop = None
            self._listener.socket.close()
        self._listener.remove_path()

    async def settle(self) -> None:
        """Wait until what has been accepted in the last turns of the loop is a connection."""
        if self._begun:
            await asyncio.wait(self._begun)

    async def finish(self) -> None:
        """Stop listening, but accept the connections that are pending.

        Closing a socket resets its pending connections; those of a socket that was handed over
        wait for the next start.
        """
        last = self._listener.socket.dup() if self._listener.is_own else None
        self.close()
        await self.settle()
        if last is None:
            return
        accepted: list[socket.socket] = []
        with last, suppress(OSError):  # none is pending, or there are too many open files
            while len(accepted) < self._backlog:
                accepted.append(last.accept()[0])
        for client in accepted:
            await self._begin(client)

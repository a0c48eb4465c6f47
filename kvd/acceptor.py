"""Taking the connections of one listener, with TLS where that is spoken."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from kvd.http1 import Connection, Server
from kvd.listeners import AddressUnavailable, Listener
from kvd.tls import Tls
from kvd.tlsconnection import TlsListener

log = logging.getLogger(__name__)

# asyncio accepts as many connections at once as may wait, if it is not told otherwise; uvloop one.
_ACCEPTED_MAX = 32
# Since 3.13 a server removes the path of its socket unless told not to. Ours is removed by its
# listener; that of a socket which was handed over is the service manager's.
_KEEP_PATH: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}


class Acceptor:
    """Makes a connection of each client that comes to a listener."""

    def __init__(
        self,
        listener: Listener,
        server: Server,
        connect: Callable[[], Connection],
        tls: Tls | None,
    ) -> None:
        """Take connections, once it is started.

        Args:
            listener: where from.
            server: what they share.
            connect: makes a connection.
            tls: how they are secured, where the listener speaks TLS.
        """
        self._listener = listener
        self._backlog = server.limits.backlog
        self._connect: Callable[[], asyncio.BaseProtocol] = connect
        self._secured: TlsListener | None = None
        if listener.speaks_tls:
            assert tls is not None
            self._connect = self._secured = TlsListener(tls, server, connect, listener)
        self._server: asyncio.Server | None = None

    async def start(self, what: str) -> None:
        """Listen, and log that `what` is done there.

        Raises:
            AddressUnavailable: the system refuses.
        """
        loop = asyncio.get_running_loop()
        bound, urls = self._listener.socket, self._listener.urls
        create: Callable[..., Awaitable[asyncio.Server]] = loop.create_server
        if bound.family == socket.AF_UNIX:
            create = partial(loop.create_unix_server, **_KEEP_PATH)
        try:
            self._server = await create(self._connect, sock=bound, backlog=_ACCEPTED_MAX)
            bound.listen(self._backlog)
        except OSError as error:
            raise AddressUnavailable(f"cannot listen on {urls[0]}: {error.strerror}") from None
        for url in urls:
            log.info("%s on %s", what, url)

    def close(self) -> None:
        """Listen no more."""
        if self._secured is not None:
            self._secured.stop()
        if self._server is not None:
            self._server.close()
        self._listener.remove_path()

    async def finish(self) -> None:
        """Listen no more, but take in who has connected already.

        What still waits at a socket when it is closed is reset; at one that was handed over it
        waits for the next start.
        """
        last = self._listener.socket.dup() if self._listener.is_own else None
        self.close()
        if last is None:
            return
        accepted: list[socket.socket] = []
        with last, suppress(OSError):  # nobody waits, or there are too many open files
            while len(accepted) < self._backlog:
                accepted.append(last.accept()[0])
        loop = asyncio.get_running_loop()
        for client in accepted:
            await loop.connect_accepted_socket(self._connect, client)

"""Handshakes of TLS at one listener: how many there may be, and what is logged of failed ones."""

from __future__ import annotations

import logging
from collections.abc import Callable

from kvd.http.connection import Connection
from kvd.http.server import HttpServer
from kvd.limits.crowd import Member
from kvd.logs import RateLimit
from kvd.net.listeners import Listener
from kvd.net.tls import Tls

log = logging.getLogger(__name__)

# A client that goes wrong does so again and again.
_QUIET_S = 10.0
# So many clients beyond the limit of connections may shake hands, to be refused in HTTP.
_BEYOND_LIMIT = 64
# So many handshakes may have begun: OpenSSL takes 45 KB for each, and 16 KB once it is done.
_BEGUN_MAX = 1024


class Handshakes:
    """The handshakes of one listener, and what its connections share.

    Attributes:
        tls: certificates and settings.
        server: the connections, and what they share.
        connect: makes the connection inside.
        speaks_plain: whether a client may also do without TLS.
        beyond: the connections beyond the limit of connections, the oldest first.
    """

    def __init__(
        self,
        tls: Tls,
        server: HttpServer,
        connect: Callable[[], Connection],
        listener: Listener,
    ) -> None:
        self.tls = tls
        self.server = server
        self.connect = connect
        self.speaks_plain = listener.speaks_plain
        self.beyond: dict[Member, None] = {}
        # Those that have begun and are not done, the oldest first.
        self._begun: dict[Member, None] = {}
        self._url = next(url for url in listener.urls if url.is_tls)
        self._plain = RateLimit(_QUIET_S)
        self._failed = RateLimit(_QUIET_S)

    def stop(self) -> None:
        """Give up the handshakes that are not done."""
        for connection in list(self.server.shaking):
            connection.abort()

    def enter(self, connection: Member) -> None:
        """Let a new connection shake hands; the oldest beyond the limit is given up for it."""
        server = self.server
        server.shaking[connection] = None
        server.crowd.enters(connection.address)
        if not server.has_room(connection):
            _push(self.beyond, connection, _BEYOND_LIMIT)

    def begin(self, connection: Member) -> None:
        """Let a handshake begin; the oldest of too many is given up for it."""
        _push(self._begun, connection, _BEGUN_MAX)

    def leave(self, connection: Member) -> None:
        """Forget a connection whose handshake is done, or will not be."""
        if connection in self.server.shaking:
            del self.server.shaking[connection]
            self.server.crowd.leaves(connection.address)
            self.beyond.pop(connection, None)
            self._begun.pop(connection, None)

    def warn_of_plain(self, peer: str) -> None:
        """Log that a client spoke no TLS."""
        if self._plain.allow():
            log.warning("%s spoke no TLS to %s%s", peer, self._url, self._plain.suppressed())

    def warn(self, peer: str, reason: str) -> None:
        """Log that a handshake failed."""
        if self._failed.allow():
            log.warning(
                "TLS handshake with %s at %s failed: %s%s",
                peer,
                self._url,
                reason,
                self._failed.suppressed(),
            )


def _push(waiting: dict[Member, None], connection: Member, count_max: int) -> None:
    """Add a connection; give up the oldest if there are too many."""
    waiting[connection] = None
    if len(waiting) > count_max:
        next(iter(waiting)).abort()

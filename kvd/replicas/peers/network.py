"""The network between replicas: links by TCP, with TLS where the URL says so."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol
from urllib.parse import urlsplit

from kvd.config.flag import ConfigError
from kvd.replicas.links import HANDSHAKE_S, Hello, Link, LinkError, Listener, dial
from kvd.replicas.peers.tls import LinkTls


class PeerAddressUnavailable(ConfigError):
    """An address for other replicas cannot be listened on."""

    exit_status = 69  # EX_UNAVAILABLE, as for an address for clients


class Address(Protocol):
    """A URL to listen on."""

    @property
    def host(self) -> str:
        """A name or an address."""

    @property
    def port(self) -> int:
        """0 lets the system choose one."""

    @property
    def is_tls(self) -> bool:
        """Whether TLS is spoken there."""


class TcpNetwork:
    """Connects one replica to others that know the same secret."""

    def __init__(
        self,
        secret: bytes,
        hello: Hello,
        tls: LinkTls | None = None,
        *,
        timeout_s: float = HANDSHAKE_S,
    ) -> None:
        self._secret = secret
        self._hello = hello
        self._tls = tls
        self._timeout_s = timeout_s
        self._listeners: list[Listener] = []

    @property
    def ports(self) -> list[int]:
        """The ports that it listens on, in the order of the URLs."""
        return [listener.port for listener in self._listeners]

    async def dial(self, url: str) -> Link:
        """Connect to a replica.

        Raises:
            LinkRefused: nothing listens there.
            LinkError: it cannot be reached, or does not know the secret.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise LinkError(f"{url!r} is no URL of a replica: {error}") from None
        if parts.scheme not in ("http", "https") or not host or not port:
            raise LinkError(f"{url!r} is no URL of a replica: expected http://HOST:PORT")
        tls = None
        if parts.scheme == "https":
            if self._tls is None:
                raise LinkError(f"{url} needs --peer-cert-file and --peer-key-file here, too")
            tls = self._tls.client
        return await dial(host, port, self._secret, self._hello, tls=tls, timeout_s=self._timeout_s)

    async def listen(
        self, urls: Sequence[Address], serve: Callable[[Link], Awaitable[None]]
    ) -> None:
        """Listen, and call `serve` with each link.

        Raises:
            PeerAddressUnavailable: an address is in use, or is none of this machine.
        """
        for url in urls:
            listener = Listener(self._secret, self._hello, serve)
            tls = self._tls.listening if url.is_tls and self._tls is not None else None
            assert tls is not None or not url.is_tls
            try:
                await listener.start(url.host, url.port, tls=tls)
            except OSError as error:
                reason = os.strerror(error.errno) if error.errno else str(error)
                place = f"{url.host} port {url.port}"
                raise PeerAddressUnavailable(
                    f"--listen-peer-urls: cannot listen on {place}: {reason}"
                ) from None
            self._listeners.append(listener)

    async def close(self) -> None:
        """Listen no more, and end the links that came from others."""
        for listener in self._listeners:
            await listener.stop()
        self._listeners.clear()

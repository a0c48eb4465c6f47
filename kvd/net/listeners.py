"""Listening sockets: bound here, or handed over by the process that started this one.

A wildcard address, of either family, accepts connections of both, as Go's listeners do. A path of a
socket in the file system is reused if no server listens there. Any client that can connect to it
may do everything, so only its owner and group can (0660). It is removed at the end.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from kvd.config.urls import WILDCARDS, ListenUrl
from kvd.net.systemd import Handed

log = logging.getLogger(__name__)

_SOCKET_MODE = 0o660


class AddressUnavailable(Exception):
    """An address cannot be listened on; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A bound socket, not listening yet unless it was handed over.

    Attributes:
        urls: What clients reach by it, with the port that the system chose: one URL, or an http and
            an https URL that share the address.
        socket: The socket.
        path: What is removed at the end: the socket's path, if it was made here.
        is_own: Whether it was bound here.
    """

    urls: tuple[ListenUrl, ...]
    socket: socket.socket
    path: Path | None = None
    is_own: bool = True

    @property
    def speaks_tls(self) -> bool:
        """Whether a connection may begin with TLS."""
        return any(url.is_tls for url in self.urls)

    @property
    def speaks_plain(self) -> bool:
        """Whether a connection may begin with HTTP."""
        return not all(url.is_tls for url in self.urls)

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()
        self.remove_path()

    def remove_path(self) -> None:
        """Remove the path of a socket that was bound here."""
        if self.path is not None:
            with suppress(OSError):
                self.path.unlink()


def bind(urls: Sequence[ListenUrl]) -> list[Listener]:
    """Return a listener for each address.

    Raises:
        AddressUnavailable: one of them is taken, or not this machine's; none is bound then.
    """
    made: list[Listener] = []
    try:
        for sharing in _by_address(urls):
            made.append(_bind_path(sharing) if sharing[0].is_socket else _bind(sharing, urls))
    except BaseException:
        for listener in made:
            listener.close()
        raise
    return made


def handed_over(handed: Iterable[Handed], urls: Sequence[ListenUrl]) -> list[Listener]:
    """Return listeners for sockets that were handed over.

    They speak TLS where the URLs of the settings say so of their port or path.
    """
    return [Listener(_urls_of(given.socket, urls), given.socket, is_own=False) for given in handed]


def own_hosts(urls: Iterable[str]) -> list[str]:
    """Return the names and addresses of this server: the hosts of these URLs, and this machine."""
    parts = [urlsplit(url) for url in urls]
    hosts = [part.hostname or "" for part in parts if part.scheme in ("http", "https")]
    hosts += [socket.gethostname(), "localhost", "127.0.0.1", "::1"]
    unnamed = ("", *WILDCARDS)
    # A certificate has its names in ASCII.
    return list(dict.fromkeys(host for host in hosts if host not in unnamed and host.isascii()))


def _urls_of(bound: socket.socket, urls: Sequence[ListenUrl]) -> tuple[ListenUrl, ...]:
    address = bound.getsockname()
    if bound.family == socket.AF_UNIX:
        named = [url.scheme for url in urls if url.is_socket and url.host == address]
        return tuple(ListenUrl(address, scheme=scheme) for scheme in named or ["unix"])
    host, port = address[:2]
    named = [url.scheme for url in urls if not url.is_socket and url.port == port]
    return tuple(ListenUrl(host, port, scheme) for scheme in dict.fromkeys(named or ["http"]))


def _by_address(urls: Sequence[ListenUrl]) -> list[list[ListenUrl]]:
    """Group the URLs that share an address; port 0 is a different one each time."""
    addresses: dict[object, list[ListenUrl]] = {}
    for place, url in enumerate(urls):
        key = (url.host, url.port) if url.port or url.is_socket else place
        addresses.setdefault(key, []).append(url)
    return list(addresses.values())


def _bind(sharing: Sequence[ListenUrl], all_urls: Sequence[ListenUrl]) -> Listener:
    url = sharing[0]
    family, address, takes_both = _address(url, all_urls)
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not takes_both))
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise AddressUnavailable(f"cannot listen on {url}: {error.strerror}") from None
    bound.setblocking(False)
    port = bound.getsockname()[1]
    return Listener(tuple(replace(each, port=port) for each in sharing), bound)


def _address(
    url: ListenUrl, all_urls: Sequence[ListenUrl]
) -> tuple[socket.AddressFamily, tuple[object, ...], bool]:
    """Return family and address to bind, and whether it takes connections of both families."""
    if url.host in WILDCARDS and socket.has_dualstack_ipv6():
        others = {other.host for other in all_urls if other.port == url.port}
        if not url.port or not others.issuperset(WILDCARDS):
            return socket.AF_INET6, ("::", url.port), True
    try:
        found = socket.getaddrinfo(
            url.host, url.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise AddressUnavailable(f"cannot listen on {url}: {error.strerror}") from None
    # A name with addresses of both families means the older one, as in Go.
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    family, _, _, _, address = found[0]
    return family, address, False


def _bind_path(sharing: Sequence[ListenUrl]) -> Listener:
    url = sharing[0]
    path = Path(url.host)
    _remove_dead(url, path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(url.host)
        path.chmod(_SOCKET_MODE)
    except OSError as error:  # a path too long has no errno
        bound.close()
        raise AddressUnavailable(f"cannot listen on {url}: {error.strerror or error}") from None
    bound.setblocking(False)
    return Listener(tuple(sharing), bound, path)


def _remove_dead(url: ListenUrl, path: Path) -> None:
    """Remove the socket that a killed server has left behind.

    Raises:
        AddressUnavailable: a server listens there, or the file is no socket.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise AddressUnavailable(f"cannot listen on {url}: the file there is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            # A server that is too busy to accept at once is running, too.
            probe.setblocking(False)
            probe.connect(url.host)
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        log.info("%s: removed the socket of a server that has ended", path)
        path.unlink()
        return
    except BlockingIOError:
        pass
    except OSError as error:
        raise AddressUnavailable(f"cannot listen on {url}: {error.strerror or error}") from None
    raise AddressUnavailable(f"cannot listen on {url}: {os.strerror(errno.EADDRINUSE)}")

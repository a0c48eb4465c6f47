"""Client addresses, and what the kernel knows of a connection."""

from __future__ import annotations

import asyncio
from array import array
from fcntl import ioctl
from functools import lru_cache
from ipaddress import IPv6Address
from termios import TIOCOUTQ
from typing import NamedTuple

# Prefix of an IPv4 client's address on a socket of both families.
_MAPPED = "::ffff:"
# A site has at least a /64 of IPv6 addresses, and may use any of them.
_NETWORK_BITS = 64


class Peer(NamedTuple):
    """The client of a connection; Tornado's requests use the first two fields.

    Attributes:
        remote_ip: its address; empty on a socket in the file system.
        protocol: http or https.
        common_name: the common name in its certificate, if that names a user; else empty.
    """

    remote_ip: str = ""
    protocol: str = "http"
    common_name: str = ""

    @property
    def network(self) -> str:
        """Key of fair shares: the address, or the first 64 bits of an IPv6 address."""
        return _network(self.remote_ip) if ":" in self.remote_ip else self.remote_ip


@lru_cache(maxsize=1024)
def _network(ip: str) -> str:
    address = int(IPv6Address(ip.partition("%")[0]))
    return f"{address >> _NETWORK_BITS:x}/{_NETWORK_BITS}"


def peer_of(transport: asyncio.BaseTransport) -> Peer:
    """Return the client of a transport."""
    address = transport.get_extra_info("peername")
    ip = address[0].removeprefix(_MAPPED) if isinstance(address, tuple) else ""
    if transport.get_extra_info("ssl_object") is None:
        return Peer(ip)
    return Peer(ip, "https", transport.get_extra_info("common_name", ""))


def shown_address(transport: asyncio.BaseTransport | None, end: str = "peername") -> str:
    """Return one end of a connection (`peername`, `sockname`) for a line of log."""
    address = None if transport is None else transport.get_extra_info(end)
    if not isinstance(address, tuple):
        return "a client of the socket" if end == "peername" else str(address)
    ip = address[0].removeprefix(_MAPPED)
    return f"[{ip}]:{address[1]}" if ":" in ip else f"{ip}:{address[1]}"


def unacknowledged_bytes(transport: asyncio.BaseTransport) -> int:
    """Return what the kernel holds for a client that has not acknowledged it (TIOCOUTQ)."""
    held = array("i", [0])
    try:
        ioctl(transport.get_extra_info("socket").fileno(), TIOCOUTQ, held)
    except OSError:
        return 0
    return held[0]

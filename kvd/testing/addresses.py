"""The addresses of a server that comes and goes: their ports stay its own."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from urllib.parse import urlsplit


def default_url(flags: Mapping[str, str | int | bool]) -> str:
    """Return where to serve with these flags, if they do not say it."""
    is_tls = "cert_file" in flags or flags.get("auto_tls")
    return f"{'https' if is_tls else 'http'}://127.0.0.1:0"


class Addresses:
    """Free ports, bound but not listening: no other program is given one while the server is down.

    As both sockets are bound with SO_REUSEADDR, the server can listen there all the same.
    """

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def reserve(self, urls: str) -> str:
        """Return the addresses with a free port in place of each port 0.

        Raises:
            OSError: this machine does not have such an address.
        """
        return ",".join(map(self._with_port, urls.split(",")))

    def _with_port(self, url: str) -> str:
        try:
            parts = urlsplit(url.strip())
            host, port = parts.hostname, parts.port
        except ValueError:
            return url  # the server tells what is wrong with it
        if not host or port != 0:
            return url
        family, kind, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        reserved = socket.socket(family, kind)
        self._sockets.append(reserved)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(address)
        shown = f"[{host}]" if ":" in host else host
        return f"{parts.scheme}://{shown}:{reserved.getsockname()[1]}"

    def close(self) -> None:
        """Give the ports back."""
        for each in self._sockets:
            each.close()

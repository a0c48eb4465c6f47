"""Requests of users, and the server that is attacked."""

from __future__ import annotations

import base64
import socket
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bench.load.wire import Address


ROOT, HONEST, CLUMSY = "root:rootpw", "honest:right", "clumsy:known"
FORM = "application/x-www-form-urlencoded"


def basic(user: str) -> str:
    """Return the value of an Authorization header."""
    return "Basic " + base64.b64encode(user.encode()).decode()


def head(method: str, target: str, *lines: str, user: str = CLUMSY) -> bytes:
    """Return the head of a request, without credentials for no user."""
    named = [f"Authorization: {basic(user)}"] if user else []
    lines = (f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", *named, *lines)
    return "\r\n".join([*lines, "", ""]).encode()


def put(target: str, body: bytes, user: str = CLUMSY) -> bytes:
    """Return a write."""
    return (
        head("PUT", target, f"Content-Type: {FORM}", f"Content-Length: {len(body)}", user=user)
        + body
    )


class Target(NamedTuple):
    """The address that is attacked, and the end of the attack (monotonic)."""

    address: Address
    end: float

    @property
    def goes_on(self) -> bool:
        """Whether there is time left."""
        return time.monotonic() < self.end

    def connect(self) -> socket.socket:
        """Return a connection that never waits for long."""
        made = socket.create_connection(self.address, timeout=5)
        made.settimeout(2)
        return made

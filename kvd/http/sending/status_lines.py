"""The beginnings of responses: status line, Server and Date, made once a second for each status.

A whole response may be made of them before its connection is known; so they are a part of their
own, which those share that make responses.
"""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus

from kvd import __version__

SERVER_HEADER = f"kvd/{__version__}"


class StatusLines:
    """The status lines of one server.

    Attributes:
        made: Those of this second by status, for HTTP/1.1 and HTTP/1.0; another object each second.
    """

    def __init__(self) -> None:
        self.made: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})

    def start(self, status: int, *, http10: bool) -> bytes:
        """Return the beginning of a response: status line, Server and Date."""
        starts = self.made[http10]
        start = starts.get(status)
        if start is None:
            start = starts[status] = (
                f"HTTP/1.{0 if http10 else 1} {status} {HTTPStatus(status).phrase}\r\n"
                f"Server: {SERVER_HEADER}\r\nDate: {formatdate(usegmt=True)}\r\n"
            ).encode()
        return start

    def tick(self) -> None:
        """Advance the Date; called every second."""
        self.made = ({}, {})

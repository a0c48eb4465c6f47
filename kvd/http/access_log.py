"""Access log: a line per request, after its response.

It is written by a subclass of connections, so that it costs nothing while it is off.

    127.0.0.1 "PUT /v2/keys/a HTTP/1.1" 201 221 bytes 0.4 ms "curl/8.5.0"

Bytes are those sent, head and body; the time goes from the end of the request's head to the end of
its response. The status is `-` if the client left before the response.
"""

from __future__ import annotations

import time
from http import HTTPStatus

from kvd.http.connection import Connection
from kvd.http.parsing.request_parser import Request
from kvd.http.server import HttpServer
from kvd.logs import access as log

# Limit of a client's text in a line: a target may have 64 KiB.
_SHOWN_CHARACTERS_MAX = 1024


class LoggedConnection(Connection):
    """A connection that logs its requests."""

    __slots__ = ("_agent", "_began", "_outbox_before", "_request", "_sent_bytes", "_status")

    def __init__(self, server: HttpServer) -> None:
        super().__init__(server)
        # Responses of the short way are not seen here.
        self._parser.decline_whole()
        self._request = ""
        self._agent = ""
        self._status: int | None = None
        self._sent_bytes = self._outbox_before = 0
        self._began = 0.0

    def _rest(self) -> None:
        """Never be at rest: the short way is left out for the next request, too."""

    def _start(self, request: Request) -> bool:
        version = "HTTP/1.0" if request.http10 else "HTTP/1.1"
        self._request = f"{request.method} {_cut(request.target)} {version}"
        self._agent = _cut(request.block.headers.get("User-Agent", ""))
        self._status = None
        self._sent_bytes = 0
        self._outbox_before = self.outbox_sent_bytes
        self._began = time.monotonic()
        return super()._start(request)

    def respond(self, status: int, headers: bytes, body: bytes, *, head_only: bool = False) -> None:
        """Note the status, for the log."""
        self._status = status
        super().respond(status, headers, body, head_only=head_only)

    def send_head(self, status: int, data: bytes) -> None:
        """Note the status, for the log."""
        self._status = status
        super().send_head(status, data)

    def _find_file(self) -> None:
        """Leave `file` at 0: everything is sent by `send`, which counts."""

    def send(self, data: bytes) -> None:
        """Count bytes that do not go through the outbox, which counts its own."""
        if not self._outbox:
            self._sent_bytes += len(data)
        super().send(data)

    def done(self) -> None:
        """Log the request."""
        self._log()
        super().done()

    def _refuse(self, reason: str, status: HTTPStatus, detail: str) -> None:
        super()._refuse(reason, status, detail)
        self._status = status
        self._request = self._request or "-"
        self._log()

    def connection_lost(self, exc: Exception | None) -> None:
        """Log a request whose client left before the response was complete."""
        if self._request:
            self._log()
        super().connection_lost(exc)

    def _log(self) -> None:
        request, self._request = self._request, ""
        took_ms = (time.monotonic() - self._began) * 1000 if self._began else 0.0
        sent_bytes = self._sent_bytes + self.outbox_sent_bytes - self._outbox_before
        log.info(
            '%s "%s" %s %d bytes %.1f ms "%s"',
            self.context.remote_ip or "-",
            _decoded(_escaped(request)),
            self._status or "-",
            sent_bytes,
            took_ms,
            _decoded(_escaped(self._agent)),
            extra={
                "fields": {
                    "remote": self.context.remote_ip,
                    "request": _decoded(request),
                    "status": self._status,
                    "bytes": sent_bytes,
                    "ms": round(took_ms, 3),
                    "agent": _decoded(self._agent),
                }
            },
        )


def _cut(text: str) -> str:
    """Return a text, cut to its limit."""
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else text[:_SHOWN_CHARACTERS_MAX] + "..."


def _escaped(text: str) -> str:
    """Return a text as it is written between quotes, where a backslash begins an escape."""
    return text.replace("\\", r"\\").replace('"', r"\"")


def _decoded(text: str) -> str:
    """Return a text whose latin-1 characters are bytes of UTF-8, decoded."""
    return text if text.isascii() else text.encode("latin-1").decode("utf-8", "backslashreplace")

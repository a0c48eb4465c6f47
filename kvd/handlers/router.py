"""Request router: the short way for plain requests, a `RoutedRequest` for any other.

The router judges headers before a request is read: requests that a page of another site may have
sent are refused, and header blocks that decide on an answer are kept off the short way.
"""

from __future__ import annotations

import logging

from tornado import httputil

from kvd.handlers.authorizer import Authorizer
from kvd.handlers.cross_site import BrowserPolicy
from kvd.handlers.extras.routes import ExtraRoutes
from kvd.handlers.keys.key_space import KeySpace
from kvd.handlers.routed_request import Destinations, RoutedRequest
from kvd.http.compression import accepts_gzip
from kvd.http.connection import Connection, ServeWhole
from kvd.http.parsing.headers import Block
from kvd.http.server import Delegate, HttpServer
from kvd.logs import RateLimit
from kvd.storage.format.event import Event
from kvd.v2.errors import ApiError
from kvd.v2.form import is_form
from kvd.v2.paths import authority

log = logging.getLogger(__name__)

# A longer body is counted until it is answered, and so does not go the short way.
_UNCOUNTED_BODY_BYTES = 16 << 10

_VARY = b"Vary: Origin\r\n"


class Router(Delegate[Connection]):
    """Routes the requests of all connections."""

    def __init__(
        self,
        keys: KeySpace,
        others: httputil.HTTPServerConnectionDelegate,
        authorizer: Authorizer,
        browsers: BrowserPolicy,
        extras: ExtraRoutes | None = None,
        *,
        compresses: bool = False,
    ) -> None:
        self.keys = keys
        self._compresses = compresses
        self.extras = extras
        self._to = Destinations(keys, extras, others, authorizer, self.admit)
        self.authorizer = authorizer
        self.browsers = browsers
        self._refusals = RateLimit(10.0)
        limits = keys.limits
        # The value of a form is shorter than the form by its name.
        self._short_way_bytes_max = min(
            *(_UNCOUNTED_BODY_BYTES, limits.body_bytes_max, limits.value_bytes_max),
        )
        self.has_cors = bool(browsers.origins)
        if self.has_cors:
            self.refusal_headers = _VARY
        self._short_way: ServeWhole = _decline
        authorizer.subscribe(self._look)

    def attach(self, server: HttpServer) -> None:
        """Serve the plain requests of a server."""
        self._short_way = self.keys.short_way(server)
        self._look()

    def _look(self) -> None:
        needs_headers = self.has_cors or self.authorizer.enabled
        self.serve_whole = _decline if needs_headers else self._short_way

    def short_way(self, block: Block) -> bool | None:
        """Return whether requests with a block have a form, None where its headers decide more.

        Headers of browsers and of extras do.
        """
        if block.content_length > self._short_way_bytes_max:
            return None
        headers = block.headers
        is_usual = self.browsers.is_usual(headers)
        if not is_usual or not (self.extras is None or self.extras.is_usual(headers)):
            return None
        if self._compresses and accepts_gzip(headers.get("Accept-Encoding", "")):
            return None
        try:
            return is_form(block.content_type)
        except ApiError:
            return None

    def answer(self, connection: Connection, outcome: object) -> None:
        """Answer a command with its outcome."""
        assert isinstance(outcome, Event | ApiError)
        self.keys.writes.answer(connection, outcome)

    def admit(
        self, connection: Connection, method: str, target: str, headers: httputil.HTTPHeaders
    ) -> bool:
        """Refuse a request of a page of another site; return whether it continues."""
        peer = connection.context
        refusal = self.browsers.refusal(
            method,
            headers,
            is_secured=peer.protocol == "https",
            authority=None if target.startswith("/") else authority(target),
        )
        if refusal is not None:
            if self._refusals.allow():
                more = self._refusals.suppressed()
                log.warning("a request of %s was refused: %s%s", peer.remote_ip, refusal[1], more)
            connection.reject(*refusal)
            return False
        if self.has_cors:
            connection.extra_headers = self.cors(headers)
        return True

    def start_request(self, connection: Connection) -> httputil.HTTPMessageDelegate:
        """Return what receives the next request of a connection."""
        return RoutedRequest(self._to, connection)

    def cors(self, headers: httputil.HTTPHeaders) -> bytes:
        """Return the header lines that let a browser's page read an answer, if it may.

        `Vary` is always there: the response to another page may differ (Fetch, section 3.2.5).
        """
        origin = "*" if "*" in self.browsers.origins else headers.get("Origin", "")
        if origin not in self.browsers.origins:
            return _VARY
        return _VARY + (
            "Access-Control-Allow-Methods: POST, GET, OPTIONS, PUT, DELETE\r\n"
            f"Access-Control-Allow-Origin: {origin}\r\n"
            "Access-Control-Allow-Headers: accept, content-type, authorization\r\n"
        ).encode("latin-1")


def _decline(connection: Connection, request: bytes) -> None:
    """Leave all requests to the long way: headers decide on the answers."""

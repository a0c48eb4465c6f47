"""One request from its head to its destination: the key space, an extra, or Tornado's application.

What Go's net/http does before it looks at a route is the same for all of them: OPTIONS is answered
on any path, a path that is not clean is redirected, bad escapes are refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from html import escape as escape_html
from http import HTTPStatus
from typing import NamedTuple

from tornado import httputil

from kvd.handlers.authorizer import Admission, Authorizer, Caller, KeyHead, KeyRequest, caller_of
from kvd.handlers.extras.extra_request import ExtraRequest
from kvd.handlers.extras.routes import ExtraRoutes
from kvd.handlers.keys.key_space import METHODS, KeySpace
from kvd.handlers.keys.responder import TOO_LARGE, TOO_MUCH
from kvd.http.connection import Connection
from kvd.http.tornado import TornadoConnection
from kvd.v2.errors import INVALID_FORM, RAFT_INTERNAL, ApiError
from kvd.v2.form import has_too_many_parameters, is_form
from kvd.v2.paths import KEYS, BadEscape, clean_path, decode_path, encode_path, key_of, origin_form

OTHER_BODY_BYTES_MAX = 256 << 10
"""No route but the key space keeps a longer body."""

_TEXT = "Content-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n"


class Destinations(NamedTuple):
    """Destinations of requests.

    Attributes:
        keys: The key space.
        extras: Routes of the extras, if these are on.
        others: Tornado's application.
        authorizer: Admits requests to keys.
        admit: Refuses a request that a page of another site may have sent; returns whether it goes
            on.
    """

    keys: KeySpace
    extras: ExtraRoutes | None
    others: httputil.HTTPServerConnectionDelegate
    authorizer: Authorizer
    admit: Callable[[Connection, str, str, httputil.HTTPHeaders], bool]


class RoutedRequest(httputil.HTTPMessageDelegate):
    """One request, as far as it has come.

    When it is complete it is one of four: one to the key space (`_key`), one that comes to it by
    another way (`_extra`), one that Tornado's application has already (`_other`), or one that is
    answered here (`_act`).
    """

    __slots__ = (
        "_act",
        "_admission",
        "_body_bytes",
        "_connection",
        "_extra",
        "_form",
        "_head",
        "_key",
        "_method",
        "_other",
        "_query",
        "_to",
        "_waits",
    )

    def __init__(self, to: Destinations, connection: Connection) -> None:
        self._to = to
        self._connection = connection
        self._other: httputil.HTTPMessageDelegate | None = None
        self._extra: ExtraRequest | None = None
        self._act: Callable[[], None] | None = None
        self._form: bytearray | None = None
        self._body_bytes = 0
        self._method = ""
        self._key = b""
        self._query = b""
        self._head: KeyHead | None = None
        self._admission: Admission | None = None
        self._waits = False

    def headers_received(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
    ) -> None:
        """Take the head, and decide on the destination."""
        assert isinstance(start_line, httputil.RequestStartLine)
        method, target, version = start_line
        self._method = method
        connection = self._connection
        if not self._to.admit(connection, method, target, headers):
            return
        raw, _, query = target.encode("latin-1").partition(b"?")
        try:
            if not raw.startswith(b"/") and method != "CONNECT":
                raw = origin_form(raw)
            path = decode_path(raw)
        except BadEscape:
            connection.reject(HTTPStatus.BAD_REQUEST)
            return
        cleaned = clean_path(path)
        if method == "OPTIONS":
            self._act = partial(self._plain, HTTPStatus.OK, "", "")
        elif raw == b"*":
            connection.keep_alive = False
            self._act = partial(self._plain, HTTPStatus.BAD_REQUEST, "", "")
        elif cleaned != path and method != "CONNECT":
            self._act = partial(self._redirect, cleaned, query)
        else:
            self._route(path, cleaned, query, version, headers)

    def _route(
        self,
        path: bytes,
        cleaned: bytes,
        query: bytes,
        version: str,
        headers: httputil.HTTPHeaders,
    ) -> None:
        method, extras = self._method, self._to.extras
        if extras is not None:
            start = method, cleaned, query
            self._extra = extras.begin(self, self._connection, start, headers)
        if self._extra is not None:
            pass
        elif (key := key_of(cleaned)) is None:
            self._pass_on(cleaned, query, version, headers)
        elif method not in METHODS:
            allow = f"Allow: {','.join(METHODS)}\r\n{_TEXT}"
            status = HTTPStatus.METHOD_NOT_ALLOWED
            self._act = partial(self._plain, status, allow, "Method Not Allowed\n")
        else:
            self._keys_request(key, query)
            if self._to.authorizer.enabled and self._key:
                self._ask_first(path, headers)

    def data_received(self, chunk: bytes) -> None:
        """Take a piece of the body: kept where it is a form, else dropped."""
        if self._extra is not None:
            self._extra.data_received(chunk)
            return
        if self._other is None and self._form is None:
            return
        self._body_bytes += len(chunk)
        too_large = self._body_bytes > self._to.keys.limits.body_bytes_max
        is_kept = self._other is None or self._body_bytes <= OTHER_BODY_BYTES_MAX
        too_much = is_kept and not self._connection.hold_piece(len(chunk))
        if self._other is not None:
            if too_large or too_much:
                # Tornado's handlers keep what they are given.
                other, self._other = self._other, None
                other.on_connection_close()
                self._connection.reject(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            else:
                self._other.data_received(chunk)
        elif self._form is not None:
            self._form += chunk
            if too_large:
                self._give_up(ApiError(INVALID_FORM, b"http: POST too large", limit=TOO_LARGE))
            elif too_much:
                self._give_up(
                    ApiError(RAFT_INTERNAL, b"etcdserver: too many requests", limit=TOO_MUCH)
                )

    def _give_up(self, refusal: ApiError) -> None:
        """Answer before the end of a body, and close: far more of it may follow."""
        self._form = None
        self._key = b""
        self._connection.keep_alive = False
        self._to.keys.responder.refuse(self._connection, self._method, refusal)

    def finish(self) -> None:
        """Answer the complete request, now or later."""
        if self._other is not None:
            self._other.finish()
        elif self._extra is not None:
            self._extra.finish()
        elif self._act is not None:
            self._act()
        elif self._key:
            form = bytes(self._form) if self._form else b""
            # Not kept twice.
            self._form = None
            authorizer = self._to.authorizer
            if authorizer.enabled:
                head = self._head
                if head is None:
                    # Authentication was off when the head came.
                    head = KeyHead(self._connection, self._method, self._key, Caller())
                authorizer.serve(KeyRequest(head, self._key, self._query, form), self._admission)
            else:
                self._to.keys.serve(self._connection, self._method, self._key, self._query, form)

    def on_connection_close(self) -> None:
        """Note that the client has gone before its response."""
        if self._other is not None:
            self._other.on_connection_close()

    def _pass_on(
        self,
        path: bytes,
        query: bytes,
        version: str,
        headers: httputil.HTTPHeaders,
    ) -> None:
        """Hand the request to Tornado's application, its target in the one form that it routes."""
        connection = self._connection
        if has_too_many_parameters(query):
            connection.reject(HTTPStatus.BAD_REQUEST, "too many parameters")
            return
        target = encode_path(path) + ("?" + query.decode("latin-1") if query else "")
        other = self._to.others.start_request(connection, TornadoConnection(connection))
        try:
            prepared = other.headers_received(
                httputil.RequestStartLine(self._method, target, version), headers
            )
        except httputil.HTTPInputError:
            # It is stricter than Go, with names of hosts for one.
            connection.reject(HTTPStatus.BAD_REQUEST)
        else:
            self._other = other
            if prepared is not None:
                # The body is not received before the route has admitted its sender.
                connection.wait()
                future = asyncio.ensure_future(prepared)
                future.add_done_callback(lambda _: connection.proceed(self))

    def _ask_first(self, path: bytes, headers: httputil.HTTPHeaders) -> None:
        """Note the claimed identity; authenticate the sender of a form before it is received."""
        connection = self._connection
        caller = caller_of(headers.get_list("Authorization"), connection.context)
        self._head = KeyHead(connection, self._method, path[len(KEYS) :], caller)
        if self._form is None:
            return
        self._to.authorizer.admit(self._head, self._admitted)
        if self._admission is None and self._key:
            self._waits = True
            self._connection.wait()

    def _admitted(self, outcome: Admission | ApiError) -> None:
        if isinstance(outcome, ApiError):
            self._form = None
            self._key = b""
            self._to.keys.responder.refuse(self._connection, self._method, outcome)
        else:
            self._admission = outcome
            if self._waits:
                self._connection.proceed(self)

    def _keys_request(self, key: bytes, query: bytes) -> None:
        method = self._method
        if method in ("PUT", "POST"):
            try:
                if is_form(self._connection.content_type):
                    self._form = bytearray()
            except ApiError as refusal:
                keys = self._to.keys
                # Its traceback leads here again: a cycle, which would keep a long header in memory.
                refusal.__traceback__ = None
                self._act = partial(keys.responder.refuse, self._connection, method, refusal)
                return
        self._key, self._query = key, query

    def _redirect(self, path: bytes, query: bytes) -> None:
        location = encode_path(path)
        if query:
            location += "?" + query.decode("latin-1")
        ascii_only = "".join(c if c.isascii() else f"%{ord(c):02x}" for c in location)
        headers = f"Location: {ascii_only}\r\n"
        body = ""
        if self._method in ("GET", "HEAD"):
            headers += "Content-Type: text/html; charset=utf-8\r\n"
        if self._method == "GET":
            shown = escape_html(location).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
            body = f'<a href="{shown}">Moved Permanently</a>.\n\n'
        self._plain(HTTPStatus.MOVED_PERMANENTLY, headers, body)

    def _plain(self, status: HTTPStatus, headers: str, body: str) -> None:
        self._connection.respond(
            status,
            headers.encode("latin-1"),
            body.encode("latin-1"),
            head_only=self._method == "HEAD",
        )

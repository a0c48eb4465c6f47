"""Routes to keys other than `/v2/keys`: `/v2/raw/KEY`, `/v2/mget`, `/v2/txn`.

etcd does not have them, so that a write by one of them fails there. `/v2/keys` itself is read
as `/v2/raw` is where the headers of a request ask for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from time import monotonic
from typing import NamedTuple

from tornado import httputil

from kvd.core.committer import Committer
from kvd.handlers.authorizer import Admission, Authorizer, KeyHead, KeyRequest, caller_of
from kvd.handlers.extras.extra_request import ExtraRequest, Serve
from kvd.handlers.extras.reading.mget import BODY_BYTES_MAX as MGET_BYTES_MAX
from kvd.handlers.extras.reading.mget import MGET, MultiGet, read_body
from kvd.handlers.extras.reading.reads import ExtraReads
from kvd.handlers.extras.transact import Transactions
from kvd.handlers.keys.key_space import KeySpace
from kvd.handlers.keys.responder import TOO_LARGE, VALUE_TOO_LARGE
from kvd.handlers.rights import DENIED
from kvd.http.connection import Connection
from kvd.v2.errors import INVALID_FORM, UNAUTHORIZED, ApiError
from kvd.v2.extras.raw import (
    METHODS,
    RAW,
    Conditions,
    ReadHeaders,
    parse_read,
    parse_write,
    prefers_raw,
    wants_events,
)
from kvd.v2.extras.txn import BODY_BYTES_MAX as TXN_BYTES_MAX
from kvd.v2.extras.txn import TXN
from kvd.v2.paths import KEYS, key_of
from kvd.v2.request import Parsed

_READS = ("GET", "HEAD")
_TEXT = "Content-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n"
_SLICE_S = 0.001


class _Service(NamedTuple):
    """Function that serves a request, its methods, and the limit of the body with its refusal."""

    serve: Serve
    methods: Sequence[str]
    body_bytes_max: int
    too_large: ApiError


class ExtraRoutes:
    """Serves the requests to these routes."""

    def __init__(
        self, keys: KeySpace, reads: ExtraReads, authorizer: Authorizer, committer: Committer
    ) -> None:
        self.keys = keys
        self._transactions = Transactions(keys, reads, authorizer, committer)
        self.reads = reads
        self.authorizer = authorizer

    def is_usual(self, headers: httputil.HTTPHeaders) -> bool:
        """Return whether no header requests another response than etcd's."""
        if "If-None-Match" in headers:
            return False
        accept = headers.get("Accept", "")
        return not (prefers_raw(accept) or wants_events(accept))

    def begin(
        self,
        outer: httputil.HTTPMessageDelegate,
        connection: Connection,
        start: tuple[str, bytes, bytes],
        headers: httputil.HTTPHeaders,
    ) -> ExtraRequest | None:
        """Begin to take a request, or decline it.

        Args:
            outer: the delegate that the connection has for the request.
            connection: of the client.
            start: its method, cleaned path and raw query.
            headers: its headers.
        """
        method, path, query = start
        base = RAW
        if path.startswith(KEYS):
            if method not in _READS or self.is_usual(headers):
                return None
            base = KEYS
        key = key_of(path, base)
        if key is None and path not in (MGET, TXN):
            return None
        caller = caller_of(headers.get_list("Authorization"), connection.context)
        head = KeyHead(connection, method, None if key is None else path[len(base) :], caller)
        if key is None:
            service = self._of_bodies(path, head, headers)
        else:
            service = self._of_key(head, (base, key, query), headers)
        begin = partial(ExtraRequest, outer, self.keys, self.authorizer, head)
        if method not in service.methods:
            request = begin(partial(_not_allowed, connection, service.methods))
        elif method in ("PUT", "POST"):
            limit = service.body_bytes_max
            request = begin(service.serve, too_large=service.too_large, body_bytes_max=limit)
        else:
            request = begin(service.serve)
        request.begin()
        return request

    def _of_bodies(self, path: bytes, head: KeyHead, headers: httputil.HTTPHeaders) -> _Service:
        """Return what serves a request whose body names the keys."""
        too_large = ApiError(INVALID_FORM, b"http: POST too large", limit=TOO_LARGE)
        if path == TXN:
            serve = partial(self._transactions.serve, head, headers.get("Content-Type", ""))
            return _Service(serve, ("POST",), TXN_BYTES_MAX, too_large)
        return _Service(_MultiGet(self, head).serve, ("POST",), MGET_BYTES_MAX, too_large)

    def _of_key(
        self, head: KeyHead, target: tuple[bytes, bytes, bytes], headers: httputil.HTTPHeaders
    ) -> _Service:
        """Return what serves a request for one value."""
        limit = self.keys.limits.value_bytes_max
        cause = b"the value has more than the %d bytes that are allowed" % limit
        too_large = ApiError(INVALID_FORM, cause, limit=VALUE_TOO_LARGE)
        return _Service(_Raw(self, head, target, headers).serve, METHODS, limit, too_large)


class _Raw:
    """A request for a value as it is; `target` is where keys begin, the key, and the query."""

    def __init__(
        self,
        routes: ExtraRoutes,
        head: KeyHead,
        target: tuple[bytes, bytes, bytes],
        headers: httputil.HTTPHeaders,
    ) -> None:
        self._routes = routes
        self._head = head
        self._base, self._key, self._query = target
        self._headers = headers

    def serve(self, body: bytes, admission: Admission | None) -> None:
        """Hand it to the key space, if its sender may do that."""
        keys, authorizer = self._routes.keys, self._routes.authorizer
        connection, method, _, _ = self._head
        try:
            parsed = self._parse(body)
        except ApiError as refusal:
            keys.responder.refuse(connection, method, refusal)
            return
        if authorizer.enabled:
            request = KeyRequest(self._head, self._key, self._query, body, parsed)
            authorizer.serve(request, admission)
        else:
            keys.serve(connection, method, self._key, self._query, body, parsed=parsed)

    def _parse(self, body: bytes) -> Parsed:
        method, key, query, headers = self._head.method, self._key, self._query, self._headers
        etags = headers.get("If-None-Match", "").encode("latin-1")
        if method not in _READS:
            conditions = Conditions(headers.get("If-Match", "").encode("latin-1"), etags)
            return parse_write(method, key, query, body, conditions)
        last_event_id = headers.get("Last-Event-ID", "").encode("latin-1")
        given = ReadHeaders(headers.get("Accept", ""), etags, last_event_id)
        return parse_read(method, key, query, given, path_is_raw=self._base == RAW)


class _MultiGet:
    """A request for several keys."""

    def __init__(self, routes: ExtraRoutes, head: KeyHead) -> None:
        self._routes = routes
        self._head = head

    def serve(self, body: bytes, admission: Admission | None) -> None:
        """Answer it, if its sender may read them."""
        authorizer = self._routes.authorizer
        try:
            asked = read_body(body)
        except ApiError as refusal:
            self._refuse(refusal)
            return
        if authorizer.enabled:
            authorizer.readmit(self._head, admission, partial(self._go_on, asked))
        else:
            self._go_on(asked, None)

    def _go_on(self, asked: MultiGet, outcome: Admission | ApiError | None) -> None:
        if isinstance(outcome, ApiError):
            self._refuse(outcome)
        else:
            connection = self._head.connection
            self._routes.reads.responder.start(connection, self._answer(asked, outcome))

    async def _answer(self, asked: MultiGet, admission: Admission | None) -> None:
        try:
            if admission is not None:
                await self._judge(asked, admission)
            self._routes.reads.multi_get(self._head.connection, asked)
        except ApiError as refusal:
            self._refuse(refusal)

    async def _judge(self, asked: MultiGet, admission: Admission) -> None:
        """Refuse it if one of the keys may not be read; roles may have thousands of patterns."""
        until = monotonic() + _SLICE_S
        for path in asked.paths:
            if not self._routes.authorizer.rights(admission, path).may_read():
                raise ApiError(UNAUTHORIZED, DENIED)
            if monotonic() > until:
                async with self._routes.reads.slices:
                    await asyncio.sleep(0)
                until = monotonic() + _SLICE_S

    def _refuse(self, refusal: ApiError) -> None:
        self._routes.keys.responder.refuse(self._head.connection, self._head.method, refusal)


def _not_allowed(connection: Connection, methods: Sequence[str], *_: object) -> None:
    """Refuse a method, as `/v2/keys` does."""
    lines = f"Allow: {','.join(methods)}\r\n{_TEXT}".encode()
    connection.respond(HTTPStatus.METHOD_NOT_ALLOWED, lines, b"Method Not Allowed\n")

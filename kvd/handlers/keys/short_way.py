"""The short way of a request: from its bytes to its response, or to a command in the queue.

Nearly all requests are of a few forms: a read, a write of a value, a removal, each of a plain path
and without a header that matters. They pass through one function, because each call, each object
and each access to an attribute more is a hundredth of the cost of a write (counted). Any other
request is declined, and goes the long way (`kvd.handlers.router`), which answers everything. The
two ways answer the same request byte for byte alike.

Invariant: request lines and header blocks are parsed and checked when they are cached. So one that
is found by its bytes needs no further check.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from kvd.handlers.keys.responder import END
from kvd.http.connection import ANSWERING, LARGE_BYTES, Connection, ServeWhole
from kvd.http.parsing.request_parser import SHORT_LINE_BYTES, is_deep
from kvd.http.server import HttpServer
from kvd.storage.index.errors import BROKEN
from kvd.v2.commands import Command, CreateInOrder, Get, Set, Watch
from kvd.v2.errors import ApiError
from kvd.v2.form import TakesLong
from kvd.v2.request import Parsed, parse, parse_write, varies

if TYPE_CHECKING:
    from kvd.handlers.keys.parts import KeyParts
    from kvd.handlers.keys.value_cache import ValueCache
    from kvd.handlers.keys.writes import Writes
    from kvd.storage.format.node import Node

# So many request lines are kept; each, and what it asks for, takes less than a kilobyte.
_LINES_MAX = 8192

# A request line that needs neither cleaning nor decoding: no component begins with a dot, and
# nothing is escaped.
_FIRST = rb"[0-9A-Za-z_~!$&'()*+,;=:@\-]"
_LINE = re.compile(
    rb"(GET|PUT|POST|DELETE) /v2/keys((?:/%b[.%b*+)++)(?:\?([!-~]*+))? HTTP/1\.1"
    % (_FIRST, _FIRST[1:])
)

# A longer one goes the long way.
_LINE_BYTES_MAX = 4096
# What a request line asks for: the read of a key, a write without a query string, or else.
_READ, _PUT, _POST, _OTHER = range(4)
_Target = tuple[int, bytes, Callable[[Connection, bytes], None] | None]
"""One of these, the key, and what serves the request with its form where no less does.

None declines all of that kind; such a line is not kept."""
_DECLINE: _Target = (_OTHER, b"", None)
_NO_BLOCK = (-1, False)

_READ_ANSWER = b'%b%d\r\n\r\n{"action":"get","node":%b}\n'
_READ_BYTES = len(b'{"action":"get","node":}\n')

_OK = int(HTTPStatus.OK)
_new = tuple.__new__


class LongWay(Protocol):
    """Fallback for all other requests: `kvd.handlers.keys.key_space.KeySpace`."""

    def serve(
        self,
        connection: Connection,
        method: str,
        key: bytes,
        query: bytes,
        form: bytes,
        *,
        parsed: Parsed | None = None,
    ) -> None:
        """Answer one request, now or later, after `Connection.begin`."""

    def read(self, connection: Connection, get: Get, node: Node | None) -> None:
        """Answer a GET, after `Connection.begin`; the node is the committed one, if known."""


class ShortWay:
    """The short way of the connections of a server.

    Attributes:
        serve: The `serve_whole` of `kvd.http.server.Delegate`.
    """

    def __init__(
        self,
        server: HttpServer,
        parts: KeyParts,
        texts: ValueCache,
        *,
        depth_max: int,
        query_bytes_max: int,
        writes: Writes,
        long_way: LongWay,
    ) -> None:
        self._server = server
        self._state = parts.store.state
        self._committer = parts.committer
        self._gets = parts.stats.gets
        self._texts = texts
        self._raw_ns = parts.clock.raw_ns
        self._fixed_headers = parts.responder.fixed
        self._responder = parts.responder
        self._writes = writes
        self._depth_max = depth_max
        self._query_bytes_max = query_bytes_max
        self._long_way = long_way
        self._lines: dict[bytes, _Target] = {}
        self.serve = self._serving()

    def _serving(self) -> ServeWhole:
        """Return `serve`: a function whose variables are bound once costs less than a method."""
        server, state, committer, gets = self._server, self._state, self._committer, self._gets
        lines = server.status_lines
        timer = committer.expiry_timer
        find_block, find_line = server.header_cache.short.get, self._lines.get
        find_text, raw_ns, submit = self._texts.kept.get, self._raw_ns, committer.submit
        look_at, read = self._look_at, self._read
        # What answers to reads begin with; it changes with the second, and with each commit.
        start, made, applied = b"", lines.made, state.applied

        def serve(connection: Connection, request: bytes) -> bytes | None:
            nonlocal start, made, applied
            head, end, body = request.partition(b"\r\n\r\n")
            line, _, fields = head.partition(b"\r\n")
            length, is_form = find_block(fields, _NO_BLOCK)
            if length != len(body) or not end:
                return None
            act, key, otherwise = find_line(line) or look_at(line, len(head))
            if act == _READ:
                text = find_text(key)
                if text is None or raw_ns() >= timer.overdue_at:
                    return read(connection, key)
                if applied is not state.applied or made is not lines.made or not start:
                    made, applied = lines.made, state.applied
                    start = self._start()
                gets[0] += 1
                return _READ_ANSWER % (start, len(text) + _READ_BYTES, text)
            if (
                act <= _POST
                and is_form
                and body[:6] == b"value="
                # By four searches: a pattern takes 94 us for 10 KB instead of one (measured).
                and not (b"&" in body or b"%" in body or b"+" in body or b";" in body)
            ):
                if act == _PUT:
                    submit(_new(Set, (key, body[6:], False, None, False)), connection)
                else:
                    submit(_new(CreateInOrder, (key, body[6:], False, None)), connection)
                connection.stage = ANSWERING
                return b""
            if otherwise is None:
                return None
            otherwise(connection, body if is_form else b"")
            return b""

        return serve

    def _look_at(self, line: bytes, head_bytes: int) -> _Target:
        """Return the target of a request line, and cache it if it is short and may come again."""
        match = _LINE.fullmatch(line)
        if match is None:
            return _DECLINE
        is_short = len(line) <= SHORT_LINE_BYTES
        too_long = len(line) > _LINE_BYTES_MAX or head_bytes > self._server.limits.header_bytes_max
        if not is_short and (too_long or is_deep(line, len(line))):
            return _DECLINE
        method, key, query = match.groups()
        if method in (b"PUT", b"POST") and (
            key.count(b"/") > self._depth_max or len(query or b"") > self._query_bytes_max
        ):
            return _DECLINE
        target = self._target(method.decode(), key, query)
        if is_short and target is not _DECLINE and (query is None or not varies(query)):
            if len(self._lines) >= _LINES_MAX:
                self._lines.clear()
            self._lines[line] = target
        return target

    def _target(self, method: str, key: bytes, query: bytes | None) -> _Target:
        """Return the target of the parts of a request line."""
        if method in ("PUT", "POST"):
            act = _OTHER if query is not None else _PUT if method == "PUT" else _POST
            return act, key, partial(self._write, method, key, query or b"")
        if method == "GET" and query is None:
            return _READ, key, None
        try:
            asked, *_ = parse(method, key, query or b"", b"")
        except (ApiError, TakesLong):
            return _DECLINE
        if isinstance(asked, Get | Watch):
            return _OTHER, key, partial(self._ask, asked)
        return _OTHER, key, partial(self._submit, asked)

    def _read(self, connection: Connection, key: bytes) -> bytes:
        """Serve a read of a key whose text is not kept, or may not be what is to be shown."""
        node = None
        try:
            # It may be below a directory that has ended.
            if self._raw_ns() < self._committer.expiry_timer.overdue_at:
                node = self._state.find(key)
        except BROKEN as damage:
            connection.begin()
            self._committer.fail(damage)
            return b""
        text = None if node is None else self._texts.keep(key, node)
        if text is None or len(text) > LARGE_BYTES:
            connection.begin()
            self._long_way.read(connection, Get(key), node)
            return b""
        self._gets[0] += 1
        return _READ_ANSWER % (self._start(), len(text) + _READ_BYTES, text)

    def _write(
        self, method: str, key: bytes, query: bytes, connection: Connection, form: bytes
    ) -> None:
        """Serve a PUT or POST of any form."""
        try:
            command, no_value, _ = parse_write(method, key, query, form)
        except ApiError as refusal:
            connection.begin()
            self._responder.refuse(connection, method, refusal)
        except TakesLong:
            connection.begin()
            self._long_way.serve(connection, method, key, query, form)
        else:
            done = self._writes.without_value(connection) if no_value else connection
            self._committer.submit(command, done)
            connection.stage = ANSWERING

    def _submit(self, command: Command, connection: Connection, _form: bytes) -> None:
        """Serve a DELETE, whose request line says all."""
        self._committer.submit(command, connection)
        connection.stage = ANSWERING

    def _ask(self, asked: Get | Watch, connection: Connection, _form: bytes) -> None:
        """Serve a read or a watch, whose request line says all."""
        connection.begin()
        parsed = asked, False, asked.recursive
        self._long_way.serve(connection, "GET", asked.key, b"", b"", parsed=parsed)

    def _start(self) -> bytes:
        """Return what answers to reads begin with: up to the length."""
        applied = self._state.applied
        start = self._server.start(_OK, http10=False)
        end = END % (applied.pos, applied.term)
        return b"%b%bX-Etcd-Index: %d%b" % (start, self._fixed_headers, applied.index, end)

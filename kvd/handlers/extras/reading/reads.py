"""Reads with extras: the kind of each, and its response, at once or in turns.

A read of no more than a millisecond is answered at once. Longer listings are rendered as large ones
(handlers/keys/large_listings.py); scans go through more than they show (scan_runner.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from functools import partial
from http import HTTPStatus
from time import monotonic
from weakref import WeakValueDictionary

from kvd.handlers.extras.reading.history import Span, at, history
from kvd.handlers.extras.reading.listing import render
from kvd.handlers.extras.reading.mget import MGET, MultiGet
from kvd.handlers.extras.reading.mget import render as render_many
from kvd.handlers.extras.reading.nodes import node_slices, node_text
from kvd.handlers.extras.reading.scan import Scan, count, find, marks
from kvd.handlers.extras.reading.scan_runner import Scans, SlicePace
from kvd.handlers.extras.reading.walk import State, Walk
from kvd.handlers.keys.large_listings import Begin
from kvd.handlers.keys.listing import Listing, Slices, advance
from kvd.handlers.keys.parts import KeyParts
from kvd.handlers.keys.reads import Reads
from kvd.handlers.rights import Rights
from kvd.http.connection import LARGE_BYTES, Connection
from kvd.json_text import escape
from kvd.limits.memory_budget import Piece
from kvd.storage.format.node import Node
from kvd.storage.index.view import View
from kvd.v2 import rules
from kvd.v2.commands import Get
from kvd.v2.errors import INVALID_FIELD, NOT_A_FILE, UNAUTHORIZED, ApiError
from kvd.v2.extras.parameters import AS_EVER, ReadExtras, read_extras
from kvd.v2.extras.raw import entity_tag, is_named, is_text, raw_lines, type_lines
from kvd.v2.response import directory_end, directory_start

# What takes longer is not answered at once.
_AT_ONCE_S = 0.001
_OK = int(HTTPStatus.OK)
_NOT_MODIFIED = int(HTTPStatus.NOT_MODIFIED)
_START, _END = b'{"action":"get","node":', b"}\n"


class ExtraReads:
    """Answers the reads with extras of one key space."""

    def __init__(self, parts: KeyParts, reads: Reads, value_bytes_max: int) -> None:
        self.store = parts.store
        self.stats = parts.stats
        self.memory = parts.memory
        self.responder = parts.responder
        self.slices = parts.slices
        self.reads = reads
        """Answers the reads without extras."""
        self.scans = Scans(parts)
        self.sent: WeakValueDictionary[int, Piece] = WeakValueDictionary()
        """Large values that are being sent as they are, by the index of their last change."""
        self._value_bytes_max = value_bytes_max

    def read(self, connection: Connection, method: str, get: Get, rights: Rights | None) -> None:
        """Answer a read with extras, now or later.

        Raises:
            ApiError: it is refused.
        """
        extras = read_extras(get, self._value_bytes_max)
        if rights is not None and extras.is_recursive(get):
            allowed = rights.narrow(get, recursive=True)
            assert isinstance(allowed, Get)
            get = allowed
        _Read(self, connection, method, get, extras).begin()

    def multi_get(self, connection: Connection, asked: MultiGet) -> None:
        """Answer a request for several keys, now or later."""

        def begin(view: View, now_ns: int, is_overdue: bool) -> Slices:
            applied = self.store.applied
            return render_many(
                view.at(now_ns) if is_overdue else view,
                asked,
                index=applied.index,
                now_ns=now_ns,
                offset_ns=applied.clock_offset_ns,
            )

        self.list(connection, "GET", Get(MGET), begin, asked)

    def list(
        self, connection: Connection, method: str, get: Get, begin: Begin, place: Hashable
    ) -> None:
        """Answer what is rendered in slices, at once if it is not much.

        What has the same place is answered alike.
        """
        began = monotonic()
        slices = begin(self.store.view, *self.reads.now())
        (body, *more), listing = advance(slices, until=began + _AT_ONCE_S)
        connection.spend(monotonic() - began)
        if listing and not more and isinstance(body, bytes) and len(body) <= LARGE_BYTES:
            self.respond(connection, method, get, body, listing.lines)
            return
        slices.close()
        job = self.reads.large.join(connection, method, get, begin, place)
        if job is not None:
            self.responder.start(connection, self.reads.large.run(job))

    def respond(
        self, connection: Connection, method: str, get: Get, body: bytes, lines: bytes
    ) -> None:
        """Answer with a body and further header lines."""
        self.stats.count(get, succeeded=True)
        head = self.responder.head(self.store.applied.index) + lines
        connection.respond(_OK, head, body, head_only=method == "HEAD")


class _Read:
    """One read with extras."""

    def __init__(
        self, reads: ExtraReads, connection: Connection, method: str, get: Get, extras: ReadExtras
    ) -> None:
        self._reads = reads
        self._connection = connection
        self._method = method
        self._get = get
        self._extras = extras

    def begin(self, *, has_room: bool = False) -> None:
        """Answer it, now or later; with `has_room` it has waited for memory, which is there now.

        Raises:
            ApiError: it is refused.
        """
        get, extras = self._get, self._extras
        store, responder = self._reads.store, self._reads.responder
        if extras.history or extras.at is not None:
            self._reads.stats.heads += self._method == "HEAD"
            self._reads.stats.recursive_reads += get.recursive
            responder.start(self._connection, self._run(self._past()))
            return
        now_ns, is_overdue = self._reads.reads.now()
        view = store.view_at(now_ns) if is_overdue else store.view
        node = view.find(get.key)
        is_file = node is not None and not node.dir_id
        if is_file and not extras.raw and extras.shape == AS_EVER:
            # All of the extras are about directories.
            self._reads.reads.read(self._connection, self._method, get)
            return
        if not has_room:
            self._reads.stats.heads += self._method == "HEAD"
            self._reads.stats.recursive_reads += get.recursive
        try:
            node = self._existing(view)
        except ApiError as refusal:
            self._count_refusal(refusal)
            raise
        if extras.raw:
            self._answer_raw(node, now_ns, has_room=has_room)
        elif node.dir_id and not get.may_list:
            raise ApiError(UNAUTHORIZED, b"Insufficient credentials")
        elif node.dir_id and (extras.counts or extras.find or extras.marks):
            responder.start(self._connection, self._run(self._scan(node, now_ns)))
        else:
            place = (get.key, get.recursive, extras)
            self._reads.list(self._connection, self._method, get, self._slices, place)

    def _existing(self, view: View) -> Node:
        index = self._reads.store.applied.index
        node = rules.existing(view, self._get.key, index)
        if node.dir_id and self._extras.raw:
            raise ApiError(NOT_A_FILE, self._get.key, index)
        return node

    def _count_refusal(self, refusal: ApiError) -> None:
        stats = self._reads.stats
        stats.count(self._get, succeeded=False)
        stats.refused(self._get, refusal, method=self._method)

    def _respond(self, index: int, body: bytes, lines: bytes = b"") -> None:
        self._reads.stats.count(self._get, succeeded=True)
        head = self._reads.responder.head(index) + lines
        self._connection.respond(_OK, head, body, head_only=self._method == "HEAD")

    # Listings, and files in other shapes

    def _slices(self, view: View, now_ns: int, is_overdue: bool) -> Slices:
        """Begin to render what is there now."""
        get, applied = self._get, self._reads.store.applied
        node = rules.existing(view.at(now_ns) if is_overdue else view, get.key, applied.index)
        offset_ns = applied.clock_offset_ns
        if not node.dir_id:
            return self._file(node, now_ns, offset_ns)
        return render(
            view,
            get.key,
            node,
            self._extras,
            recursive=get.recursive,
            now_ns=now_ns,
            offset_ns=offset_ns,
        )

    def _file(self, node: Node, now_ns: int, offset_ns: int) -> Slices:
        key, shape = escape(self._get.key), self._extras.shape
        text = node_text(key, node, shape, now_ns, offset_ns)
        if text is not None:
            return Listing([_START + text + _END], None)
        yield [_START]
        yield from node_slices(key, node, shape, now_ns, offset_ns)
        return Listing([_END], None)

    # Raw values

    def _answer_raw(self, node: Node, now_ns: int, *, has_room: bool) -> None:
        reads, value = self._reads, node.value
        assert value is not None
        if is_named(self._extras.etags, entity_tag(node)):
            reads.stats.count(self._get, succeeded=True)
            head = self._raw_head(raw_lines(node, now_ns))
            # Without a length: it would be that of the body which is not sent.
            self._connection.respond(_NOT_MODIFIED, head, b"", head_only=True)
        elif len(value) <= LARGE_BYTES:
            lines = raw_lines(node, now_ns) + type_lines(text=all(is_text(value)))
            self._send_raw(lines, value)
        elif has_room or node.modified_index in reads.sent or reads.memory.has_room(len(value)):
            piece = reads.sent.get(node.modified_index)
            if piece is None:
                piece = reads.sent[node.modified_index] = Piece(value, reads.memory)
            # Held from now on, so that it counts.
            piece.hold()
            lines = raw_lines(node, now_ns)
            reads.responder.start(self._connection, self._answer_large_raw(piece, lines))
        else:
            again = partial(self.begin, has_room=True)
            room = reads.responder.with_room(self._connection, len(value), again, self._method)
            reads.responder.start(self._connection, room)

    async def _answer_large_raw(self, piece: Piece, lines: bytes) -> None:
        try:
            text = True
            for piece_is_text in is_text(piece.data):
                text = text and piece_is_text
                async with self._reads.slices:
                    await asyncio.sleep(0)
            if not self._connection.gone:
                self._send_raw(lines + type_lines(text=text), piece)
        finally:
            piece.drop()

    def _send_raw(self, lines: bytes, value: bytes | Piece) -> None:
        self._reads.stats.count(self._get, succeeded=True)
        head, connection = self._raw_head(lines), self._connection
        data = value if isinstance(value, bytes) else value.data
        if self._method == "HEAD":
            head += b"Content-Length: %d\r\n" % len(data)
            connection.respond(_OK, head, b"", head_only=True)
        elif isinstance(value, bytes):
            connection.respond(_OK, head, value)
        else:
            connection.respond_in_pieces(_OK, head, [value])

    def _raw_head(self, lines: bytes) -> bytes:
        responder = self._reads.responder
        return responder.head(self._reads.store.applied.index, responder.cluster_line) + lines

    # Scans

    def _scan(self, node: Node, now_ns: int) -> Callable[[SlicePace], Scan]:
        """Return what begins the scan that is asked for."""
        get, extras = self._get, self._extras
        offset_ns = self._reads.store.applied.clock_offset_ns
        start = directory_start(escape(get.key), node, now_ns, offset_ns)
        shown = start + directory_end(node, has_nodes=False)
        if extras.marks:
            return lambda pace: marks(self._look, pace, get.key, shown, extras=extras)
        recursive, hidden = get.recursive, extras.hidden
        if extras.counts:
            walk = Walk(get.key, recursive=recursive, hidden=hidden, prefix=extras.prefix)
            return lambda pace: count(self._look, pace, walk, shown)
        walk = Walk(get.key, recursive=recursive, hidden=hidden, after=self._names_after())
        return lambda pace: find(self._look, pace, walk, extras)

    def _past(self) -> Callable[[SlicePace], Scan]:
        """Return what begins to read the events that are kept."""
        get, extras, store = self._get, self._extras, self._reads.store
        applied = store.applied
        span = Span(
            applied.oldest_event,
            applied.index,
            applied.history_limit,
            applied.clock_offset_ns,
        )
        look = lambda: store.state  # noqa: E731
        if extras.at is not None:
            now_ns, _ = self._reads.reads.now()
            return lambda pace: at(look, pace, get.key, extras, span, now_ns=now_ns)
        return lambda pace: history(look, pace, get.key, extras, span, recursive=get.recursive)

    def _names_after(self) -> list[bytes]:
        """Return the names below the key that lead to where a search goes on."""
        after, key = self._extras.after, self._get.key
        if after is None:
            return []
        below = key if key == b"/" else key + b"/"
        if not after.startswith(below) or after == below:
            raise ApiError(INVALID_FIELD, b'invalid value for "after"')
        return after[len(below) :].split(b"/")

    def _look(self) -> State:
        store = self._reads.store
        now_ns, is_overdue = self._reads.reads.now()
        rows = store.view
        return State(rows, store.view_at(now_ns) if is_overdue else rows, now_ns)

    async def _run(self, begin: Callable[[SlicePace], Scan]) -> None:
        """Answer by a scan when its turn has come."""
        try:
            found = await self._reads.scans.run(self._connection, begin)
        except ApiError as refusal:
            self._count_refusal(refusal)
            self._reads.responder.refuse(self._connection, self._method, refusal)
        else:
            if found is not None:
                self._respond(*found)

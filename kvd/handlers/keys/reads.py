"""Reads of the key space: files, and listings of directories, from the committed state.

A read is answered at once. A listing that takes long is rendered in turns of the loop
(large_listings.py), and a large response without memory for it waits for that.
"""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from time import monotonic
from weakref import WeakValueDictionary

from kvd.handlers.keys.large_listings import LargeListings
from kvd.handlers.keys.listing import advance, render
from kvd.handlers.keys.listing_cache import ListingCache
from kvd.handlers.keys.parts import KeyParts
from kvd.http.connection import LARGE_BYTES, Connection
from kvd.json_text import Parts
from kvd.limits.memory_budget import Piece
from kvd.storage.format.node import Node
from kvd.v2 import rules
from kvd.v2.commands import Get
from kvd.v2.errors import UNAUTHORIZED, ApiError
from kvd.v2.response import get_parts

# As a plain number: a lookup in the enumeration costs as much as a function call.
_OK = int(HTTPStatus.OK)
# A listing that takes longer is rendered in turns.
_LISTING_S = 0.004


class Reads:
    """Answers the reads of one key space.

    Attributes:
        large: Listings that are rendered in turns.
    """

    def __init__(self, parts: KeyParts, listings: ListingCache, slow_s: float) -> None:
        self._store = parts.store
        self._state = parts.store.state
        self._committer = parts.committer
        self._stats = parts.stats
        self._clock = parts.clock
        self._raw_ns = parts.clock.raw_ns
        self._kept = listings
        self._memory = parts.memory
        self._values = parts.values
        self._responder = parts.responder
        self._kept_pieces: WeakValueDictionary[tuple[bytes, bool], Piece] = WeakValueDictionary()
        self.large = LargeListings(
            store=parts.store,
            stats=parts.stats,
            now=self.now,
            kept=listings,
            memory=parts.memory,
            values=parts.values,
            head=parts.responder.head,
            refuse=parts.responder.refuse,
            slow_s=slow_s,
            slices=parts.slices,
        )

    def read(
        self,
        connection: Connection,
        method: str,
        get: Get,
        *,
        has_room: bool = False,
        node: Node | None = None,
    ) -> None:
        """Answer a read; a large listing is rendered in turns of the loop.

        Args:
            connection: where the response goes.
            method: GET or HEAD.
            get: what is asked for.
            has_room: whether it has waited for memory, which is there now.
            node: the committed one, if it was looked up in this turn of the loop.
        """
        store = self._store
        index = store.state.applied.index
        stats = self._stats
        if not has_room:  # a read that has waited was counted when it came
            stats.heads += method == "HEAD"
            stats.recursive_reads += get.recursive
        now_ns, is_overdue = self.now()
        try:
            if is_overdue:
                node = rules.existing(store.view_at(now_ns), get.key, index)
            elif node is None:
                node = rules.existing(store.view, get.key, index)
        except ApiError as refusal:
            stats.count(get, succeeded=False)
            stats.refused(get, refusal, method=method)
            raise
        if node.dir_id:
            self._get_directory(connection, method, get, node, has_room=has_room)
            return
        parts = get_parts(get.key, node, now_ns, store.state.applied.clock_offset_ns)
        self._get_file(connection, method, get, parts, has_room)

    def _get_directory(
        self, connection: Connection, method: str, get: Get, node: Node, *, has_room: bool
    ) -> None:
        if not get.may_list:
            raise ApiError(UNAUTHORIZED, b"Insufficient credentials")
        kept = self._kept.find(get.key, recursive=get.recursive)
        if kept is None:
            self._list(connection, method, get, node, has_room=has_room)
        elif len(kept) <= LARGE_BYTES:
            self._stats.count(get, succeeded=True)
            head = self._responder.head(self._state.applied.index)
            connection.respond(_OK, head, kept, head_only=method == "HEAD")
        elif has_room or self._has_room(connection, method, get, len(kept)):
            self._stats.count(get, succeeded=True)
            self._respond_kept(connection, method, get, kept)

    def _get_file(
        self, connection: Connection, method: str, get: Get, parts: Parts, has_room: bool
    ) -> None:
        size = self._values.missing_bytes(parts)
        if not has_room and not self._has_room(connection, method, get, size):
            return
        self._stats.count(get, succeeded=True)
        head, first = self._responder.head(self._state.applied.index), parts[0]
        if len(parts) == 1:
            assert isinstance(first, bytes)
            connection.respond(_OK, head, first, head_only=method == "HEAD")
        elif method == "HEAD":
            connection.respond_head(_OK, head)
        else:
            connection.respond_in_pieces(_OK, head, self._values.pieces(parts))

    def now(self) -> tuple[int, bool]:
        """Return the time, and whether something that has ended by now is still there."""
        raw_ns = self._raw_ns()
        return self._clock.at(raw_ns), raw_ns >= self._committer.expiry_timer.overdue_at

    def _has_room(self, connection: Connection, method: str, get: Get, size: int) -> bool:
        """Return whether there is memory for a response; if not, the read goes on once there is."""
        if size <= LARGE_BYTES or self._memory.has_room(size):
            return True
        again = partial(self.read, connection, method, get, has_room=True)
        self._responder.start(
            connection, self._responder.with_room(connection, size, again, method)
        )
        return False

    def _list(
        self, connection: Connection, method: str, get: Get, node: Node, *, has_room: bool
    ) -> None:
        if self.large.has_been_large(get):
            self._list_in_turns(connection, method, get)
            return
        began = monotonic()
        store = self._store
        index = store.state.applied.index
        now_ns, is_overdue = self.now()
        with store.long_view() as view:
            slices = render(
                view,
                get.key,
                node,
                now_ns,
                store.state.applied.clock_offset_ns,
                recursive=get.recursive,
                ended_ns=now_ns if is_overdue else 0,
            )
            parts, listing = advance(slices, until=began + _LISTING_S)
        connection.spend(monotonic() - began)
        if listing is None:
            # It begins again when its turn has come, so that no more than a few transactions are
            # held open.
            self._list_in_turns(connection, method, get)
            return
        (body,) = parts
        assert isinstance(body, bytes)
        if not has_room and not self._has_room(connection, method, get, len(body)):
            return
        self._stats.count(get, succeeded=True)
        self._stats.listings_s.observe(monotonic() - began)
        if listing.parts is not None and not is_overdue:
            self._kept.keep(get.key, body, listing.parts, recursive=get.recursive)
        connection.respond(_OK, self._responder.head(index), body, head_only=method == "HEAD")

    def _list_in_turns(self, connection: Connection, method: str, get: Get) -> None:
        """Answer a listing that is too large for one turn."""
        job = self.large.join(connection, method, get)
        if job is not None:
            self._responder.start(connection, self.large.run(job))

    def _respond_kept(self, connection: Connection, method: str, get: Get, body: bytes) -> None:
        """Answer with a cached listing; its clients share the bytes."""
        head = self._responder.head(self._state.applied.index)
        if method == "HEAD":
            connection.respond_head(_OK, head)
            return
        place = get.key, get.recursive
        piece = self._kept_pieces.get(place)
        if piece is None or piece.data is not body:
            piece = self._kept_pieces[place] = Piece(body, self._memory)
        connection.respond_in_pieces(_OK, head, [piece])

"""The key space, `/v2/keys`: a request to what answers it.

Reads (reads.py) are answered from the committed state, commands (writes.py) when the committer
reports their outcome; watches go to the hub. A connection that has gone discards what it is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

from kvd.core.clock import Clock
from kvd.core.committer import Committer
from kvd.core.stats import StoreStats
from kvd.core.watch.hub import Hub
from kvd.core.watch.watchers import Watcher
from kvd.handlers.extras.reading.reads import ExtraReads
from kvd.handlers.extras.watches import ExtraWatches
from kvd.handlers.keys.listing_cache import ListingCache
from kvd.handlers.keys.parts import AnswerParts, KeyParts
from kvd.handlers.keys.reads import Reads
from kvd.handlers.keys.responder import (
    TOO_MANY_WATCHERS,
    TOO_MANY_WATCHERS_OF_KEY,
    TOO_MUCH,
)
from kvd.handlers.keys.short_way import ShortWay
from kvd.handlers.keys.writes import Writes
from kvd.handlers.rights import Rights
from kvd.http.compression import Gzip
from kvd.http.connection import Connection, ServeWhole
from kvd.http.server import HttpServer
from kvd.http.stage import STREAMING
from kvd.storage.format.node import Node
from kvd.storage.index.errors import BROKEN
from kvd.storage.store import Store
from kvd.v2.commands import Get, Watch
from kvd.v2.errors import (
    RAFT_INTERNAL,
    ApiError,
)
from kvd.v2.extras.watch import watch_extras
from kvd.v2.form import TakesLong
from kvd.v2.request import Parsed, parse, parse_in_turns

METHODS = ("HEAD", "GET", "PUT", "POST", "DELETE")

# So many large forms are parsed side by side: what is parsed of them is not counted.
_PARSED_MAX = 4

# The key of a watch that is longer is counted as long as the watch is open: as the target of the
# request, its path and the key.
_UNCOUNTED_KEY_BYTES = 1 << 10
_COPIES_OF_A_WATCHED_KEY = 3


class KeyLimits(NamedTuple):
    """Limits of requests to the key space; None is no limit of its own."""

    body_bytes_max: int
    value_bytes_max: int
    depth_max: int
    watchers_max: int | None
    watchers_per_key_max: int | None
    max_wait_s: float | None
    """A watch ends after so long without an event."""


class KeySpace:
    """Serves the requests to the keys of one store.

    Attributes:
        catch_up: Awaited before a read with `quorum`: it returns once all that was acknowledged
            before is visible here, or raises an `ApiError`. None where nothing ever is elsewhere.
    """

    def __init__(
        self,
        *,
        store: Store,
        committer: Committer,
        hub: Hub,
        stats: StoreStats,
        clock: Clock,
        listings: ListingCache,
        answers: AnswerParts,
        limits: KeyLimits,
        slow_s: float = 1.0,
        has_extras: bool = False,
    ) -> None:
        self.limits = limits
        self.catch_up: Callable[[], Awaitable[None]] | None = None
        self._hub = hub
        self._parsed = asyncio.Semaphore(_PARSED_MAX)
        self._answers = answers
        self.responder, self.watches = answers.responder, answers.watches
        parts = self._parts = KeyParts(
            store=store,
            committer=committer,
            stats=stats,
            clock=clock,
            memory=answers.memory,
            values=answers.values,
            slices=asyncio.Lock(),
            responder=answers.responder,
        )
        value_bytes_max = limits.value_bytes_max
        self.reads = Reads(parts, listings, slow_s)
        self.writes = Writes(parts, depth_max=limits.depth_max, value_bytes_max=value_bytes_max)
        self._extra_watches = ExtraWatches(parts, hub, self.watches)
        self.extras = ExtraReads(parts, self.reads, value_bytes_max) if has_extras else None
        """Answers reads with extras, if these are on."""

    def gzip(self, bytes_min: int) -> Gzip:
        """Return what connections share that compress answers of so many bytes and more."""
        return Gzip(bytes_min, self._parts.memory, self._parts.slices, self.responder.start)

    def short_way(self, server: HttpServer) -> ServeWhole:
        """Return what serves the plain requests of a server."""
        return ShortWay(
            server,
            self._parts,
            self._answers.texts,
            depth_max=self.limits.depth_max,
            # The value that it holds is shorter.
            query_bytes_max=self.limits.value_bytes_max,
            writes=self.writes,
            long_way=self,
        ).serve

    def serve(
        self,
        connection: Connection,
        method: str,
        key: bytes,
        query: bytes,
        form: bytes,
        *,
        parsed: Parsed | None = None,
        rights: Rights | None = None,
    ) -> None:
        """Answer one request, now or later.

        `method` is one of `METHODS`, `key` a cleaned path, `query` raw, `form` the body where that
        is a form. `parsed` is the result of `parse`, if that was called before. Without `rights`
        everything is allowed.
        """
        try:
            request, no_value, recursive = parsed or parse(method, key, query, form)
            if rights is not None:
                request = rights.narrow(request, recursive=recursive)
            if isinstance(request, Get):
                if request.quorum and self.catch_up is not None:
                    read = self._read_later(connection, self.catch_up(), request, rights)
                    self.responder.start(connection, read)
                elif request.extras and self.extras is not None:
                    self.extras.read(connection, method, request, rights)
                else:
                    self.reads.read(connection, method, request)
            elif isinstance(request, Watch):
                self._watch(connection, request, rights)
            else:
                size = len(key) + len(query) + len(form)
                is_blind = rights is not None and not rights.may_read()
                self.writes.submit(connection, request, size, no_value=no_value, is_blind=is_blind)
        except ApiError as refusal:
            self.responder.refuse(connection, method, refusal)
        except TakesLong:
            said = method, key, query, form
            self.responder.start(connection, self._serve_in_turns(connection, said, rights))
        except BROKEN as damage:
            self._parts.committer.fail(damage)

    def read(self, connection: Connection, get: Get, node: Node | None) -> None:
        """Answer a GET whose node in the committed state is known already, or is None."""
        try:
            self.reads.read(connection, "GET", get, node=node)
        except ApiError as refusal:
            self.responder.refuse(connection, "GET", refusal)
        except BROKEN as damage:
            self._parts.committer.fail(damage)

    async def _read_later(
        self, connection: Connection, caught_up: Awaitable[None], get: Get, rights: Rights | None
    ) -> None:
        """Answer a read once its state is here."""
        try:
            await caught_up
        except ApiError as refusal:
            self.responder.refuse(connection, "GET", refusal)
            return
        if not connection.gone:
            parsed = get._replace(quorum=False), False, get.recursive
            self.serve(connection, "GET", get.key, b"", b"", parsed=parsed, rights=rights)

    async def _serve_in_turns(
        self,
        connection: Connection,
        said: tuple[str, bytes, bytes, bytes],
        rights: Rights | None,
    ) -> None:
        turns = parse_in_turns(*said)
        try:
            async with self._parsed:
                while True:
                    # One slice in a turn, of all that are parsed.
                    async with self._parts.slices:
                        await asyncio.sleep(0)
                        next(turns)
                    if connection.gone:
                        return
        except StopIteration as end:
            self.serve(connection, *said, parsed=end.value, rights=rights)
        except ApiError as refusal:
            self.responder.refuse(connection, said[0], refusal)

    def tick(self) -> None:
        """Do what is done every second."""
        self.watches.tick()
        self._extra_watches.forget()

    def end_watches(self, ends: Callable[[Watcher], bool]) -> None:
        """End some of the watches, as a stop would."""
        self._hub.end(ends)

    def _watch(self, connection: Connection, watch: Watch, rights: Rights | None) -> None:
        limits, hub = self.limits, self._hub
        extras = None
        if (watch.extras and self.extras is not None) or limits.max_wait_s is not None:
            asked = watch if self.extras is not None else watch._replace(extras=())
            extras = watch_extras(asked, limits.value_bytes_max, limits.max_wait_s)
        if limits.watchers_max is not None and hub.waiting >= limits.watchers_max:
            raise ApiError(RAFT_INTERNAL, b"too many watchers", limit=TOO_MANY_WATCHERS)
        most = limits.watchers_per_key_max
        if most is not None and hub.count_of(watch.key) >= most:
            cause = b"too many watchers of this key"
            raise ApiError(RAFT_INTERNAL, cause, limit=TOO_MANY_WATCHERS_OF_KEY)
        if len(watch.key) > _UNCOUNTED_KEY_BYTES and not connection.hold(
            len(watch.key) * _COPIES_OF_A_WATCHED_KEY
        ):
            raise ApiError(RAFT_INTERNAL, b"etcdserver: too many requests", limit=TOO_MUCH)
        if extras is not None:
            self._extra_watches.watch(connection, watch, extras, rights)
            return
        watcher = hub.watch(watch, self.watches.begin(connection, stream=watch.stream))
        watcher.rights = rights
        if connection.stage is STREAMING or connection.gone:
            connection.on_close = partial(hub.forget, watcher)

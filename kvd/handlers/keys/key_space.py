"""The key space, `/v2/keys`: from a complete request to its answer.

Reads are answered at once from the committed state. Commands go to the committer and are answered
when it says so; watches go to the hub. A connection that has gone drops what it is sent.

Headers: every answer names the cluster; successes carry the etcd index and the raft index and term,
errors the etcd index alone (0 where the request was refused unread). A watch's index is the one at
which it began.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from http import HTTPStatus
from time import monotonic
from typing import NamedTuple
from weakref import WeakValueDictionary

from kvd.core.clock import Clock
from kvd.core.committer import REMOVING, TRANSACTION_TOO_LARGE, Committer, Done, Outcome
from kvd.core.stats import StoreStats
from kvd.core.watch.hub import Hub
from kvd.core.watch.watchers import Watcher
from kvd.handlers.extras.reading.reads import TOO_MANY_SCANS, Answering, ExtraReads
from kvd.handlers.extras.watches import ExtraWatches
from kvd.handlers.keys.large_listings import ANSWER_TOO_LARGE, NO_ROOM, LargeListings, no_room
from kvd.handlers.keys.listing import advance, render
from kvd.handlers.keys.listing_cache import Listings
from kvd.handlers.keys.outcomes import Telling
from kvd.handlers.keys.short_way import ShortWay
from kvd.handlers.keys.value_cache import Texts
from kvd.handlers.keys.watch import WatchAnswers
from kvd.handlers.rights import Rights
from kvd.http.compression import Gzip
from kvd.http.connection import LARGE_BYTES, Connection, ServeWhole
from kvd.http.server import HttpServer
from kvd.http.stage import STREAMING
from kvd.json_text import LARGE_VALUE_BYTES, Parts
from kvd.limits.memory import Memory, NoRoom, Payload, Values
from kvd.storage.format.event import Event
from kvd.storage.format.node import Node
from kvd.storage.format.records import REMOVALS
from kvd.storage.index.errors import BROKEN
from kvd.storage.store import Store
from kvd.v2 import rules
from kvd.v2.commands import Command, Get, Watch
from kvd.v2.errors import (
    COMPARE_FAILED,
    INVALID_FIELD,
    INVALID_FORM,
    RAFT_INTERNAL,
    TABLE,
    UNAUTHORIZED,
    ApiError,
)
from kvd.v2.extras.parameters import TOO_MANY_KEYS, TOO_MANY_OPERATIONS, TOO_MANY_TOKENS
from kvd.v2.extras.watch import watch_extras
from kvd.v2.form import TOO_MANY_PARAMETERS, TakesLong
from kvd.v2.request import Parsed, parse, parse_in_turns
from kvd.v2.response import action_body, error_body, event_body, event_parts, get_parts

log = logging.getLogger(__name__)

# As plain numbers: a lookup in the enumeration costs as much as a function call.
_OK = int(HTTPStatus.OK)
_CREATED = int(HTTPStatus.CREATED)

METHODS = ("HEAD", "GET", "PUT", "POST", "DELETE")

# A listing that takes longer is rendered in turns.
_LISTING_S = 0.004
# So many large forms are parsed side by side: what is parsed of them is not counted.
_PARSED_MAX = 4
# How long those that are being answered may take when the server stops.
_LISTINGS_END_S = 0.3

# The key of a watch that is longer is counted as long as the watch is open: as the target of the
# request, its path and the key.
_UNCOUNTED_KEY_BYTES = 1 << 10
_COPIES_OF_A_WATCHED_KEY = 3

# Why requests are refused that have no result at all, not even that of a failed condition.
TOO_LARGE, TOO_MUCH, NOT_WRITTEN = "body_too_large", "too_much_at_once", "not_written"
_BAD, _DEEP = "invalid_parameter", "key_too_deep"
VALUE_TOO_LARGE = "value_too_large"
_WATCHERS, _WATCHERS_OF_KEY = "too_many_watchers", "too_many_watchers_of_key"
_SLOW_STREAM = "stream_not_read"
_DENIED, PASSWORDS = "unauthorized", "too_many_passwords"
_REASONS = dict.fromkeys(range(200, 300), _BAD) | {
    UNAUTHORIZED: _DENIED,
    RAFT_INTERNAL: NOT_WRITTEN,
}


NOT_SHOWN = b"the values are not shown, for want of the right to read them"
"""In place of what the values were, for one who may not read them."""


class KeyLimits(NamedTuple):
    """What a request to the key space may take; None is no limit of its own."""

    body_bytes_max: int
    value_bytes_max: int
    depth_max: int
    watchers_max: int | None
    watchers_per_key_max: int | None
    stream_bytes_max: int
    """A stream that leaves so much unread when its next event comes is cut."""
    max_wait_s: float | None
    """A watch that had nothing to tell for so long ends."""


class KeySpace:
    """Serves the requests to the keys of one store."""

    def __init__(
        self,
        *,
        store: Store,
        committer: Committer,
        hub: Hub,
        stats: StoreStats,
        clock: Clock,
        listings: Listings,
        memory: Memory,
        limits: KeyLimits,
        slow_s: float = 1.0,
        has_extras: bool = False,
    ) -> None:
        self._store = store
        self._state = store.state
        self._committer = committer
        self._hub = hub
        self._stats = stats
        self._clock = clock
        self._raw_ns = clock.raw_ns
        self._kept = listings
        self._memory = memory
        self._values = Values(memory)
        self.limits = limits
        # What is not longer than this, all in all, meets neither limit of a write.
        self._unsuspicious_bytes = min(2 * limits.depth_max, limits.value_bytes_max)
        self._slices = asyncio.Lock()
        self._parsed = asyncio.Semaphore(_PARSED_MAX)
        self._listings: set[asyncio.Task[None]] = set()
        self._kept_payloads: WeakValueDictionary[tuple[bytes, bool], Payload] = (
            WeakValueDictionary()
        )
        self.large = LargeListings(
            store=store,
            stats=stats,
            now=self._now,
            kept=listings,
            memory=memory,
            values=self._values,
            head=self.head,
            refuse=self.refuse,
            slow_s=slow_s,
            slices=self._slices,
        )
        self.rejected = dict.fromkeys(
            (
                *(TOO_LARGE, TOO_MUCH, NOT_WRITTEN, _BAD, _DEEP, VALUE_TOO_LARGE),
                *(TOO_MANY_PARAMETERS, ANSWER_TOO_LARGE, NO_ROOM, TOO_MANY_SCANS, TOO_MANY_KEYS),
                *(TOO_MANY_TOKENS, TOO_MANY_OPERATIONS, TRANSACTION_TOO_LARGE),
                *(_WATCHERS, _WATCHERS_OF_KEY, _SLOW_STREAM, _DENIED, PASSWORDS),
            ),
            0,
        )
        """How many requests met a limit or could not be understood, by reason."""
        self.watches = WatchAnswers(
            store=store,
            memory=memory,
            values=self._values,
            head=self.head,
            stream_bytes_max=limits.stream_bytes_max,
            on_cut=partial(self._count, _SLOW_STREAM),
            start=self._start_task,
        )
        hub.tell_all = self.watches.tell_all
        self._extra_watches = ExtraWatches(
            hub=hub,
            answers=self.watches,
            head=self.head,
            values=self._values,
            memory=memory,
            on_no_room=partial(self._count, NO_ROOM),
            cluster_line=f"X-Etcd-Cluster-Id: {store.identity.cluster_id:x}\r\n".encode(),
            offset_ns=lambda: store.state.applied.clock_offset_ns,
        )
        self.cluster_line = f"X-Etcd-Cluster-Id: {store.identity.cluster_id:x}\r\n".encode()
        """The header line that names the cluster."""
        self._fixed = b"Content-Type: application/json\r\n" + self.cluster_line
        self._texts = Texts()
        self.extras: ExtraReads | None = None
        """What answers reads with extras, if these are on."""
        if has_extras:
            self.extras = ExtraReads(
                store=store,
                stats=stats,
                memory=memory,
                large=self.large,
                slices=self._slices,
                answering=Answering(
                    cluster_line=self.cluster_line,
                    head=self.head,
                    refuse=self.refuse,
                    read=self._get,
                    start=self._start_task,
                    with_room=self._with_room,
                    now=self._now,
                ),
                value_bytes_max=limits.value_bytes_max,
            )

    def gzip(self, bytes_min: int) -> Gzip:
        """Return what connections share that compress answers of so many bytes and more."""
        return Gzip(bytes_min, self._memory, self._slices, self._start_task)

    def short_way(self, server: HttpServer) -> ServeWhole:
        """Return what serves the plain requests of a server, and let it be told of batches."""
        self._committer.tell = Telling(
            server,
            state=self._state,
            stats=self._stats,
            texts=self._texts,
            fixed_headers=self._fixed,
        ).tell
        return ShortWay(
            server,
            state=self._state,
            committer=self._committer,
            stats=self._stats,
            texts=self._texts,
            clock=self._clock,
            fixed_headers=self._fixed,
            depth_max=self.limits.depth_max,
            # The value that it holds is shorter.
            query_bytes_max=self.limits.value_bytes_max,
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

        Args:
            connection: where it came from.
            method: one of `METHODS`.
            key: the cleaned path of the key.
            query: the raw query string.
            form: the body, if that is a form.
            parsed: what it asks for, if it was parsed before.
            rights: what its sender may do; None is everything.
        """
        try:
            request, no_value, recursive = parsed or parse(method, key, query, form)
            if rights is not None:
                request = rights.narrow(request, recursive=recursive)
            if isinstance(request, Get):
                if request.extras and self.extras is not None:
                    self.extras.read(connection, method, request, rights)
                else:
                    self._get(connection, method, request)
            elif isinstance(request, Watch):
                self._watch(connection, request, rights)
            else:
                is_blind = rights is not None and not rights.may_read()
                answer = self._answer_blindly if is_blind else self._answer
                done = partial(answer, connection, no_value)
                if len(key) + len(query) + len(form) > self._unsuspicious_bytes:
                    self.check(request)
                    if not no_value and self._submit_large(connection, request, done):
                        return
                connection.is_write()
                self._committer.submit(request, done)
        except ApiError as refusal:
            self.refuse(connection, method, refusal)
        except TakesLong:
            in_turns = self._serve_in_turns(connection, (method, key, query, form), rights)
            self._start_task(connection, in_turns)
        except BROKEN as damage:
            self._committer.fail(damage)

    def read(self, connection: Connection, get: Get, node: Node | None) -> None:
        """Answer a GET whose node in the committed state is known already, or is None."""
        try:
            self._get(connection, "GET", get, node=node)
        except ApiError as refusal:
            self.refuse(connection, "GET", refusal)
        except BROKEN as damage:
            self._committer.fail(damage)

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
                    async with self._slices:
                        await asyncio.sleep(0)
                        next(turns)
                    if connection.gone:
                        return
        except StopIteration as end:
            self.serve(connection, *said, parsed=end.value, rights=rights)
        except ApiError as refusal:
            self.refuse(connection, said[0], refusal)

    def refuse(
        self,
        connection: Connection,
        method: str,
        refusal: ApiError,
        status: HTTPStatus | None = None,
    ) -> None:
        """Answer with an error, with another status than etcd's if one is given."""
        reason = refusal.limit or _REASONS.get(refusal.code)
        if reason is not None:
            self.rejected[reason] += 1
        body = error_body(refusal)
        head = b"%bX-Etcd-Index: %d\r\n" % (self._fixed, refusal.index)
        status = status or HTTPStatus(TABLE[refusal.code].status)
        connection.respond(status, head, body, head_only=method == "HEAD")

    def check(self, command: Command) -> None:
        """Refuse a write by its size.

        Raises:
            ApiError: its key is too deep, or its value too large.
        """
        limits = self.limits
        depth = command.key.count(b"/")
        if depth > limits.depth_max and not isinstance(command, REMOVING):
            cause = f"the key has {depth} components, {limits.depth_max} are allowed"
            raise ApiError(INVALID_FIELD, cause.encode(), limit=_DEEP)
        value = getattr(command, "value", b"")
        if len(value) > limits.value_bytes_max:
            cause = f"the value has {len(value)} bytes, {limits.value_bytes_max} are allowed"
            raise ApiError(INVALID_FORM, cause.encode(), limit=VALUE_TOO_LARGE)

    def _submit_large(self, connection: Connection, command: Command, done: Done) -> bool:
        """Submit a write of a large value once there is memory for its response, or decline."""
        value = getattr(command, "value", b"")
        if len(value) <= LARGE_VALUE_BYTES:
            return False
        if self._memory.has_room(len(value)):
            self._submit_with_room(command, value, done)
        else:
            submit = partial(self._submit_with_room, command, value, done)
            self._start_task(connection, self._with_room(connection, len(value), submit))
        return True

    def _submit_with_room(self, command: Command, value: bytes, done: Done) -> None:
        payload = self._values.make(value)
        # Held from now on, so that others do not take the room meanwhile.
        payload.hold()
        self._committer.submit(command, partial(self._answer_large, payload, done))

    def _answer_large(self, payload: Payload, done: Done, outcome: Outcome) -> None:
        if not isinstance(outcome, ApiError):
            self._values.name(outcome.change.index, payload)
        done(outcome)
        payload.drop()

    async def _with_room(
        self, connection: Connection, size: int, then: Callable[[], object], method: str = ""
    ) -> None:
        """Go on with a request once there is memory for its response, or refuse it."""
        try:
            await self._memory.room(size)
            if not connection.gone:
                then()
        except NoRoom:
            self.refuse(connection, method, no_room())
        except ApiError as refusal:
            self.refuse(connection, method, refusal)

    def tick(self) -> None:
        """Do what is done every second."""
        self.watches.tick()
        self._extra_watches.forget()

    async def finish_listings(self) -> None:
        """Wait for the large listings that are being answered; give up those that take long."""
        if self._listings:
            _, slow = await asyncio.wait(self._listings, timeout=_LISTINGS_END_S)
            for task in slow:
                task.cancel()
            if slow:
                await asyncio.wait(slow)

    def without_value(self, connection: Connection) -> Done:
        """Return what answers a command, and omits the values of a success."""
        return partial(self._answer, connection, True)

    def answer(self, connection: Connection, outcome: Outcome) -> None:
        """Answer a command, now that its outcome may be told."""
        self._answer(connection, False, outcome)

    def _answer(self, connection: Connection, no_value: bool, outcome: Outcome) -> None:
        if isinstance(outcome, ApiError):
            self.refuse(connection, "", outcome)
            return
        change = outcome.change
        removal = change.kind in REMOVALS
        if no_value and not removal:
            body: bytes | None = action_body(change.kind)
        else:
            body = event_body(outcome, self._state.applied.clock_offset_ns)
        made = outcome.prev is None and not removal
        if body is None:
            status = _CREATED if made else _OK
            parts = event_parts(outcome, self._state.applied.clock_offset_ns)
            payloads = self._values.payloads(parts)
            connection.respond_in_pieces(status, self.head(change.index), payloads)
        else:
            connection.respond(_CREATED if made else _OK, self.head(change.index), body)

    def _answer_blindly(self, connection: Connection, no_value: bool, outcome: Outcome) -> None:
        """Answer a command whose sender may not read the key: show no value but its own."""
        if isinstance(outcome, ApiError):
            if outcome.code == COMPARE_FAILED:
                outcome = ApiError(COMPARE_FAILED, NOT_SHOWN, outcome.index)
            self.refuse(connection, "", outcome)
            return
        change, prev, time_ns = outcome
        removal = change.kind in REMOVALS
        status = _CREATED if prev is None and not removal else _OK
        shown = Event(change, None, time_ns)
        # A refresh shows the value that was there.
        no_value = (no_value or change.refresh) and not removal
        body = action_body(change.kind) if no_value else event_body(shown)
        if body is None:
            payloads = self._values.payloads(event_parts(shown))
            connection.respond_in_pieces(status, self.head(change.index), payloads)
        else:
            connection.respond(status, self.head(change.index), body)

    def _get(
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
            node: the one in the committed state, if it was looked up in this turn of the loop.
        """
        store = self._store
        index = store.state.applied.index
        stats = self._stats
        # One that has waited was counted when it came.
        if method == "HEAD" and not has_room:
            stats.heads += 1
        if get.recursive and not has_room:
            stats.recursive_reads += 1
        now_ns, is_overdue = self._now()
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
            head = self.head(self._state.applied.index)
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
        head, first = self.head(self._state.applied.index), parts[0]
        if len(parts) == 1:
            assert isinstance(first, bytes)
            connection.respond(_OK, head, first, head_only=method == "HEAD")
        elif method == "HEAD":
            connection.respond_head(_OK, head)
        else:
            connection.respond_in_pieces(_OK, head, self._values.payloads(parts))

    def _now(self) -> tuple[int, bool]:
        """Return the time, and whether something that has ended by now is still there."""
        raw_ns = self._raw_ns()
        return self._clock.at(raw_ns), raw_ns >= self._committer.overdue_at

    def _has_room(self, connection: Connection, method: str, get: Get, size: int) -> bool:
        """Return whether there is memory for a response; if not, the read goes on once there is."""
        if size <= LARGE_BYTES or self._memory.has_room(size):
            return True
        again = partial(self._get, connection, method, get, has_room=True)
        self._start_task(connection, self._with_room(connection, size, again, method))
        return False

    def _start_task(self, connection: Connection, answer: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(answer)
        self._listings.add(task)
        task.add_done_callback(partial(self._listed, connection))

    def _list(
        self, connection: Connection, method: str, get: Get, node: Node, *, has_room: bool
    ) -> None:
        if self.large.has_been_large(get):
            self._list_in_turns(connection, method, get)
            return
        began = monotonic()
        store = self._store
        index = store.state.applied.index
        now_ns, is_overdue = self._now()
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
        connection.respond(_OK, self.head(index), body, head_only=method == "HEAD")

    def _list_in_turns(self, connection: Connection, method: str, get: Get) -> None:
        """Answer a listing that is too large for one turn."""
        job = self.large.join(connection, method, get)
        if job is not None:
            self._start_task(connection, self.large.run(job))

    def _respond_kept(self, connection: Connection, method: str, get: Get, body: bytes) -> None:
        """Answer with a listing that is kept: those who are sent it share its bytes."""
        head = self.head(self._state.applied.index)
        if method == "HEAD":
            connection.respond_head(_OK, head)
            return
        place = get.key, get.recursive
        payload = self._kept_payloads.get(place)
        if payload is None or payload.data is not body:
            payload = self._kept_payloads[place] = Payload(body, self._memory)
        connection.respond_in_pieces(_OK, head, [payload])

    def _listed(self, connection: Connection, task: asyncio.Task[None]) -> None:
        self._listings.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, BROKEN):
                self._committer.fail(error)
            log.error("a listing could not be finished", exc_info=error)
            connection.abort()

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
            raise ApiError(RAFT_INTERNAL, b"too many watchers", limit=_WATCHERS)
        most = limits.watchers_per_key_max
        if most is not None and hub.count_of(watch.key) >= most:
            cause = b"too many watchers of this key"
            raise ApiError(RAFT_INTERNAL, cause, limit=_WATCHERS_OF_KEY)
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

    def _count(self, reason: str) -> None:
        self.rejected[reason] += 1

    def head(self, index: int, fixed: bytes = b"") -> bytes:
        """Return the header lines of a success at an index, with `fixed` instead of JSON's."""
        applied = self._state.applied
        return b"%bX-Etcd-Index: %d\r\nX-Raft-Index: %d\r\nX-Raft-Term: %d\r\n" % (
            fixed or self._fixed,
            index,
            applied.pos,
            applied.term,
        )

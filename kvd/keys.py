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
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from http import HTTPStatus
from time import monotonic
from typing import NamedTuple

from kvd import machine
from kvd.bodies import Bodies
from kvd.clock import Clock
from kvd.commands import Command, Get, Watch
from kvd.committer import REMOVING, Committer, Outcome
from kvd.errors import (
    INVALID_FIELD,
    INVALID_FORM,
    RAFT_INTERNAL,
    TABLE,
    UNAUTHORIZED,
    ApiError,
)
from kvd.http1 import LARGE_BYTES, Connection
from kvd.kept import Listings
from kvd.listing import Listing, render
from kvd.logs import SLOW_QUIET_S, Rarely
from kvd.memory import Memory, Payload
from kvd.request import (
    FORM_BYTES_MAX,
    TOO_MANY_PARAMETERS,
    Parsed,
    TakesLong,
    parse,
    parse_in_turns,
)
from kvd.response import action_body, error_body, event_body, get_body
from kvd.stats import StoreStats
from kvd.watch import Hub
from storage.change import REMOVALS
from storage.index import BROKEN
from storage.store import Store
from storage.tree import Applied, View

log = logging.getLogger(__name__)

# As plain numbers: a lookup in the enumeration costs as much as a function call.
_OK = int(HTTPStatus.OK)
_CREATED = int(HTTPStatus.CREATED)

_FRAME_END = b"\r\nX-Raft-Index: %d\r\nX-Raft-Term: %d\r\nContent-Length: "

METHODS = ("HEAD", "GET", "PUT", "POST", "DELETE")

# How many large listings are rendered side by side; each holds a read transaction open.
_LARGE_LISTINGS_MAX = 4
# How long those that are being answered may take when the server stops.
_LISTINGS_END_S = 0.3

# The key of a watch that is longer is counted as long as the watch is open: as the target of the
# request, its path and the key.
_UNCOUNTED_KEY_BYTES = 1 << 10
_COPIES_OF_A_WATCHED_KEY = 3

# Why requests are refused that have no result at all, not even that of a failed condition.
TOO_LARGE, TOO_MUCH, NOT_WRITTEN = "body_too_large", "too_much_at_once", "not_written"
_BAD, _DEEP, _LONG = "invalid_parameter", "key_too_deep", "value_too_large"
_WATCHERS, _WATCHERS_OF_KEY = "too_many_watchers", "too_many_watchers_of_key"
_SLOW_STREAM = "stream_not_read"
_DENIED, PASSWORDS = "unauthorized", "too_many_passwords"
_REASONS = dict.fromkeys(range(200, 300), _BAD) | {
    UNAUTHORIZED: _DENIED,
    RAFT_INTERNAL: NOT_WRITTEN,
}


class KeyLimits(NamedTuple):
    """What a request to the key space may take; None is no limit of its own."""

    body_bytes_max: int = FORM_BYTES_MAX
    value_bytes_max: int = FORM_BYTES_MAX
    depth_max: int = 4096
    watchers_max: int | None = None
    watchers_per_key_max: int | None = None
    stream_bytes_max: int = 1 << 20
    """A stream that leaves so much unread when its next event comes is cut."""


Allow = Callable[[bool], None]
"""Raises ApiError if a request, which says `recursive` or does not, is not allowed."""

Slices = Generator[None, None, tuple[bytes, Listing]]
"""Pauses between slices, returns the head and the body."""


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
    ) -> None:
        self._store = store
        self._committer = committer
        self._hub = hub
        self._stats = stats
        self._clock = clock
        self._raw_ns = clock.raw_ns
        self._kept = listings
        self._memory = memory
        self.limits = limits
        # What is not longer than this, all in all, meets neither limit of a write.
        self._unsuspicious_bytes = min(2 * limits.depth_max, limits.value_bytes_max)
        self.frames = Frames(memory)
        """The last event, as watchers are sent it."""
        self._few = asyncio.Semaphore(_LARGE_LISTINGS_MAX)
        self._listings: set[asyncio.Task[None]] = set()
        self._slow_s = slow_s
        self._may_warn = Rarely(SLOW_QUIET_S)
        self.slow = 0
        """How many listings took longer than `slow_s`."""
        self.rejected = dict.fromkeys(
            (
                *(TOO_LARGE, TOO_MUCH, NOT_WRITTEN, _BAD, _DEEP, _LONG, TOO_MANY_PARAMETERS),
                *(_WATCHERS, _WATCHERS_OF_KEY, _SLOW_STREAM, _DENIED, PASSWORDS),
            ),
            0,
        )
        """How many requests met a limit or could not be understood, by reason."""
        self._fixed = (
            "Content-Type: application/json\r\n"
            f"X-Etcd-Cluster-Id: {store.identity.cluster_id:x}\r\n"
        ).encode()
        self._frame = _ReplyFrame()
        self._bodies = Bodies(store)

    def serve(
        self,
        connection: Connection,
        method: str,
        key: bytes,
        query: bytes,
        form: bytes,
        *,
        parsed: Parsed | None = None,
        allow: Allow | None = None,
    ) -> None:
        """Answer one request, now or later.

        Args:
            connection: where it came from.
            method: one of `METHODS`.
            key: the cleaned path of the key.
            query: the raw query string.
            form: the body, if that is a form.
            parsed: what it asks for, if it was parsed before.
            allow: decides, once it is parsed, whether it is allowed.
        """
        try:
            request, no_value, recursive = parsed or parse(method, key, query, form)
            if allow is not None:
                allow(recursive)
            if isinstance(request, Get):
                self._get(connection, method, request)
            elif isinstance(request, Watch):
                self._watch(connection, request)
            else:
                if len(key) + len(query) + len(form) > self._unsuspicious_bytes:
                    self._check(request)
                self._committer.submit(request, partial(self._answer, connection, no_value))
        except ApiError as refusal:
            self.refuse(connection, method, refusal)
        except TakesLong:
            answer = self._serve_in_turns(connection, (method, key, query, form), allow)
            self._start_task(connection, answer)
        except BROKEN as damage:
            self._committer.fail(damage)

    async def _serve_in_turns(
        self,
        connection: Connection,
        said: tuple[str, bytes, bytes, bytes],
        allow: Allow | None,
    ) -> None:
        turns = parse_in_turns(*said)
        try:
            while True:
                next(turns)
                await asyncio.sleep(0)
                if connection.gone:
                    return
        except StopIteration as end:
            self.serve(connection, *said, parsed=end.value, allow=allow)
        except ApiError as refusal:
            self.refuse(connection, said[0], refusal)

    def refuse(self, connection: Connection, method: str, refusal: ApiError) -> None:
        """Answer with an error."""
        reason = refusal.limit or _REASONS.get(refusal.code)
        if reason is not None:
            self.rejected[reason] += 1
        body = error_body(refusal)
        head = b"%bX-Etcd-Index: %d\r\n" % (self._fixed, refusal.index)
        status = HTTPStatus(TABLE[refusal.code].status)
        connection.respond(status, head, body, head_only=method == "HEAD")

    def _check(self, command: Command) -> None:
        """Refuse a write by its size."""
        limits = self.limits
        depth = command.key.count(b"/")
        if depth > limits.depth_max and not isinstance(command, REMOVING):
            cause = f"the key has {depth} components, {limits.depth_max} are allowed"
            raise ApiError(INVALID_FIELD, cause.encode(), limit=_DEEP)
        value = getattr(command, "value", b"")
        if len(value) > limits.value_bytes_max:
            cause = f"the value has {len(value)} bytes, {limits.value_bytes_max} are allowed"
            raise ApiError(INVALID_FORM, cause.encode(), limit=_LONG)

    def cut(self, connection: Connection) -> bool:
        """Cut a stream whose client leaves too much unread; return whether it was."""
        if connection.unsent_bytes <= self.limits.stream_bytes_max:
            return False
        self.rejected[_SLOW_STREAM] += 1
        connection.abort()
        return True

    def tick(self) -> None:
        """Forget what was kept for the watchers told last; called every second."""
        self.frames.clear()

    async def finish_listings(self) -> None:
        """Wait for the large listings that are being answered; give up those that take long."""
        if self._listings:
            _, slow = await asyncio.wait(self._listings, timeout=_LISTINGS_END_S)
            for task in slow:
                task.cancel()
            if slow:
                await asyncio.wait(slow)

    def _answer(self, connection: Connection, no_value: bool, outcome: Outcome) -> None:
        """Answer a command, now that its outcome may be told."""
        if isinstance(outcome, ApiError):
            self.refuse(connection, "", outcome)
            return
        change = outcome.change
        removal = change.kind in REMOVALS
        if no_value and not removal:
            body = action_body(change.kind)
        else:
            body = event_body(outcome, self._store.applied.clock_offset_ns)
        made = outcome.prev is None and not removal
        if connection.is_plain and len(body) <= LARGE_BYTES:
            self._reply(connection, body, change.index, made=made)
        else:
            connection.respond(_CREATED if made else _OK, self.head(change.index), body)

    def _reply(
        self, connection: Connection, body: bytes, index: int, *, made: bool = False
    ) -> None:
        """Send a success as `respond` would, from parts that only a commit or a second changes."""
        frame = self._frame
        if frame.starts is not connection.starts:
            frame.renew(connection, self._fixed)
        applied = self._store.applied
        if frame.applied is not applied:
            frame.applied = applied
            frame.end = _FRAME_END % (applied.pos, applied.term)
        start = frame.created if made else frame.ok
        connection.reply(b"%b%d%b%d\r\n\r\n%b" % (start, index, frame.end, len(body), body))

    def answer_file(self, connection: Connection, key: bytes) -> bool:
        """Answer a plain read if it leads to a file that does not expire; else do nothing."""
        if self._raw_ns() >= self._committer.overdue_at:
            return False  # it may be below a directory that has ended
        try:
            body = self._bodies.find(key)
        except BROKEN as damage:
            self._committer.fail(damage)
            return True
        if body is None:
            return False
        self._stats.gets[0] += 1
        self._reply(connection, body, self._store.applied.index)
        return True

    def _get(self, connection: Connection, method: str, get: Get) -> None:
        """Answer a read; a large listing goes on in turns, so that nobody else waits for it."""
        store = self._store
        index = store.applied.index
        stats = self._stats
        if method == "HEAD":
            stats.heads += 1
        if get.recursive:
            stats.recursive_reads += 1
        now_ns, is_overdue = self._now()
        view = store.view_at(now_ns) if is_overdue else store.view
        try:
            node = machine.existing(view, get.key, index)
        except ApiError as refusal:
            stats.count(get, succeeded=False)
            stats.refused(get, refusal, method=method)
            raise
        if node.dir_id:
            kept = self._kept.find(get.key, recursive=get.recursive)
            if kept is None:
                self._list(connection, method, get)
            elif self._waits_for_room(connection, method, get, len(kept)):
                return
            else:
                self._stats.count(get, succeeded=True)
                connection.respond(_OK, self.head(index), kept, head_only=method == "HEAD")
            return
        if self._waits_for_room(connection, method, get, len(node.value or b"")):
            return
        body = get_body(get.key, node, now_ns, store.applied.clock_offset_ns)
        self._stats.count(get, succeeded=True)
        connection.respond(_OK, self.head(index), body, head_only=method == "HEAD")

    def _now(self) -> tuple[int, bool]:
        """Return the time, and whether something that has ended by now is still there."""
        raw_ns = self._raw_ns()
        return self._clock.at(raw_ns), raw_ns >= self._committer.overdue_at

    def _waits_for_room(
        self, connection: Connection, method: str, get: Get, body_bytes: int
    ) -> bool:
        """Return whether an answer has to wait until others have read theirs: it will by itself."""
        if body_bytes <= LARGE_BYTES or not self._memory.is_full:
            return False
        self._start_task(connection, self._get_later(connection, method, get))
        return True

    async def _get_later(self, connection: Connection, method: str, get: Get) -> None:
        await self._memory.room()
        if connection.gone:
            return
        try:
            self._get(connection, method, get)
        except ApiError as refusal:
            self.refuse(connection, method, refusal)

    def _start_task(self, connection: Connection, answer: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(answer)
        self._listings.add(task)
        task.add_done_callback(partial(self._listed, connection))

    def _list(self, connection: Connection, method: str, get: Get) -> None:
        began = monotonic()
        now_ns, is_overdue = self._now()
        with self._store.long_view(now_ns if is_overdue else 0) as view:
            answer = _advance(self._listing(view, get, now_ns))
        if answer is not None:
            head, listing = answer
            self._stats.listings_s.observe(monotonic() - began)
            body = b"".join(listing.pieces)
            if listing.parts is not None and not is_overdue:
                self._kept.keep(get.key, body, listing.parts, recursive=get.recursive)
            connection.respond(_OK, head, body, head_only=method == "HEAD")
            return
        # Too large for one turn. It begins anew when its turn has come, so that no more than a
        # few transactions are held open.
        self._start_task(connection, self._list_in_turns(connection, method, get, began))

    async def _list_in_turns(
        self, connection: Connection, method: str, get: Get, began: float
    ) -> None:
        async with self._few:
            await self._memory.room()
            applied = self._store.applied
            now_ns, is_overdue = self._now()
            with self._store.long_view(now_ns if is_overdue else 0) as view:
                slices = self._listing(view, get, now_ns)
                try:
                    while (answer := _advance(slices)) is None:
                        await asyncio.sleep(0)
                        if connection.gone:
                            return
                except ApiError as refusal:
                    self._stats.count(get, succeeded=False)
                    self._stats.refused(get, refusal, method=method)
                    self.refuse(connection, method, refusal)
                    return
        self._note_duration(get, monotonic() - began)
        head, listing = answer
        if listing.parts is not None and self._store.applied is applied and not is_overdue:
            # Nothing was changed while it was rendered.
            body = b"".join(listing.pieces)
            self._kept.keep(get.key, body, listing.parts, recursive=get.recursive)
        # The transaction has ended: a slow client holds up nothing but its own answer.
        if method == "HEAD":
            connection.respond(_OK, head, b"".join(listing.pieces), head_only=True)
        else:
            connection.respond_in_pieces(_OK, head, listing.pieces)

    def _note_duration(self, get: Get, seconds: float) -> None:
        self._stats.listings_s.observe(seconds)
        if seconds > self._slow_s:
            self.slow += 1
            if self._may_warn():
                log.warning(
                    "slow: it took %.1f s to list %s%s",
                    seconds,
                    get.key.decode("utf-8", "replace"),
                    self._may_warn.kept_back(),
                )

    def _listed(self, connection: Connection, task: asyncio.Task[None]) -> None:
        self._listings.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, BROKEN):
                self._committer.fail(error)
            log.error("a listing could not be finished", exc_info=error)
            connection.abort()

    def _listing(self, view: View, get: Get, now_ns: int) -> Slices:
        """Return head and body of a listing as a view has it, pausing between slices."""
        head = self.head(self._store.applied.index)
        node = machine.existing(view, get.key, self._store.applied.index)
        offset_ns = self._store.applied.clock_offset_ns
        listing = yield from render(view, get.key, node, now_ns, offset_ns, recursive=get.recursive)
        self._stats.count(get, succeeded=True)
        return head, listing

    def _watch(self, connection: Connection, watch: Watch) -> None:
        limits, hub = self.limits, self._hub
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
        listener = _WatchAnswer(connection, self, stream=watch.stream)
        watcher = hub.watch(watch, listener)
        if connection.streaming:
            connection.set_close_callback(partial(hub.forget, watcher))

    def head(self, index: int) -> bytes:
        """Return the header lines of a success at an index."""
        applied = self._store.applied
        return b"%bX-Etcd-Index: %d\r\nX-Raft-Index: %d\r\nX-Raft-Term: %d\r\n" % (
            self._fixed,
            index,
            applied.pos,
            applied.term,
        )


def _advance(slices: Slices) -> tuple[bytes, Listing] | None:
    """Run one slice; return head and body if it was the last."""
    try:
        next(slices)
    except StopIteration as end:
        answer: tuple[bytes, Listing] = end.value
        return answer
    return None


class _ReplyFrame:
    """What answers to successes have in common within a second, and between two commits."""

    __slots__ = ("applied", "created", "end", "ok", "starts")

    def __init__(self) -> None:
        self.starts: dict[int, bytes] = {}
        self.applied: Applied | None = None
        self.ok = self.created = self.end = b""

    def renew(self, connection: Connection, fixed: bytes) -> None:
        """Take the beginnings of another second."""
        self.starts = connection.starts
        self.ok = b"%b%bX-Etcd-Index: " % (connection.start(_OK), fixed)
        self.created = b"%b%bX-Etcd-Index: " % (connection.start(_CREATED), fixed)


class Frames:
    """The last event that was told, framed: those who watch the same share its bytes."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._body = b""
        self._made: dict[tuple[bool, bool], Payload] = {}

    def of(self, body: bytes, *, chunked: bool, last: bool) -> Payload:
        """Return the frame of an event: a chunk, perhaps the last of its answer, or as it is."""
        if body is not self._body:
            self._body = body
            self._made = {}
        payload = self._made.get((chunked, last))
        if payload is None:
            end = b"\r\n0\r\n\r\n" if last else b"\r\n"
            data = b"%x\r\n%b%b" % (len(body), body, end) if chunked else body
            payload = self._made[chunked, last] = Payload(data, self._memory)
        return payload

    def clear(self) -> None:
        """Forget it, as it may be large."""
        self._body = b""
        self._made = {}


class _WatchAnswer:
    """The answer to a watch: `kvd.watch.Listener` on a connection."""

    __slots__ = ("_connection", "_keys", "_stream")

    def __init__(self, connection: Connection, keys: KeySpace, *, stream: bool) -> None:
        self._connection = connection
        self._keys = keys
        self._stream = stream

    def begin(self, index: int) -> None:
        # Clients wait for the head with a time-out of a second or two: it goes out at once.
        self._connection.begin_stream(HTTPStatus.OK, self._keys.head(index))

    def tell(self, body: bytes) -> None:
        connection, last = self._connection, not self._stream
        if not connection.flows and not last and self._keys.cut(connection):
            return
        frame = self._keys.frames.of(body, chunked=not connection.http10, last=last)
        connection.send_event(frame, last=last)

    def ready(self, resume: Callable[[], object]) -> bool:
        return self._connection.ready(resume)

    def close(self) -> None:
        self._connection.abort()

    def end(self) -> None:
        self._connection.end_stream()

"""Listings that are too large for one turn of the loop: rendered in turns, and shared.

In a turn of the loop some milliseconds of one rendering are done, or of something else that takes
long. The places of large listings are remembered: to find out that one is large takes as long as to
render a small one.

Clients that ask for the same before its rendering begins share one response: each sees all that was
committed before it asked. A few are rendered side by side, because each holds a read transaction
open, whose pages no write can reuse.

What is rendered is counted in `MemoryBudget` slice by slice. A rendering that finds no room is
given up and begins again when it is the only one that may wait: two that each waited for the
other's memory would wait for ever. One that exceeds the limit of a single response is refused.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable
from functools import partial
from http import HTTPStatus
from time import monotonic
from typing import NamedTuple

from kvd.core.stats import StoreStats
from kvd.handlers.keys.listing import Listing, Slices, advance, render
from kvd.handlers.keys.listing_cache import ListingCache
from kvd.http.connection import Connection
from kvd.limits.bounded import Bounded
from kvd.limits.memory_budget import ROOM_WAIT_S, MemoryBudget, NoRoom, Piece, Values
from kvd.logs import SLOW_QUIET_S, RateLimit
from kvd.storage.index.view import View
from kvd.storage.store import Store
from kvd.v2 import rules
from kvd.v2.commands import Get
from kvd.v2.errors import RAFT_INTERNAL, ApiError

log = logging.getLogger(__name__)

ANSWER_TOO_LARGE, NO_ROOM = "answer_too_large", "no_room_for_answer"

# How many are rendered side by side.
_RENDERED_MAX = 4
# How much room is waited for at once, before a rendering begins or goes on.
_STEP_BYTES = 4 << 20
# How long a request may wait until its rendering begins.
_QUEUE_S = 30.0
_OK = int(HTTPStatus.OK)
# A HEAD is answered once it is known to be longer than what has a length.
_HEAD_BYTES_MAX = 2048

# How long is rendered in one turn of the loop.
_SLICE_S = 0.002
# What remembering the places of large listings may take.
_PLACES_BYTES_MAX = 1 << 20

Refuse = Callable[[Connection, str, ApiError], None]
Begin = Callable[[View, int, bool], Slices]
"""Begins to render a state at a time, and gets whether some of it has ended by then.

Raises:
    ApiError: there is nothing to be rendered.
"""


def no_room() -> ApiError:
    """Return the refusal of a response that has found no memory in time."""
    cause = (
        f"no memory for the response within {ROOM_WAIT_S:g} s, others have not been read: "
        "try again, or raise --max-buffered-bytes"
    )
    return ApiError(RAFT_INTERNAL, cause.encode(), limit=NO_ROOM)


class _Asking(NamedTuple):
    """A request that waits for a listing."""

    connection: Connection
    method: str
    get: Get
    since: float


class _Full(Exception):
    """There is no room for the next slice."""


class _Job:
    """One rendering: the requests that wait for it, and its slices, held in memory."""

    def __init__(self, place: Hashable, get: Get, begin: Begin | None) -> None:
        self.place = place
        self.get = get
        self.begin = begin
        self.asking: list[_Asking] = []
        self.pieces: list[Piece] = []
        self.size = 0

    @property
    def is_wanted(self) -> bool:
        """Whether any of its clients is still connected."""
        return any(not one.connection.gone for one in self.asking)

    def add(self, pieces: list[Piece]) -> None:
        """Add a slice."""
        for piece in pieces:
            piece.hold()
            self.size += len(piece.data)
        self.pieces += pieces

    def drop(self) -> None:
        """Drop all slices."""
        pieces, self.pieces, self.size = self.pieces, [], 0
        for piece in pieces:
            piece.drop()


class LargeListings:
    """The listings that are rendered in turns."""

    def __init__(
        self,
        *,
        store: Store,
        stats: StoreStats,
        now: Callable[[], tuple[int, bool]],
        kept: ListingCache,
        memory: MemoryBudget,
        values: Values,
        head: Callable[[int], bytes],
        refuse: Refuse,
        slow_s: float,
        slices: asyncio.Lock,
    ) -> None:
        self._store = store
        self._stats = stats
        self._now = now
        self._kept = kept
        self._memory = memory
        self._values = values
        self._head = head
        self._refuse = refuse
        self._slow_s = slow_s
        self._slices = slices
        self._large: Bounded[tuple[bytes, bool], None] = Bounded(_PLACES_BYTES_MAX)
        self._warnings = RateLimit(SLOW_QUIET_S)
        self._rendered = asyncio.Semaphore(_RENDERED_MAX)
        self._alone = asyncio.Lock()
        # Those that have not begun, by what they list.
        self._waiting: dict[Hashable, _Job] = {}
        self.slow = 0
        """How many took longer than `slow_s`."""

    def has_been_large(self, get: Get) -> bool:
        """Return whether the last listing of the same was not done in one turn."""
        return (get.key, get.recursive) in self._large.kept

    def join(
        self,
        connection: Connection,
        method: str,
        get: Get,
        begin: Begin | None = None,
        place: Hashable = None,
    ) -> _Job | None:
        """Ask for a listing; return it if it has to be run, None if it will be anyway.

        Args:
            connection: where the response goes.
            method: GET or HEAD.
            get: what is asked for.
            begin: renders it, where that is no ordinary listing.
            place: equal for those that it renders alike.
        """
        place = place or (get.key, get.recursive)
        job = self._waiting.get(place)
        is_new = job is None
        if job is None:
            job = self._waiting[place] = _Job(place, get, begin)
        job.asking.append(_Asking(connection, method, get, monotonic()))
        return job if is_new else None

    async def run(self, job: _Job) -> None:
        """Render a listing, and answer all that have asked for it."""
        try:
            await self._run(job)
        except (NoRoom, TimeoutError):
            self._refuse_all(job, no_room())
        except ApiError as refusal:
            self._refuse_all(job, refusal)
        finally:
            job.drop()
            if self._waiting.get(job.place) is job:
                del self._waiting[job.place]
            for one in job.asking:  # none are left, unless this was cancelled or has failed
                one.connection.abort()

    async def _run(self, job: _Job) -> None:
        async with asyncio.timeout(_QUEUE_S):
            await self._rendered.acquire()
        try:
            await self._render(job, waits=False)
        except _Full:
            job.drop()
            newer = self._waiting.setdefault(job.place, job)
            if newer is not job:
                newer.asking += job.asking
                job.asking = []
                return
        else:
            return
        finally:
            self._rendered.release()
        async with asyncio.timeout(_QUEUE_S):
            await self._alone.acquire()
        try:
            await self._render(job, waits=True)
        finally:
            self._alone.release()

    async def _render(self, job: _Job, *, waits: bool) -> None:
        """Render a listing as it is now, and answer.

        Raises:
            _Full: there is no room, and it may not wait for it.
            NoRoom: none has come in time.
            ApiError: there is no such key any more, or the response is too large.
        """
        waited_s = 0.0
        if waits:
            waited_s = await self._room(waited_s)
        del self._waiting[job.place]
        applied = self._store.applied
        now_ns, is_overdue = self._now()
        begin = job.begin or partial(self._begin, job.get)
        with self._store.long_view() as view:
            slices = begin(view, now_ns, is_overdue)
            listing = await self._advance(slices, job)
            if job.begin is None:
                self._note_size(job.get, is_large=listing is None)
            while listing is None:
                if job.size > _HEAD_BYTES_MAX and job.begin is None:
                    self._answer_heads(job, self._head(applied.index))
                if not self._memory.fits(_STEP_BYTES):
                    if not waits:
                        raise _Full
                    waited_s = await self._room(waited_s)
                listing = await self._advance(slices, job)
                if not job.is_wanted:
                    job.asking = []
                    return
        # The transaction has ended: a slow client holds up nothing but its own response.
        if listing.parts is not None and self._store.applied is applied and not is_overdue:
            # Nothing was changed while it was rendered.
            body = b"".join(piece.data for piece in job.pieces)
            self._kept.keep(job.get.key, body, listing.parts, recursive=job.get.recursive)
        self._answer(job, self._head(applied.index) + listing.lines)

    def _begin(self, get: Get, view: View, now_ns: int, is_overdue: bool) -> Slices:
        applied = self._store.applied
        shown = view.at(now_ns) if is_overdue else view
        return render(
            view,
            get.key,
            rules.existing(shown, get.key, applied.index),
            now_ns,
            applied.clock_offset_ns,
            recursive=get.recursive,
            ended_ns=now_ns if is_overdue else 0,
        )

    async def _advance(self, slices: Slices, job: _Job) -> Listing | None:
        """Add to what is held, in a turn in which no other does; return the listing if it is done.

        Raises:
            ApiError: it is too large.
        """
        async with self._slices:
            await asyncio.sleep(0)
            parts, listing = advance(slices, until=monotonic() + _SLICE_S)
        job.add(self._values.pieces(parts))
        if job.size > self._memory.answer_bytes_max:
            raise too_large(self._memory.answer_bytes_max)
        return listing

    def _note_size(self, get: Get, *, is_large: bool) -> None:
        place = get.key, get.recursive
        if is_large:
            self._large.keep(place, None, len(get.key))
        else:
            self._large.drop(place)

    async def _room(self, waited_s: float) -> float:
        """Wait for room; return how long this rendering has waited in all."""
        began = monotonic()
        await self._memory.room(_STEP_BYTES)
        waited_s += monotonic() - began
        if waited_s > ROOM_WAIT_S:
            raise NoRoom
        return waited_s

    def _answer(self, job: _Job, head: bytes) -> None:
        if job.size > _HEAD_BYTES_MAX:
            self._answer_heads(job, head)
        asking, job.asking = job.asking, []
        for connection, method, get, since in asking:
            self._stats.count(get, succeeded=True)
            self._note_duration(get, monotonic() - since)
            if method == "HEAD":
                body = b"".join(piece.data for piece in job.pieces)
                connection.respond(_OK, head, body, head_only=True)
            else:
                connection.respond_in_pieces(_OK, head, job.pieces)

    def _answer_heads(self, job: _Job, head: bytes) -> None:
        """Answer HEAD requests, without a length: a body as long as this has none."""
        for connection, method, get, _ in job.asking:
            if method == "HEAD":
                self._stats.count(get, succeeded=True)
                connection.respond_head(_OK, head)
        job.asking = [one for one in job.asking if one.method != "HEAD"]

    def _refuse_all(self, job: _Job, refusal: ApiError) -> None:
        asking, job.asking = job.asking, []
        for connection, method, get, _ in asking:
            self._stats.count(get, succeeded=False)
            self._stats.refused(get, refusal, method=method)
            self._refuse(connection, method, refusal)

    def _note_duration(self, get: Get, seconds: float) -> None:
        self._stats.listings_s.observe(seconds)
        if seconds > self._slow_s:
            self.slow += 1
            if self._warnings.allow():
                log.warning(
                    "slow: it took %.1f s to list %s%s",
                    seconds,
                    get.key.decode("utf-8", "replace"),
                    self._warnings.suppressed(),
                )


def too_large(limit: int) -> ApiError:
    """Return the refusal of a response that is longer than one may be."""
    cause = (
        f"the response is larger than {limit} bytes: list fewer keys at once, "
        "or raise --max-response-bytes"
    )
    return ApiError(RAFT_INTERNAL, cause.encode(), limit=ANSWER_TOO_LARGE)

"""The way of a batch: composed, appended, made visible, published, responded to.

The invariants are those of the committer (kvd/core/committer.py), which says when a batch begins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sized
from typing import Protocol

from kvd.core.background.flusher import Flusher
from kvd.core.batch.composer import Composer
from kvd.core.batch.responses import Responses
from kvd.core.batch.round import Render, Respond, Round
from kvd.core.clock import Clock
from kvd.core.disk_space import DiskSpace
from kvd.core.expiry_timer import ExpiryTimer
from kvd.core.histogram import Noted
from kvd.core.replicated.aborted import Aborted
from kvd.core.replicated.followed import Awaited
from kvd.core.stats import StoreStats
from kvd.core.watch.hub import Hub
from kvd.storage.errors import LogFull
from kvd.storage.format.frame import Position
from kvd.storage.index.history import LateEvent
from kvd.storage.index.pending import Pending
from kvd.storage.store import Store
from kvd.v2.errors import RAFT_INTERNAL, ApiError

log = logging.getLogger(__name__)

_RETRY_S = 0.5


class Observer(Protocol):
    """Gets the events of each batch once it is visible, before its commands are answered."""

    @property
    def kept(self) -> Sized:
        """Its entries: while there are none, `observe` is not called."""

    def observe(self, events: list[LateEvent]) -> None:
        """Take note of what a batch has changed."""


class Flow:
    """Leads one batch after another from its beginning to its end.

    Attributes:
        under_way: The batch in flight to the disk, if any.
        document_observers: Called when documents may have changed, before the responses to that.
        batch_s, batch_records: As in the committer.
    """

    def __init__(
        self,
        *,
        store: Store,
        composer: Composer,
        hub: Hub,
        observers: tuple[Observer, ...],
        stats: StoreStats,
        clock: Clock,
        space: DiskSpace,
        flusher: Flusher,
        expiry_timer: ExpiryTimer,
        responses: Responses,
        append: Callable[[Pending, Callable[[Position | BaseException], None]], bool],
        wait: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
        on_fatal: Callable[[BaseException], None],
        on_hold: Callable[[], None],
        on_end: Callable[[], None],
        on_abort: Callable[[], None],
        render: Render,
        respond: Respond,
        slow_s: float,
    ) -> None:
        """Call `on_hold` if a batch must wait for the index; at each end `on_end` or `on_abort`."""
        self._store = store
        self._state = store.state
        self._encode = store.journal.encode
        self._compose, self._compose_followed = composer.compose, composer.compose_followed
        self._hub = hub
        self._observers = observers
        self._stats = stats
        self._clock = clock
        self._raw_ns = clock.raw_ns
        self._space = space
        self._flusher = flusher
        self._expiry_timer = expiry_timer
        self._responses = responses
        self._append = append
        self._wait = wait
        self._loop = loop
        self._on_fatal = on_fatal
        self._on_hold, self._on_end, self._on_abort = on_hold, on_end, on_abort
        self._render = render
        self._respond = respond
        self._slow_s = slow_s
        self.under_way: Round | None = None
        # What follows a batch without a change, and what gets the commands of one given back.
        self._finish_unchanged = self._finish
        self._confirm: Callable[[Callable[[BaseException | None], None]], None]
        self._give_back: Callable[[Round], None]
        self.document_observers: list[Callable[[], None]] = []
        self.batch_s = Noted()
        self.batch_records = Noted(tuple(2**k for k in range(11)))

    @property
    def syncing_s(self) -> float:
        """The seconds for which the batch in flight has been there; 0 if there is none."""
        return (
            0.0 if self.under_way is None else (self._clock.now_ns() - self.under_way.time_ns) / 1e9
        )

    def begin(self) -> None:
        """Begin a batch of what is queued; none may be under way."""
        if self._flusher.holds and self._state.is_full:
            self._on_hold()
            return
        round_, records = self._compose()
        pending = round_.pending
        if not records:
            pending.end()
            self._finish_unchanged(round_)
            return
        self.under_way = round_
        self._encode(pending, records, round_.time_ns)
        if self._append(pending, self._appended):
            self._render(round_)  # while the disk is at work
            self._wait()
        elif self.under_way is round_:
            self._render(round_)  # while a thread writes
        if self._state.wants_flush:
            self._flusher.beside_batch()

    def lead(
        self,
        compose: Callable[[], tuple[Round, list[bytes]]],
        confirm: Callable[[Callable[[BaseException | None], None]], None],
        give_back: Callable[[Round], None],
    ) -> None:
        """Lead batches of a log that several members share.

        Args:
            compose: takes the place of the composer's.
            confirm: called for each batch without a change; calls back with None before that may be
                answered, or with why not.
            give_back: called for each batch that was not logged and never will be.
        """
        self._compose, self._confirm, self._give_back = compose, confirm, give_back
        self._finish_unchanged = self._finish_confirmed

    def _finish_confirmed(self, round_: Round) -> None:
        if not (round_.answers or round_.replies):
            self._finish(round_)
            return
        self.under_way = round_
        self._confirm(self._confirmed)

    def _confirmed(self, outcome: BaseException | None) -> None:
        try:
            round_ = self.under_way
            assert round_ is not None
            self.under_way = None
            if outcome is None:
                self._finish(round_)
            else:
                self._failed(round_, outcome)
        except BaseException as error:  # noqa: BLE001 -- a bug or damage: nothing may go on
            self._on_fatal(error)

    def follow(self, payload: bytes, awaited: Awaited) -> None:
        """Begin the batch in the payload of another member; none may be under way.

        Raises:
            OtherHistory, UnknownRecord: as for `Journal.adopt`; none has begun.
        """
        round_ = self._compose_followed(payload, awaited)
        self.under_way = round_
        # As in `begin`, which does not share this: a call less for each batch.
        if self._append(round_.pending, self._appended):
            self._render(round_)
            self._wait()
        elif self.under_way is round_:
            self._render(round_)
        if self._state.wants_flush:
            self._flusher.beside_batch()

    def _appended(self, outcome: Position | BaseException) -> None:
        try:
            round_ = self.under_way
            assert round_ is not None
            self.under_way = None
            if type(outcome) is not Position:
                self._failed(round_, outcome)
                return
            if round_.removals:
                round_.removals.note_late(self._state)
            self._state.merge(round_.pending, outcome)
            if round_.pays:
                self._store.unlogged_start = ()
            self.batch_records.note(round_.pending.records)
            if self._state.is_heavy:
                self._flusher.on_thread()
            self._finish(round_)
        except BaseException as error:  # noqa: BLE001 -- a bug or damage: nothing may go on
            self._on_fatal(error)

    def _failed(self, round_: Round, outcome: Position | BaseException) -> None:
        assert isinstance(outcome, BaseException)
        if isinstance(outcome, LogFull):
            self._space.enter(outcome)
            assert self._space.refusal is not None
            self._refuse(round_, self._space.refusal)
            return
        if isinstance(outcome, Aborted):
            if outcome.refusal is not None:
                self._refuse(round_, outcome.refusal)
            else:
                self._give_back(round_)
                self._on_abort()
            return
        # Whether the batch is durable is unknown, and a second fdatasync must not decide it: that
        # one succeeds although the data is lost.
        unknown = ApiError(RAFT_INTERNAL, b"outcome unknown: the log could not be synced")
        round_.answer_all(unknown)
        self._on_fatal(outcome)

    def _finish(self, round_: Round) -> None:
        """Publish events and send responses: the batch is durable, and visible."""
        # First: a client that has its response may send a command on what ends at once.
        if self._state.due_ns != self._expiry_timer.armed_ns:
            self._expiry_timer.arm()
        events = round_.pending.events
        for observer in self._observers:
            if observer.kept:
                observer.observe(events)
        if self._hub.requests:
            removed = round_.removed
            self._hub.publish([(event, removed.get(event[0][1], [])) for event, _ in events])
        took = (self._raw_ns() - round_.queued) / 1e9
        if expired := self._respond(round_, took):
            self._stats.expirations += expired
        if round_.replies:
            self._responses.reply(round_, self.document_observers)
        self.batch_s.note(took)
        if took > self._slow_s:
            self._responses.note_slow(len(round_.answers), took)
        self._on_end()
        if self._state.has_garbage:
            self._flusher.free()

    def _refuse(self, round_: Round, refusal: ApiError) -> None:
        if not round_.is_followed:
            self._responses.abort(round_, refusal)
        # An expiry that found no room tries again, but not at once.
        self._loop.call_later(_RETRY_S, self._expiry_timer.arm)
        self._on_abort()

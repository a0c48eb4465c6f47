"""Composer of batches: queued work becomes the records of one frame.

The order in a batch: what the start had no room for, a step of the clock, expirations, changes of
documents, commands.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from kvd.core.batch.decider import Decider
from kvd.core.batch.documents import decide_documents
from kvd.core.batch.expirations import EXPIRED_MAX, EXPIRED_WITH_COMMANDS_MAX, Expirations
from kvd.core.batch.limits import BatchLimits
from kvd.core.batch.round import Queued, Round, counted, respond_to
from kvd.core.clock import Clock, ClockSteps
from kvd.core.disk_space import DiskSpace
from kvd.core.replicated.followed import Awaited, compose_followed
from kvd.core.replicated.rids import give_rids
from kvd.core.stats import StoreStats
from kvd.core.watch.hub import Hub
from kvd.storage.format.records import ClockOffset, Record, encode_record
from kvd.storage.index.pending import Pending
from kvd.storage.store import Store
from kvd.v2.documents.decision import Decide, Replied
from kvd.v2.documents.entries import decide_entries
from kvd.v2.errors import RAFT_INTERNAL, ApiError, RouteError


class Composer:
    """Queues work, and composes batches of it.

    Attributes:
        queue: Commands, each with the clock's `raw_ns` when it was queued: keys that had ended by
            then do not exist for it.
        documents: Changes of documents.
        decide_document: Decides them.
        steps: Steps of the machine's clock.
    """

    def __init__(self, store: Store, *, clock: Clock, space: DiskSpace, hub: Hub) -> None:
        self.queue: deque[Queued] = deque()
        self.documents: deque[tuple[Any, Replied]] = deque()
        self.steps = ClockSteps(clock, store.applied.clock_offset_ns)
        self._store = store
        self._state = store.state
        self._clock = clock
        self._raw_ns = clock.raw_ns
        self._space = space
        self.decide_document: Decide = decide_entries
        self._limits = BatchLimits(store.wal.max_payload, space)
        self._expirations = Expirations(clock, self._limits, hub)
        self._decider = Decider(
            self.queue,
            wal=store.wal,
            clock=clock,
            limits=self._limits,
            expirations=self._expirations,
        )
        self._decide = self._decider.decide

    @property
    def waiting(self) -> int:
        """The number of queued commands and documents."""
        return len(self.queue) + len(self.documents)

    @property
    def has_step(self) -> bool:
        """Whether a step of the machine's clock is to be logged now."""
        return self.steps.offset_ns is not None and self._space.refusal is None

    def compose(self) -> tuple[Round, list[bytes]]:
        """Return a batch of what is queued, and its records: none, if it changes nothing."""
        queue = self.queue
        pending = Pending(self._state)
        time_ns = self._clock.now_ns()
        round_ = Round(pending, time_ns, queue[0][2] if queue else self._raw_ns())
        records: list[bytes] = []
        if self.steps.offset_ns is not None or self._store.unlogged_start:
            records = self._log_state(round_)
        left = EXPIRED_WITH_COMMANDS_MAX if queue else EXPIRED_MAX
        if pending.due_ns and pending.due_ns <= time_ns:
            # A command that came before a key's end finds it, however long it has waited.
            until_ns = self._clock.at(queue[0][2]) if queue else time_ns
            records += self._expirations.expire(round_, until_ns, left)
            left -= len(records)
        if self.documents:
            size = sum(map(len, records))
            records += decide_documents(
                round_, self.documents, size, self._limits, self.decide_document
            )
        if queue:
            self._decide(round_, records, left)
        return round_, records

    def compose_followed(self, payload: bytes, awaited: Awaited) -> Round:
        """Return the batch in the payload of another member.

        Raises:
            OtherHistory, UnknownRecord: as for `compose_followed`.
        """
        on_removal = self._expirations.note_removed
        pending = Pending(self._state)
        decide, now = self.decide_document, self._raw_ns()
        return compose_followed(payload, pending, now, on_removal, awaited, decide_document=decide)

    def limit_batches(self, bytes_max: int) -> None:
        """Compose smaller batches, of so many bytes; a command that is larger gets its own."""
        self._limits.bytes_max = min(bytes_max, self._limits.bytes_max)
        self._decider.limits_changed()

    def refuse_writes(self, refusal: ApiError | None) -> None:
        """Refuse what users write, though the disk has room; None ends that."""
        self._space.limit = refusal
        self._decider.limits_changed()

    def expect_forwarded(self) -> None:
        """Look for forwarded commands in batches from now on, so that others need not before."""
        self._decide = self._decide_with_rids

    def _decide_with_rids(self, round_: Round, records: list[bytes], left: int) -> None:
        self._decider.decide(round_, records, left)
        give_rids(round_, records)

    def _log_state(self, round_: Round) -> list[bytes]:
        """Log what the start of the server had no room for, if there is now, and a clock step."""
        records: list[Record] = []
        if self._space.refusal is None:
            records += self._store.unlogged_start
            round_.pays = True
        offset_ns = self.steps.take(round_.pending.base.clock_offset_ns)
        if offset_ns is not None:
            records.append(ClockOffset(offset_ns))
        for record in records:
            round_.pending.apply(record, round_.time_ns)
        return [encode_record(record) for record in records]

    def refuse_all(self, reason: str, stats: StoreStats) -> None:
        """Refuse all that is queued."""
        refusal = ApiError(RAFT_INTERNAL, reason.encode())
        while self.queue:
            command, done, _ = self.queue.popleft()
            stats.refused(counted(command), refusal)
            respond_to(done, refusal)
        while self.documents:
            respond_to(self.documents.popleft()[1], RouteError(500, reason))

"""A leader's side of batches that a log of several members orders.

Invariants:

- A batch without a change is answered only once it is confirmed that this member still leads: it
  may have been decided on a state that is no longer the last.
- Of a batch that was not logged, and never will be, each command that has no response yet goes back
  to its place in the queue.
- No client waits for longer than `WAIT_S` and a tick: the commands of a batch that takes longer
  get a timeout, and the batch goes on. Whether they are done then is for the log to say.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

from kvd.core.batch.composer import Composer
from kvd.core.batch.flow import Flow
from kvd.core.batch.limits import BATCH_RECORDS_MAX
from kvd.core.batch.round import Queued, Replies, Round, counted, respond_to
from kvd.core.batch.transactions import client_of
from kvd.core.clock import Clock
from kvd.core.stats import StoreStats
from kvd.v2.documents.decision import Replied
from kvd.v2.errors import RAFT_INTERNAL, ApiError, RouteError

WAIT_S = 7.0
"""As etcd waits for its quorum: five seconds, and two of its election timeouts."""
BATCH_BYTES_MAX = 256 << 10
"""An append of more keeps the others waiting for too long."""
NOT_SENT = b"etcdserver: request timed out"
MAYBE_DONE = b"etcdserver: request timed out, possibly due to previous leader failure"
NO_REPLY = "Internal Server Error"

Confirm = Callable[[Callable[[BaseException | None], None]], None]
"""Calls back with None if this member still leads, with `Aborted` if it does not."""


class Leading:
    """Composes the batches of a member that leads, and keeps what their commands need."""

    def __init__(
        self, confirm: Confirm, composer: Composer, flow: Flow, stats: StoreStats, clock: Clock
    ) -> None:
        self._composer = composer
        self._flow = flow
        self._stats = stats
        self._clock = clock
        # Documents that wait, by the identity of their callback; since when, to the next tick.
        self._documents: dict[int, tuple[Replied, int]] = {}
        composer.limit_batches(BATCH_BYTES_MAX)
        composer.expect_forwarded()
        flow.lead(self._compose, confirm, self._give_back)

    def refuse_writes(self, reason: str) -> None:
        """Refuse what users write, for a reason, as without room on the disk; "" ends that."""
        self._composer.refuse_writes(ApiError(RAFT_INTERNAL, reason.encode()) if reason else None)

    def came(self, done: Replied) -> int:
        """Return when a change of documents came (`Clock.raw_ns`), to the next tick."""
        return self._documents.get(id(done), (done, self._clock.raw_ns()))[1]

    def put_back(self, commands: list[Queued], documents: list[tuple[Any, Replied, int]]) -> None:
        """Queue, before all others, what `take_held` has returned; while a batch is due.

        Documents come with when they came.
        """
        self._composer.queue.extendleft(reversed(commands))
        for command, done, came in reversed(documents):
            self._composer.documents.appendleft((command, done))
            self._documents[id(done)] = done, came

    def tick(self) -> None:
        """Respond to what has waited for too long; to be called several times a second."""
        now = self._clock.raw_ns()
        before = now - int(WAIT_S * 1e9)
        queue, round_ = self._composer.queue, self._flow.under_way
        while queue and queue[0][2] < before:
            self._respond(queue.popleft(), NOT_SENT)
        if round_ is not None:
            self._time_out(round_, before)
        self._time_out_documents(round_, now, before)

    def _compose(self) -> tuple[Round, list[bytes]]:
        composer = self._composer
        queue, documents = composer.queue, composer.documents
        commands, changes = [*islice(queue, BATCH_RECORDS_MAX)], [*documents]
        round_, records = composer.compose()
        # What has no place in the batch was put back to the front.
        left = {id(queued) for queued in islice(queue, BATCH_RECORDS_MAX)}
        round_.taken = [queued for queued in commands if id(queued) not in left]
        round_.taken_documents = changes[: len(changes) - len(documents)]
        return round_, records

    def _give_back(self, round_: Round) -> None:
        self._composer.queue.extendleft(reversed(round_.taken))
        self._composer.documents.extendleft(reversed(round_.taken_documents))

    def _time_out(self, round_: Round, before: int) -> None:
        late = {id(done) for _, done, came in round_.taken if came < before}
        if not late:
            return
        taken, round_.taken = round_.taken, []
        for queued in taken:
            if id(queued[1]) in late:
                self._respond(queued, MAYBE_DONE)
            else:
                round_.taken.append(queued)
        # Their places stay: the events of a batch are counted by them.
        round_.answers = [
            (_ignore if id(client_of(done)) in late else done, command, outcome)
            for done, command, outcome in round_.answers
        ]
        round_.replies = _without(round_.replies, late)
        round_.rendered = (None,)

    def _time_out_documents(self, round_: Round | None, now: int, before: int) -> None:
        in_flight = round_.taken_documents if round_ is not None else []
        seen = self._documents
        self._documents = {
            id(done): seen.get(id(done), (done, now))
            for _, done in (*self._composer.documents, *in_flight)
        }
        late = {key for key, (_, since) in self._documents.items() if since < before}
        if not late:
            return
        if round_ is not None:
            round_.replies = _without(round_.replies, late)
            round_.taken_documents = [pair for pair in in_flight if id(pair[1]) not in late]
        queue = self._composer.documents
        left = [pair for pair in queue if id(pair[1]) not in late]
        queue.clear()
        queue.extend(left)
        for key in late:
            respond_to(self._documents.pop(key)[0], RouteError(500, NO_REPLY))

    def _respond(self, queued: Queued, cause: bytes) -> None:
        command, done, _ = queued
        timeout = ApiError(RAFT_INTERNAL, cause)
        self._stats.refused(counted(command), timeout)
        respond_to(done, timeout)


def _without(replies: Replies, late: set[int]) -> Replies:
    return [(_ignore if id(client_of(done)) in late else done, reply) for done, reply in replies]


def _ignore(_outcome: object) -> None:
    """No-op callback: the client has got a timeout."""

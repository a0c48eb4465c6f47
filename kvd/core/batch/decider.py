"""Commands decided into a batch, in the order in which they came.

Each is decided by the rules (kvd/v2/rules.py) against the batch: it becomes a change, with its
record and its event, or a refusal that changes nothing.
"""

from __future__ import annotations

from collections import deque

from kvd.core.batch.expirations import Expirations, NodesAt, NotKnownYet
from kvd.core.batch.limits import BATCH_RECORDS_MAX, BatchLimits, NoRoom
from kvd.core.batch.round import Queued, Round, counted
from kvd.core.batch.transactions import decide_transaction
from kvd.core.clock import NEVER_NS, Clock
from kvd.storage.format.records import REMOVALS, encode_change
from kvd.storage.wal.wal import Wal
from kvd.v2.errors import ApiError
from kvd.v2.rules import RULES, Nodes, SeveralChanges

# The bytes of keys in a batch, whether they make records or not: a key of thousands of components
# takes 20 ms to be decided and applied, and other requests would wait for a thousand of these.
_BATCH_KEY_BYTES_MAX = 32 << 10
# The cost is in the components: each counts for so many bytes more, in long keys, and in all once
# no more than so much is left. (In small batches they are not counted: a call less a command.)
_BYTES_PER_COMPONENT = 8
_SHORT_KEY_BYTES = 512
_UNCOUNTED_KEY_BYTES = 24 << 10


class Decider:
    """Decides what is queued into one batch after the other."""

    def __init__(
        self,
        queue: deque[Queued],
        *,
        wal: Wal,
        clock: Clock,
        limits: BatchLimits,
        expirations: Expirations,
    ) -> None:
        self._queue = queue
        self._wal = wal
        self._clock = clock
        self._limits = limits
        self._room = limits.bytes_max
        self._space = limits.space
        self._expirations = expirations

    def limits_changed(self) -> None:
        """Decide the next batch by what the limits are now."""
        # Without room, `fits` is to look at each record.
        self._room = self._limits.bytes_max if self._space.limit is None else -1

    def decide(  # noqa: C901, PLR0912, PLR0915 -- a call less for each command, or batch
        self, round_: Round, records: list[bytes], left: int
    ) -> None:
        """Decide queued commands, as far as the batch takes them.

        Args:
            round_: the batch.
            records: those of the batch; the commands' are added.
            left: how many expirations the batch still takes.
        """
        pending, queue, answers = round_.pending, self._queue, round_.answers
        time_ns, room = round_.time_ns, self._room
        expired = size = sum(map(len, records)) if records else 0
        # Beyond that, a record has to be looked at.
        if self._space.refusal is not None or self._wal.refusal is not None:
            room = min(room, self._space.room)
        # A command that came then or later may find what has ended.
        overdue_at = self._clock.raw_of(pending.due_ns) if pending.due_ns else NEVER_NS
        later: list[Queued] = []
        keys_left = _BATCH_KEY_BYTES_MAX
        for _ in range(min(len(queue), BATCH_RECORDS_MAX - len(records))):
            if keys_left <= 0:
                break
            queued = command, done, came = queue.popleft()
            key_bytes = len(command[0])
            keys_left -= key_bytes
            if key_bytes > _SHORT_KEY_BYTES or keys_left < _UNCOUNTED_KEY_BYTES:
                keys_left -= _BYTES_PER_COMPONENT * command[0].count(b"/")
            nodes: Nodes = pending
            if came >= overdue_at:
                if self._limits.is_full(records, size + len(command[0])):
                    queue.appendleft(queued)
                    break
                gone = self._expirations.make_way(round_, command, came, left, size)
                left -= len(gone)
                records += gone
                size += sum(map(len, gone))
                nodes = NodesAt(pending, self._clock.at(came))
            try:
                change = RULES[type(command)](nodes, command, pending.index + 1, time_ns)
                record = encode_change(change)
                grown = size + len(record)
                if grown + pending.replaced > room and not self._limits.fits(
                    command, record, size, pending.replaced, is_first=size == expired
                ):
                    queue.appendleft(queued)
                    break
            except ApiError as refusal:
                refusal.index = pending.index
                answers.append((done, command, refusal))
                if round_.has_loaded_much():
                    break
                continue
            except NoRoom as no_room:
                answers.append((done, command, no_room.refusal))
                continue
            except NotKnownYet:
                later.append(queued)
                continue
            except SeveralChanges:
                if not self._decide_transaction(round_, nodes, queued, records, later):
                    queue.appendleft(queued)
                    break
                size = sum(map(len, records))
                if len(records) >= BATCH_RECORDS_MAX or round_.has_loaded_much():
                    break
                continue
            size = grown
            records.append(record)
            if change[4] and change[0] in REMOVALS:
                self._expirations.note_removed(round_, change)
            answers.append((done, command, pending.change(change, time_ns, record)))
        if later:
            self._put_off(round_, later)

    def _decide_transaction(
        self,
        round_: Round,
        nodes: Nodes,
        queued: Queued,
        records: list[bytes],
        later: list[Queued],
    ) -> bool:
        """Decide a transaction, or put it off; return whether the batch has room for it."""
        try:
            return decide_transaction(
                round_,
                nodes,
                queued[:2],
                records,
                limits=self._limits,
                on_removal=self._expirations.note_removed,
            )
        except NotKnownYet:
            later.append(queued)
            return True

    def _put_off(self, round_: Round, later: list[Queued]) -> None:
        """Leave commands to the next batch."""
        refusal = self._space.refusal
        if refusal is None:
            self._queue.extendleft(reversed(later))
        else:  # nothing can expire until there is room
            round_.answers += [(done, counted(command), refusal) for command, done, _ in later]

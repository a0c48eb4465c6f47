"""Parts of a server that everything in the key space works with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from kvd.core.clock import Clock
from kvd.core.committer import Committer
from kvd.core.stats import StoreStats
from kvd.handlers.keys.outcomes import WriteResponses
from kvd.handlers.keys.responder import Responder
from kvd.handlers.keys.value_cache import ValueCache
from kvd.handlers.keys.watch import WatchAnswers
from kvd.http.sending.status_lines import StatusLines
from kvd.limits.memory_budget import MemoryBudget, Values
from kvd.storage.store import Store


class AnswerParts(NamedTuple):
    """Parts of responses: made before the committer and the hub, which report to them.

    Attributes:
        memory: Counts what responses take.
        values: Large values that are being sent.
    """

    memory: MemoryBudget
    values: Values
    texts: ValueCache
    responder: Responder
    watches: WatchAnswers

    def write_responses(self, status_lines: StatusLines, stats: StoreStats) -> WriteResponses:
        """Return what responds to the commands of a batch."""
        return WriteResponses(
            status_lines,
            stats=stats,
            texts=self.texts,
            memory=self.memory,
            fixed_headers=self.responder.fixed,
        )


def answer_parts(
    store: Store,
    memory: MemoryBudget,
    on_damage: Callable[[BaseException], None],
    *,
    stream_bytes_max: int,
) -> AnswerParts:
    """Make the parts of responses."""
    values = Values(memory)
    responder = Responder(store, memory, on_damage)
    watches = WatchAnswers(store, memory, values, responder, stream_bytes_max=stream_bytes_max)
    return AnswerParts(memory, values, ValueCache(), responder, watches)


class KeyParts(NamedTuple):
    """The parts of the key space.

    Attributes:
        memory: Counts what responses take.
        values: Large values that are being sent.
        slices: Held by what takes long, in a turn of the loop of its own.
    """

    store: Store
    committer: Committer
    stats: StoreStats
    clock: Clock
    memory: MemoryBudget
    values: Values
    slices: asyncio.Lock
    responder: Responder

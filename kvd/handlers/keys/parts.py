"""Parts of a server that everything in the key space works with."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from kvd.core.clock import Clock
from kvd.core.committer import Committer
from kvd.core.stats import StoreStats
from kvd.handlers.keys.responder import Responder
from kvd.limits.memory_budget import MemoryBudget, Values
from kvd.storage.store import Store


class KeyParts(NamedTuple):
    """The parts.

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

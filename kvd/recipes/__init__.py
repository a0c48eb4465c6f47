"""Recipes over keys, which a client makes: locks, elections, queues, counters, barriers.

| made by | sync | async |
|---|---|---|
| `client.lock(NAME)` | `Lock` | `AsyncLock` |
| `client.election(NAME)` | `Election` | `AsyncElection` |
| `client.queue(NAME)` | `Queue` | `AsyncQueue` |
| `client.counter(KEY)` | `Counter` | `AsyncCounter` |
| `client.barrier(KEY)` | `Barrier` | `AsyncBarrier` |
"""

from kvd.client.recipes.asynchronous import AsyncBarrier, AsyncCounter, AsyncElection, AsyncLock
from kvd.client.recipes.asynchronous_queue import AsyncQueue
from kvd.client.recipes.blocking import Barrier, Counter, Election, Lock
from kvd.client.recipes.blocking_queue import Queue
from kvd.client.recipes.claim import LockTimeout
from kvd.client.recipes.items import Item, QueueEmpty
from kvd.client.recipes.lease import Held, LockLost
from kvd.client.streams.asynchronous import AsyncObservation
from kvd.client.streams.blocking import Observation

__all__ = [
    "AsyncBarrier",
    "AsyncCounter",
    "AsyncElection",
    "AsyncLock",
    "AsyncObservation",
    "AsyncQueue",
    "Barrier",
    "Counter",
    "Election",
    "Held",
    "Item",
    "Lock",
    "LockLost",
    "LockTimeout",
    "Observation",
    "Queue",
    "QueueEmpty",
]

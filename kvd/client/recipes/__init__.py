"""Locks and counters over keys: `client.lock(NAME)`, `client.counter(KEY)`, `client.barrier(KEY)`.

claim.py         a lock's entry in its queue, without sockets or threads
blocking.py      Lock, Counter, Barrier of a `Client`; a thread refreshes the lock
asynchronous.py  the same of an `AsyncClient`; a task refreshes the lock
"""

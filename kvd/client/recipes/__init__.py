"""Locks, elections, queues, counters and barriers over keys; `kvd.recipes` has their names.

lease.py                a key with an owner and a TTL, without sockets or threads
claim.py                a lock's entry in its queue, likewise; leaders.py the leader among entries
items.py                items of a queue, likewise
keeper.py               refreshes a lease in a thread, asynchronous_keeper.py in a task
blocking.py             Lock, Election, Counter, Barrier of a `Client`; blocking_queue.py Queue
asynchronous.py         the same of an `AsyncClient`; asynchronous_queue.py AsyncQueue
"""

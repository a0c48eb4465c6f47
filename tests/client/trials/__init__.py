"""Trials of the client under kills: each counts what has happened, and fails on a broken promise.

They import nothing but kvd and the standard library, so that they can run against an installed kvd:
`python -m tests.client.trials --help`. servers.py runs kvd and etcd, workers.py the processes that
take turns, streams.py has the trials of watches, recipes.py those of locks, counters and queues.
"""

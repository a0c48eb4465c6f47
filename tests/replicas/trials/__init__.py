"""Faults on real processes: `python -m tests.replicas.trials [--help]`.

Three servers with one store are written to, read and watched by many clients over HTTP, while
processes are killed, frozen, cut off and wiped. Afterwards one ledger of all responses and events
says what was lost, done twice or read stale.

    network.py     network namespaces, one for each process; which of them reach each other
    processes.py   etcd and kvd, with the signals that they get
    postgres.py    a PostgreSQL, the other engine
    fleet.py       three servers, and the etcd members that keep their log
    faults.py      the faults, by their names
    talk.py        one client's connection
    traffic.py     what the clients share
    load.py        the clients: writers, readers, watchers
    ledger.py      what they have seen, and what is wrong with it
    __main__.py    the trial: a fault after the other, and a table of outages

The servers are three kvd with `--replicate`, whose log is in three members of an etcd or in a
PostgreSQL, or three members of an etcd 3.4, whose API v2 is the same: that proves the clients and
the ledger.
"""

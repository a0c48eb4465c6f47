"""Experiments with crashes: the responses that clients received, against what is there afterwards.

    requests.py   Request, and Connection: requests that are remembered with their responses
    clients.py    Clients: several at once, with a random mixture of writes and reads
    facts.py      Fact, File: events and keys as a client sees them
    ledger.py     Ledger: one order of all events, which every response must fit into

A study writes to a server, ends it in whatever way it is about, starts it again, and lets the
ledger check:

    ledger = Ledger()
    clients = Clients(8, seed=1)
    clients.start(url)
    clients.wait(200)
    ...                                     # end the server and start it again
    ledger.check(clients.join(), url)       # raises Violation

The check needs no knowledge of the server: it compares the responses before the crash with the
events and the keys after it. So it finds what the server itself does not know that it has lost. It
covers acknowledged writes that are lost or changed, events that no request explains, gaps in the
indexes, and reads and refusals that contradict the order of events (linearizability).
"""

from kvd.testing.crash.clients import Clients
from kvd.testing.crash.facts import Fact, File, Violation
from kvd.testing.crash.ledger import Ledger
from kvd.testing.crash.requests import DISCONNECTED, Connection, Request

__all__ = [
    "DISCONNECTED",
    "Clients",
    "Connection",
    "Fact",
    "File",
    "Ledger",
    "Request",
    "Violation",
]

"""A typed client of the etcd v2 API, for kvd and for etcd: `Client` and `AsyncClient`.

operations.py   what a client can do, as generators that yield steps
watches.py      watches and `follow`, likewise
wire.py         HTTP without sockets: requests, answers, kept connections, several endpoints
blocking.py     Client: takes the steps with sockets; keys.py its operations on single keys
asynchronous.py AsyncClient: takes them on an event loop
streams/        open watches, followed subtrees, observed elections
recipes/        locks, elections, queues, counters, barriers

Each name is imported when it is used: a program without an event loop loads no asyncio.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvd.client.asynchronous import AsyncClient
    from kvd.client.blocking import Client
    from kvd.client.errors import (
        ApiError,
        BadRequest,
        ClusterChanged,
        CompareFailed,
        DirectoryNotEmpty,
        HistoryLost,
        KeyExists,
        KeyNotFound,
        KvdError,
        NotADirectory,
        NotAFile,
        NotSupported,
        OutcomeUnknown,
        RootReadOnly,
        ServerRefused,
        Timeout,
        TransportError,
        Unauthorized,
        WatchTimeout,
    )
    from kvd.client.model import (
        Action,
        Compare,
        Event,
        Node,
        Op,
        Snapshot,
        Tree,
        exists,
        missing,
        unchanged,
    )
    from kvd.client.recipes.claim import LockTimeout
    from kvd.client.recipes.items import QueueEmpty
    from kvd.client.recipes.lease import LockLost
    from kvd.client.streams.asynchronous import AsyncFollow, AsyncWatch
    from kvd.client.streams.blocking import Follow, Watch

__all__ = [
    "Action",
    "ApiError",
    "AsyncClient",
    "AsyncFollow",
    "AsyncWatch",
    "BadRequest",
    "Client",
    "ClusterChanged",
    "Compare",
    "CompareFailed",
    "DirectoryNotEmpty",
    "Event",
    "Follow",
    "HistoryLost",
    "KeyExists",
    "KeyNotFound",
    "KvdError",
    "LockLost",
    "LockTimeout",
    "Node",
    "NotADirectory",
    "NotAFile",
    "NotSupported",
    "Op",
    "OutcomeUnknown",
    "QueueEmpty",
    "RootReadOnly",
    "ServerRefused",
    "Snapshot",
    "Timeout",
    "TransportError",
    "Tree",
    "Unauthorized",
    "Watch",
    "WatchTimeout",
    "exists",
    "missing",
    "unchanged",
]

_HOMES = {
    "asynchronous": ("AsyncClient",),
    "blocking": ("Client",),
    "errors": (
        "ApiError",
        "BadRequest",
        "ClusterChanged",
        "CompareFailed",
        "DirectoryNotEmpty",
        "HistoryLost",
        "KeyExists",
        "KeyNotFound",
        "KvdError",
        "NotADirectory",
        "NotAFile",
        "NotSupported",
        "OutcomeUnknown",
        "RootReadOnly",
        "ServerRefused",
        "Timeout",
        "TransportError",
        "Unauthorized",
        "WatchTimeout",
    ),
    "model": (
        "Action",
        "Compare",
        "Event",
        "Node",
        "Op",
        "Snapshot",
        "Tree",
        "exists",
        "missing",
        "unchanged",
    ),
    "recipes.claim": ("LockTimeout",),
    "recipes.items": ("QueueEmpty",),
    "recipes.lease": ("LockLost",),
    "streams.asynchronous": ("AsyncFollow", "AsyncWatch"),
    "streams.blocking": ("Follow", "Watch"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"kvd.client.{_HOME_OF[name]}"), name)

"""A typed client of the etcd v2 API, for kvd and for etcd: `Client` and `AsyncClient`.

operations.py   what a client can do, as generators that yield steps
watches.py      watches and `follow`, likewise
wire.py         HTTP without sockets: requests, answers, kept connections, several endpoints
blocking.py     Client: takes the steps with sockets
asynchronous.py AsyncClient: takes them on an event loop
"""

from kvd.client.asynchronous import AsyncClient, AsyncFollow, AsyncWatch
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
from kvd.client.recipes.claim import LockLost, LockTimeout
from kvd.client.streams import Follow, Watch

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

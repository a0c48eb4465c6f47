"""The state in which the parts of a server are made: its settings, store, clock and sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from kvd.config.config import Config
from kvd.config.urls import ListenUrl
from kvd.core.clock import Clock
from kvd.core.standing import Standing
from kvd.net.fd_limit import Files
from kvd.storage.store import Store

if TYPE_CHECKING:
    from kvd.replicas.replication import Replication

Fail = Callable[[BaseException], None]


class Context(NamedTuple):
    """Everything that exists before the parts are made."""

    config: Config
    loop: asyncio.AbstractEventLoop
    store: Store
    clock: Clock
    files: Files
    """How many connections and watchers there may be."""
    listening: Sequence[ListenUrl]
    """Where the server will listen, with the ports that the system chose."""
    settings: Mapping[str, object]
    """What the routes of monitoring need."""
    fail: Fail
    """Ends the process."""
    standing: Standing | None = None
    """That of a replica; None for a server alone."""
    replication: Replication | None = None
    """What makes this server one of several with one store."""

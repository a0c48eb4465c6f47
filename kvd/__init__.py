"""kvd: a durable configuration store that serves the etcd v2 HTTP API from one process.

README.md in this folder has the folders, the import rules and the way of a PUT, a GET, a watch, an
expiry and a change of users; `storage/README.md` has the file formats and recovery; `manual/` is
the manual that `kvdctl help` prints. To know the system, read v2/rules.py (what a command does),
core/committer.py (the order of a write) and storage/wal/wal.py (the log), in that order.

kvd is not a cluster, has no v3 API, and keeps nothing that the log does not say.

`kvd.Client` and `kvd.AsyncClient` are the client library, with `kvd.recipes`; `kvd.Server` is a
server inside another program; each is imported when it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvd import recipes
    from kvd.client import AsyncClient, Client
    from kvd.embedded import Server

__all__ = ["AsyncClient", "Client", "Server", "__version__", "recipes"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name in ("AsyncClient", "Client"):
        return getattr(import_module("kvd.client"), name)
    if name == "recipes":
        return import_module("kvd.recipes")
    if name == "Server":
        return import_module("kvd.embedded").Server
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""The settings of one replica."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kvd.replicas.engine import Meta
from kvd.replicas.entry import Place
from kvd.replicas.links import Hello
from kvd.replicas.peers.interfaces import Network
from kvd.replicas.peers.tls import LinkTls

MakeNetwork = Callable[[Meta, Hello], Network]


class Settings(NamedTuple):
    """The values that a replica is made with.

    Attributes:
        place: Its data directory, and the engine.
        version: The program's.
        peer_urls: Where other replicas reach this one.
        client_urls: Where clients do.
        listen_peers: Where this one listens for other replicas.
        peer_tls: TLS with them.
        lease_s: How long a leader that is silent keeps the lead.
        history_limit: How many events the history has while this replica leads.
        history_bytes: How many bytes they have.
    """

    place: Place
    version: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]
    listen_peers: Sequence[Any]
    peer_tls: LinkTls | None
    lease_s: float
    history_limit: int
    history_bytes: int | None

"""The replica that a server is, as its settings say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvd import __version__
from kvd.config.config import Config
from kvd.config.flag import ConfigError
from kvd.config.replicas.settings import PeerTls
from kvd.replicas.engines import engine_of
from kvd.replicas.entry import Place
from kvd.replicas.peers.tls import LinkTls
from kvd.replicas.replication import Replication
from kvd.replicas.settings import Settings
from kvd.wiring.context import Fail


def replication_of(
    config: Config, client_urls: Sequence[str], fail: Fail, on_behind: Callable[[], object]
) -> Replication:
    """Return the replica, which is not connected to anything yet.

    Raises:
        ConfigError: its settings cannot be used.
    """
    replicate = config.replicate
    assert replicate is not None
    settings = Settings(
        place=Place(config.data_dir, replicate.url, config.name),
        version=__version__,
        peer_urls=config.peer_urls,
        client_urls=tuple(client_urls),
        listen_peers=replicate.listen_peers,
        peer_tls=_peer_tls(replicate.peer_tls),
        lease_s=replicate.lease_s,
        history_limit=config.event_history_limit,
        history_bytes=config.event_history_bytes,
    )
    return Replication(settings, engine_of(replicate), fail=fail, on_behind=on_behind)


def _peer_tls(files: PeerTls | None) -> LinkTls | None:
    if files is None:
        return None
    try:
        return LinkTls(files)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"--peer-cert-file, --peer-key-file: {error}") from None

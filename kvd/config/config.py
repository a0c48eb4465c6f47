"""The settings of one server, checked: what the command line, environment and file come to."""

from dataclasses import dataclass
from pathlib import Path

from kvd.config.replicas.settings import ReplicaConfig
from kvd.config.tls import TlsConfig
from kvd.config.urls import ListenUrl


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one server, checked.

    Attributes:
        name: This member's name, as `/v2/members` shows it.
        listen: The addresses to serve clients on; at least one.
        advertise: The URLs given to clients; at least one. Without the flag these are
            the URLs listened on, port 0 included, which only the started server can fill in.
        listen_metrics: Addresses that serve `/metrics` and the routes of health alone.
        peer_urls: The URLs that this member shows as its own among peers; at least one.
        cluster_token: What the ids of a new store are made of, with the peer URLs; None makes
            random ones.
        must_exist: Refuse to make a new store.
        replicate: How the store is shared with other servers; None for a server alone.
        data_dir: The data directory, as it was given (it may be relative, or not there yet).
        wal_dir: Where the log is, if not in the data directory.
        snapshot_count: Log records after which a snapshot is made; None decides by size.
        snapshots_kept: How many snapshots are kept, and the log since the oldest; None keeps all.
        event_history_limit: How many events a watch can look back.
        event_history_bytes: How many bytes these may have together; the last one always stays.
        wal_segment_bytes: Size of a segment of the log.
        wal_sync: `auto` or `thread`: how the log is synced, see `kvd.core.log_writer`.
        rebuild_index: Whether to build the index from snapshot and log.
        allow_network_fs: Whether the data may be on a network file system.
        tls: How TLS is spoken; None where no URL asks for it.
        cors: The origins that may read answers in a browser; empty sends no CORS headers.
        host_whitelist: The hosts that requests may name, `*` for any; None without the setting.
        extras: Whether the extras on etcd's API are served (kvd/v2/extras/parameters.py).
        ui: `on`, `read-only` or `off`: how the page `/ui` is served; off without the extras.
        gzip_min_bytes: How long an answer is that is compressed; None compresses none.
        discovery: Whether tokens are made for members of etcd clusters
        (kvd/handlers/extras/discovery.py). discovery_ttl_s: How long such a token lives.
        discovery_max: Limit of these tokens. max_header_bytes: Limit of request line and headers
        together. max_body_bytes: Limit of the body of a request. max_value_bytes: Limit of a value.
        max_key_depth: Limit of the components of a key. max_connections: Limit of open connections;
        None goes by the limit of open files. max_watchers: Limit of waiting watches; None leaves it
        to the limit of connections. max_watchers_per_key: Limit of the watchers of one key; None
        leaves it to the others. max_wait_s: How long a watch waits at most without anything to
        tell; None is for ever. max_stream_bytes: Limit of what a stream leaves unread.
        max_buffered_bytes: Limit of what waits in memory for all clients, both ways together.
        max_response_bytes: Limit of one listing; None is three quarters of the limit before.
        idle_timeout_s: How long a connection may stay open between two requests. header_timeout_s:
        How long request line and headers may take from their first byte, and
            a handshake of TLS.
        body_timeout_s: How long a request body may take.
        write_timeout_s: How long a client may read nothing of its answer.
        log_level: The name of a level of the logging module.
        log_outputs: Where the log goes: stderr, stdout, names of files.
        log_format: text or json.
        access_log: Whether each request is a line of the log.
        slow_request_s: Seconds after which a request is logged as slow.
        failpoints: The faults to be made on purpose, as `kvd.storage.failpoints` reads them.
        warnings: What was given and has no effect here: lines to log once.
    """

    name: str
    listen: tuple[ListenUrl, ...]
    advertise: tuple[str, ...]
    listen_metrics: tuple[ListenUrl, ...]
    peer_urls: tuple[str, ...]
    cluster_token: str | None
    must_exist: bool
    replicate: ReplicaConfig | None
    data_dir: Path
    wal_dir: Path | None
    snapshot_count: int | None
    snapshots_kept: int | None
    event_history_limit: int
    event_history_bytes: int
    wal_segment_bytes: int
    wal_sync: str
    rebuild_index: bool
    allow_network_fs: bool
    tls: TlsConfig | None
    cors: tuple[str, ...]
    host_whitelist: tuple[str, ...] | None
    extras: bool
    ui: str
    gzip_min_bytes: int | None
    discovery: bool
    discovery_ttl_s: int
    discovery_max: int
    max_header_bytes: int
    max_body_bytes: int
    max_value_bytes: int
    max_key_depth: int
    max_connections: int | None
    max_watchers: int | None
    max_watchers_per_key: int | None
    max_wait_s: int | None
    max_stream_bytes: int
    max_buffered_bytes: int
    max_response_bytes: int | None
    idle_timeout_s: float
    header_timeout_s: float
    body_timeout_s: float
    write_timeout_s: float
    log_level: str
    log_outputs: tuple[str, ...]
    log_format: str
    access_log: bool
    slow_request_s: float
    failpoints: tuple[str, ...]
    warnings: tuple[str, ...] = ()

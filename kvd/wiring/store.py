"""The store of a server, opened as its settings say."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from kvd.config.config import Config
from kvd.storage.directory.replica_file import require_alone
from kvd.storage.failpoints import Faults
from kvd.storage.format.identity import NewIds
from kvd.storage.store import Options, Store
from kvd.v2.documents.members import ids_of


def open_store(
    config: Config,
    watch_crashes: Callable[[Path], None] | None,
    faults: Faults | None,
    on_sync: Callable[[float], object],
    ids: NewIds | None,
) -> Store:
    """Open or create the store, as the settings say; `ids` are those of a new one.

    Raises:
        StorageError: it cannot be used, or is a replica's and is not to be replicated.
    """
    if config.replicate is None:
        require_alone(config.data_dir)
    options = Options(
        segment_bytes_max=config.wal_segment_bytes,
        snapshots_kept=config.snapshots_kept or sys.maxsize,
        rebuild_index=config.rebuild_index,
        allow_network_fs=config.allow_network_fs,
        new_ids=ids,
        must_exist=config.must_exist,
        wal_dir=config.wal_dir,
        watch_crashes=watch_crashes,
        on_sync=on_sync,
        faults=faults or Faults(),
    )
    return Store.open(config.data_dir, options)


def new_ids(config: Config) -> NewIds | None:
    """Return the ids of a store that is made: by the cluster token, random ones without."""
    token = config.cluster_token
    return None if token is None else NewIds(*ids_of(config.peer_urls, token))

"""The two ways out for the store of a replica: as a store of its own, and into a new log.

A store of its own gets new ids: the others go on with theirs, and clients take what has another
cluster id for another store. The log and all that was written stay as they are.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvd.storage.directory import replica_file
from kvd.storage.directory.data_directory import DataDirectory
from kvd.storage.directory.format_file import write_ids
from kvd.storage.directory.replica_file import Replica
from kvd.storage.errors import OutOfReach
from kvd.storage.format.identity import NewIds


def detach(path: Path, *, keep_cluster_id: bool = False) -> NewIds:
    """Make the store of a replica one of its own; return its ids. Durable on return.

    A crash leaves it a replica, whose ids the others may not know any more.

    Raises:
        StorageError: the directory cannot be used, or its store is no replica.
        OSError: the disk failed.
    """
    with _replica(path, "it is a store of its own already") as (directory, _):
        cluster_id = directory.identity.cluster_id if keep_cluster_id else _random_id()
        ids = NewIds(cluster_id, _random_id())
        write_ids(path, ids)
        replica_file.remove(path)
        return ids


def replicate_again(path: Path, engine: str) -> Replica:
    """Let the next start of a replica make a new log, at another place. Durable on return.

    Raises:
        StorageError: the directory cannot be used, or its store is no replica.
        OSError: the disk failed.
    """
    with _replica(path, "start it with --replicate") as (_, found):
        replica = Replica(engine, found.cluster_id, joined=False)
        replica_file.write(path, replica)
        return replica


@contextmanager
def _replica(path: Path, otherwise: str) -> Iterator[tuple[DataDirectory, Replica]]:
    directory = DataDirectory.open(path, must_exist=True)
    try:
        found = replica_file.read(path)
        if found is None:
            raise OutOfReach(f"{path}: is no replica: {otherwise}")
        yield directory, found
    finally:
        directory.close()


def _random_id() -> int:
    return secrets.randbelow(2**64 - 1) + 1

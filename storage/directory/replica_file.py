"""The file REPLICA of a data directory: its store is one of several, with a log of them all.

In the form of FORMAT (`kvd.storage.format.identity`):

    engine        the engine that keeps that log, and the place in it
    cluster_id    in hexadecimal digits
    joined        whether the log is there, and this store goes on with it

A store that writes alone would leave the history of the others, and they would never take it back.
So a server without the engine refuses such a directory. While `joined` is false the server may make
the log; once it is true, an engine without that log has lost it.
"""

import os
from pathlib import Path
from typing import NamedTuple

from kvd.storage import disk
from kvd.storage.errors import EX_CONFIG, EX_DATAERR, DirectoryUnusable
from kvd.storage.format.identity import decode_format, encode_format

_NAME = "REPLICA"
_BYTES_MAX = 64 << 10


class Replica(NamedTuple):
    """The content of REPLICA; `engine` is a URL without a user or a password."""

    engine: str
    cluster_id: int
    joined: bool


def read(path: Path) -> Replica | None:
    """Return the REPLICA of a data directory; None, it has none.

    Raises:
        DirectoryUnusable: it is damaged, or cannot be read.
    """
    file = path / _NAME
    try:
        fd = disk.open_to_read(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DirectoryUnusable(f"{file}: {error.strerror}") from error
    try:
        data = disk.read_at(fd, _BYTES_MAX, 0)
    finally:
        os.close(fd)
    try:
        fields = decode_format(data)
        cluster_id = int(str(fields["cluster_id"]), 16)
        return Replica(str(fields["engine"]), cluster_id, fields["joined"] is not False)
    except (KeyError, TypeError, ValueError) as error:
        problem = str(error) if isinstance(error, ValueError) else "does not say what it replicates"
        raise DirectoryUnusable(
            f"{file}: {problem}; restore it, or make the store one of its own with "
            f"`kvdctl detach {path}`",
            exit_status=EX_DATAERR,
        ) from None


def write(path: Path, replica: Replica) -> None:
    """Write the REPLICA of a data directory; durable on return."""
    fields: dict[str, object] = {
        "engine": replica.engine,
        "cluster_id": f"{replica.cluster_id:016x}",
        "joined": replica.joined,
    }
    disk.write_file_durably(path / _NAME, encode_format(fields))


def remove(path: Path) -> None:
    """Remove REPLICA, if it is there; durable on return."""
    disk.remove_if_there(path / _NAME)
    disk.sync_directory(path)


def require_alone(path: Path) -> None:
    """Refuse a directory whose store is one of several.

    Raises:
        DirectoryUnusable: it is, or REPLICA cannot be read.
    """
    replica = read(path)
    if replica is not None:
        raise DirectoryUnusable(
            f"{path}: the store is a replica, whose log is in {replica.engine}: start it with "
            f"--replicate {replica.engine}, or make it a store of its own with "
            f"`kvdctl detach {path}`",
            exit_status=EX_CONFIG,
        )

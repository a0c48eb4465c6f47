"""The file FORMAT of a data directory: read, written for a new store, marked once a log has begun.

Its bytes are those of `kvd.storage.format.identity`.
"""

import os
import secrets
from datetime import UTC, datetime
from pathlib import Path

from kvd.storage import disk
from kvd.storage.errors import EX_CONFIG, EX_DATAERR, DirectoryUnusable
from kvd.storage.format.identity import (
    FORMAT_VERSION,
    STORE_UUID_BYTES,
    Format,
    Identity,
    NewIds,
    decode_format,
    encode_format,
)

_LOG = "log"
_FORMAT_BYTES_MAX = 64 << 10


def read_format(path: Path) -> Format:
    """Read FORMAT, if this version can read the directory.

    Raises:
        DirectoryUnusable: FORMAT is damaged, or of a format that this version does not know.
        OSError: it is missing or cannot be read.
    """
    file = path / "FORMAT"
    fields = _fields(file)
    try:
        identity = _identity(file, fields)
    except (KeyError, TypeError, ValueError):
        raise _damaged(file, "does not say whose the directory is") from None
    return Format(identity, _LOG in fields)


def write_new_format(path: Path, new_ids: NewIds | None) -> None:
    """Write the FORMAT of a new store; durable on return. Its ids are random without `new_ids`."""
    _write(path, _new_fields(new_ids or NewIds(_random_id(), _random_id())))


def mark_log_begun(path: Path) -> None:
    """Note in FORMAT that the log has had a segment; durable on return.

    Raises:
        OSError: FORMAT is as it was.
    """
    _write(path, _fields(path / "FORMAT") | {_LOG: "begun"})


def write_ids(path: Path, ids: NewIds) -> None:
    """Give a store other ids in FORMAT; durable on return."""
    fields = {"cluster_id": f"{ids.cluster_id:016x}", "member_id": f"{ids.member_id:016x}"}
    _write(path, _fields(path / "FORMAT") | fields)


def _new_fields(ids: NewIds) -> dict[str, object]:
    """Return the fields of FORMAT for a new store."""
    now = datetime.fromtimestamp(disk.wall_clock_ns() // 10**9, UTC)
    return {
        "format": FORMAT_VERSION,
        "min_reader": FORMAT_VERSION,
        "store_uuid": secrets.token_hex(STORE_UUID_BYTES),
        "cluster_id": f"{ids.cluster_id:016x}",
        "member_id": f"{ids.member_id:016x}",
        "created": f"{now:%Y-%m-%dT%H:%M:%SZ}",
    }


def _write(path: Path, fields: dict[str, object]) -> None:
    disk.write_file_durably(path / "FORMAT", encode_format(fields))


def _random_id() -> int:
    return secrets.randbelow(2**64 - 1) + 1


def _identity(file: Path, fields: dict[str, object]) -> Identity:
    """Return the identity in the fields, if this version can read the directory.

    Raises:
        DirectoryUnusable: it cannot.
        KeyError, TypeError, ValueError: a field is missing or malformed.
    """
    version, needed = fields["format"], fields["min_reader"]
    if not isinstance(needed, int):
        raise TypeError(needed)
    if needed > FORMAT_VERSION:
        raise DirectoryUnusable(
            f"{file}: the directory has format {version}, which a program for format "
            f"{needed} or later reads; this one is for format {FORMAT_VERSION}",
            exit_status=EX_CONFIG,
        )
    store_uuid = bytes.fromhex(str(fields["store_uuid"]))
    if len(store_uuid) != STORE_UUID_BYTES:
        raise ValueError(store_uuid)
    cluster_id, member_id = (int(str(fields[name]), 16) for name in ("cluster_id", "member_id"))
    return Identity(store_uuid, cluster_id, member_id)


def _fields(file: Path) -> dict[str, object]:
    """Return the fields of FORMAT.

    Raises:
        DirectoryUnusable: it is damaged.
        OSError: it is missing or cannot be read.
    """
    fd = disk.open_to_read(file)
    try:
        data = disk.read_at(fd, _FORMAT_BYTES_MAX, 0)
    finally:
        os.close(fd)
    try:
        return decode_format(data)
    except ValueError as error:
        raise _damaged(file, str(error)) from None


def _damaged(file: Path, problem: str) -> DirectoryUnusable:
    return DirectoryUnusable(f"{file}: {problem}; restore it from a backup", exit_status=EX_DATAERR)

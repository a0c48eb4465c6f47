"""The snapshots of a store: making, finding, keeping and setting aside.

    snap/%016x-%016x.snap    etcd index - seq of the last frame it covers; .broken when set aside

The format of such a file and its checks are in storage/snapshot/file.py.

As a program, this module converts a copy of the index to a snapshot (the server runs it in a
process of its own, because a busy thread would take the interpreter from the event loop):

    python -m kvd.storage.snapshot.directory SCRATCH TARGET HEADER

SCRATCH is an LMDB file, TARGET the file to write, HEADER the output of `encode_header` in hex. The
rows are checked for completeness meanwhile.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import lmdb

from kvd.storage import disk
from kvd.storage.errors import CorruptSnapshot
from kvd.storage.format.names import BROKEN_SNAPSHOT_NAME, SNAPSHOT_NAME
from kvd.storage.format.tables import Find, Row
from kvd.storage.snapshot.file import (
    Header,
    decode_header,
    encode_header,
    read,
    read_chunks,
    read_header,
    verify,
)
from kvd.storage.snapshot.writer import write

__all__ = [
    "Header",
    "available",
    "claims",
    "convert",
    "decode_header",
    "encode_header",
    "index_of",
    "install",
    "named",
    "own_header",
    "prune",
    "read",
    "read_chunks",
    "read_header",
    "seq_of",
    "set_aside",
    "usable",
    "verify",
    "verify_own",
    "write",
]

log = logging.getLogger(__name__)

# Pause of a snapshot's writer between syncs, so that the log's syncs find the disk idle.
_PAUSE_S = 0.02
_NICENESS = 10
EX_INCOMPLETE = 75
"""Exit status of the program for a copy that is damaged or lacks rows."""


def _as_they_are(rows: Iterator[Row], _: Find) -> Iterator[Row]:
    return rows


def available(directory: Path) -> list[Path]:
    """Return the snapshots in a directory, sorted by name, newest first."""
    return sorted(
        (path for path in directory.iterdir() if SNAPSHOT_NAME.fullmatch(path.name)), reverse=True
    )


def named(directory: Path) -> list[Path]:
    """Return the snapshots in a directory and those set aside, in no order."""
    return [path for path in directory.iterdir() if BROKEN_SNAPSHOT_NAME.fullmatch(path.name)]


def claims(path: Path, store_uuid: bytes) -> list[int]:
    """Return the frames that a snapshot's name and header say were durable.

    Raises:
        OSError: it cannot be read.
    """
    try:
        header = read_header(path)
    except CorruptSnapshot:
        return [seq_of(path)]
    except FileNotFoundError:
        return []  # purged by a server meanwhile
    return [seq_of(path), header.seq] if header.store_uuid == store_uuid else []


def own_header(path: Path, store_uuid: bytes) -> Header:
    """Return the header of a snapshot of a store, without a check of its rows.

    Raises:
        CorruptSnapshot: the header is damaged, of another store, or does not match the name.
        OSError: the file cannot be read.
    """
    return _require_own(path, read_header(path), store_uuid)


def verify_own(path: Path, store_uuid: bytes) -> Header:
    """Read a snapshot of a store to its end and return its header.

    Raises:
        CorruptSnapshot: it is damaged, incomplete, of another store, or does not match its name.
        OSError: the file cannot be read.
    """
    return _require_own(path, verify(path), store_uuid)


def _require_own(path: Path, header: Header, store_uuid: bytes) -> Header:
    if header.store_uuid != store_uuid:
        raise CorruptSnapshot.at(
            path, 0, f"a snapshot of another store ({header.store_uuid.hex()})"
        )
    if path.name != name_of(header):
        raise CorruptSnapshot.at(path, 0, f"the header is that of {name_of(header)}")
    return header


def usable(directory: Path, store_uuid: bytes) -> Iterator[tuple[Path, Header]]:
    """Yield a store's snapshots whose headers are good, newest first.

    Any other is set aside, with two lines of log.
    """
    for path in available(directory):
        try:
            header = own_header(path, store_uuid)
        except CorruptSnapshot as error:
            log.warning("%s", error)
            set_aside(path)
        else:
            yield path, header


def name_of(header: Header) -> str:
    """Return the file name of a snapshot."""
    return f"{header.index:016x}-{header.seq:016x}.snap"


def seq_of(path: Path) -> int:
    """Return the last frame that a snapshot covers, from its name; durable before the snapshot."""
    return int(path.name[17:33], 16)


def index_of(path: Path) -> int:
    """Return the etcd index of a snapshot, from its name."""
    return int(path.name[:16], 16)


def install(temporary: Path, directory: Path, header: Header) -> Path:
    """Give a verified snapshot its name; durable on return.

    Args:
        temporary: a file in `directory`.
        directory: the directory of the snapshots.
        header: the header of the snapshot.

    Returns:
        The new path.
    """
    path = directory / name_of(header)
    disk.rename_durably(temporary, path)
    return path


def set_aside(path: Path, *, warns: bool = True) -> Path:
    """Rename an unusable snapshot, so that it is not tried again; return its new name.

    Logs one warning, unless `warns` is false.
    """
    broken = path.with_name(path.name + ".broken")
    disk.rename_durably(path, broken)
    if warns:
        log.warning("%s/%s is set aside as %s", path.parent.name, path.name, broken.name)
    return broken


def prune(directory: Path, keep: int) -> list[Header]:
    """Delete all but the newest snapshots; return the headers of those kept, newest first.

    Raises:
        CorruptSnapshot: the header of a kept one is damaged; nothing is deleted then.
    """
    paths = available(directory)
    kept = [read_header(path) for path in paths[:keep]]
    for path in paths[keep:]:
        disk.remove(path)
    if paths[keep:]:
        disk.sync_directory(directory)
    return kept


def convert(
    scratch: Path,
    target: Path,
    tables: Sequence[bytes],
    header: Header,
    *,
    pace: Callable[[int], None] | None = None,
    through: Callable[[Iterator[Row], Find], Iterator[Row]] = _as_they_are,
) -> None:
    """Convert a copy of the index to a snapshot and verify it.

    Args:
        scratch: an LMDB file (not a directory) without a writer.
        target: the file to write; it is removed after any failure.
        tables: the names of the sub-databases; the table of a row is its place in this list.
        header: the header of the snapshot.
        pace: as for `write`.
        through: a filter that all rows pass through; it may look up other rows.

    Raises:
        OSError, lmdb.Error, CorruptSnapshot: no snapshot was made.
    """
    env = lmdb.open(
        os.fsencode(scratch), subdir=False, readonly=True, lock=False, max_dbs=len(tables)
    )
    try:
        databases = [env.open_db(name, create=False) for name in tables]
        with env.begin() as txn:

            def find(table: int, key: bytes) -> bytes | None:
                return txn.get(key, db=databases[table])

            write(target, header, through(_index_rows(txn, databases), find), pace=pace)
    finally:
        env.close()
    try:
        verify(target)
    except BaseException:
        target.unlink()
        raise


def _index_rows(
    txn: "lmdb.Transaction[bytes]", databases: Sequence[lmdb._Database]
) -> Iterator[Row]:
    for table, database in enumerate(databases):
        with txn.cursor(db=database) as cursor:
            for key, value in cursor.iternext():
                yield table, bytes(key), bytes(value)


def _pause(_: int) -> None:
    time.sleep(_PAUSE_S)


def main(arguments: Sequence[str]) -> int:
    """Run the program that the module's docstring describes; return its exit status."""
    # Imported here, because the functions above need no index.
    from kvd.storage.format.node import CorruptIndex  # noqa: PLC0415
    from kvd.storage.format.tables import TABLES  # noqa: PLC0415
    from kvd.storage.index.integrity.completeness import proved  # noqa: PLC0415

    scratch, target, encoded = arguments
    os.nice(_NICENESS)
    header = decode_header(bytes.fromhex(encoded))
    try:
        convert(Path(scratch), Path(target), TABLES, header, pace=_pause, through=proved)
    except (CorruptIndex, lmdb.CorruptedError, lmdb.PageNotFoundError) as damage:
        sys.stderr.write(f"{damage}\n")
        return EX_INCOMPLETE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

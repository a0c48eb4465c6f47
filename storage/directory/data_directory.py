"""The data directory: its layout, and opening it as an existing or as a new store.

    DATA/          0700
      FORMAT       format/identity.py; the directory is a store once this file is durable, and the
                   log's first frame is written once this file says that the log has begun
      REPLICA      directory/replica_file.py; only where the store is one of several with one log
      LOCK         locked while the directory is open, as the directory is: directory/locks.py
      wal/         storage/wal/wal.py; a symbolic link where the log has a disk of its own
      snap/        storage/snapshot/directory.py
      index/       storage/index/environment.py
      quarantine/  what recovery cut off

Files are 0600. A `*.tmp` is unfinished work of a crash and is removed, except `wal/next.tmp` and
foreign files in the directory of the log. All checks come before the first change
(storage/directory/claim.py), so a refusal leaves nothing behind.
"""

import logging
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from kvd.storage import disk
from kvd.storage.directory import claim
from kvd.storage.directory.creation import (
    close_to_others,
    entries,
    initialise,
    make_directory,
    refuse_to_make,
)
from kvd.storage.directory.format_file import mark_log_begun, read_format
from kvd.storage.directory.locks import Locks
from kvd.storage.errors import EX_CONFIG, EX_DATAERR, DirectoryUnusable
from kvd.storage.format.identity import Format, NewIds
from kvd.storage.format.names import SUBDIRECTORIES

log = logging.getLogger(__name__)

_REQUIRED = ("wal", "snap")


class DataDirectory:
    """An open data directory, locked until `close`.

    Attributes:
        path: the directory; `wal`, `snap`, `index` and `quarantine` are its subdirectories.
        identity: the identity in FORMAT.
        log_begun: FORMAT says that the log has had a segment; a log without one is lost then.
        created: the store is new: this call of `open` has written FORMAT.
    """

    def __init__(self, path: Path, locks: Locks, found: Format, *, created: bool) -> None:
        self.path = path
        self.wal, self.snap, self.index, self.quarantine = (path / name for name in SUBDIRECTORIES)
        self.identity, self.log_begun = found
        self.created = created
        self._locks = locks

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        new_ids: NewIds | None = None,
        must_exist: bool = False,
        wal_dir: Path | None = None,
        keep: Path | None = None,
    ) -> Self:
        """Lock a data directory, or make a new one where there is none.

        A directory of this user that others may enter is made private, with one line of log.

        Args:
            path: the directory.
            new_ids: the ids of a new store; random ones if missing.
            must_exist: do not make a new store.
            wal_dir: the directory of the log, if it is not the subdirectory `wal`.
            keep: unfinished work that is not to be removed.

        Raises:
            DirectoryLocked: another process has it.
            DirectoryUnusable: it belongs to another user, is damaged, of an unknown format, or not
                accessible. Nothing is left behind where there was no store.
        """
        try:
            if not (path / "FORMAT").exists():
                refuse_to_make(path, must_exist=must_exist)
            with ExitStack() as undo:
                directory = cls._open(path, new_ids, wal_dir, keep, undo)
                undo.pop_all()
                return directory
        except OSError as error:
            where = error.filename or path
            raise DirectoryUnusable(f"{where}: {error.strerror}") from error

    @classmethod
    def _open(
        cls,
        path: Path,
        new_ids: NewIds | None,
        wal_dir: Path | None,
        keep: Path | None,
        undo: ExitStack,
    ) -> Self:
        make_directory(path, undo)
        claim.require_plain(path)
        is_store = (path / "FORMAT").exists()
        claim.require_own(path, claim.is_part, is_store=is_store)
        locks = Locks.take(path)
        undo.callback(locks.close)
        if is_store:
            _enter(path, locks, wal_dir)
        else:
            initialise(path, locks, new_ids, wal_dir, undo)
        _remove_unfinished(path, keep)
        return cls(path, locks, read_format(path), created=not is_store)

    def begin_log(self) -> None:
        """Note in FORMAT that the log has had a segment; durable on return.

        The name of that segment must be durable before: a crash in between would leave a FORMAT
        that names a log, and no log.

        Raises:
            OSError: FORMAT is as it was.
        """
        if not self.log_begun:
            mark_log_begun(self.path)
            self.log_begun = True

    def require_place(self) -> None:
        """Check that the directory and that of the log are still in their places.

        Raises:
            DirectoryLost: one was moved or removed, or another process has taken it.
        """
        self._locks.require_place()

    def close(self) -> None:
        """Release the locks."""
        self._locks.close()


def require_local(*paths: Path) -> None:
    """Refuse directories, existing or not, on a network file system.

    LMDB maps its file into memory, and a lock or a sync may mean something else there.
    """
    for path in paths:
        there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        kind = disk.network_file_system(there)
        if kind is not None:
            raise DirectoryUnusable(
                f"{path}: is on a network file system ({kind}), where neither locks nor syncs can "
                "be relied on; name a local one by --data-dir, or take the risk by "
                "--allow-network-fs",
                exit_status=EX_CONFIG,
            )


def _enter(path: Path, locks: Locks, wal_dir: Path | None) -> None:
    """Lock an existing store, after the checks of what a start relies on."""
    read_format(path)
    require_subdirectories(path)
    if wal_dir is not None:
        _require_log_in(path, wal_dir)
    claim.require_own(path / "wal", claim.is_log, is_store=True)
    locks.add(path / "wal")
    locks.sign()
    close_to_others(path)
    for name in SUBDIRECTORIES:
        if not (path / name).is_dir():
            (path / name).mkdir(mode=disk.DIRECTORY_MODE)
            disk.sync_directory(path)


def _require_log_in(path: Path, wal_dir: Path) -> None:
    log_dir = (path / "wal").resolve()
    if log_dir != wal_dir.resolve():
        raise DirectoryUnusable(
            f"{path}: the log of this store is in {log_dir}, not in {wal_dir}; to move it, stop "
            f"the server, move that directory and let {path / 'wal'} be a symbolic link to it",
            exit_status=EX_CONFIG,
        )


def _require(path: Path, name: str) -> None:
    """Check that a subdirectory exists, if a store without it has lost data."""
    if (path / name).is_dir():
        return
    if (path / name).is_symlink():
        target = (path / name).readlink()
        raise DirectoryUnusable(
            f"{path}: {name}/ leads to {target}, which is missing; is its disk mounted?",
            exit_status=EX_DATAERR,
        )
    if name in _REQUIRED:
        raise DirectoryUnusable(
            f"{path}: {name}/ is missing; restore it from a backup", exit_status=EX_DATAERR
        )


def _require_no_file(path: Path, name: str) -> None:
    if (path / name).exists():
        raise DirectoryUnusable(
            f"{path}: {name} is not a directory; move it away", exit_status=EX_DATAERR
        )


def require_subdirectories(path: Path) -> None:
    """Check the subdirectories of a store as its start does, and make none.

    Raises:
        DirectoryUnusable: a required one is missing, or one is not a directory.
    """
    for name in SUBDIRECTORIES:
        if name in _REQUIRED:
            _require(path, name)
        elif not (path / name).is_dir():
            _require_no_file(path, name)


def _remove_unfinished(path: Path, keep: Path | None) -> None:
    for directory in (path, *(path / name for name in SUBDIRECTORIES)):
        # The log's directory may be the root of a disk, with files of others.
        suffix = ".wal.tmp" if directory.name == "wal" else ".tmp"
        for entry in entries(directory):
            if not entry.name.endswith(suffix) or entry == keep:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)  # an index
            else:
                disk.remove(entry)

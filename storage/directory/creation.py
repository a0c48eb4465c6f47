"""Making a data directory a new store: checks first, then one step after the other, each undone.

An `ExitStack` holds how to undo what was made: a refusal leaves the place as it was.
"""

import logging
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from kvd.storage import disk
from kvd.storage.directory import claim
from kvd.storage.directory.format_file import write_new_format
from kvd.storage.directory.locks import Locks
from kvd.storage.errors import EX_CONFIG, EX_DATAERR, DirectoryUnusable
from kvd.storage.format.identity import NewIds
from kvd.storage.format.names import SUBDIRECTORIES

log = logging.getLogger(__name__)

# Subdirectories that are empty until FORMAT is durable.
_EMPTY_AT_FIRST = ("wal", "snap", "index")


def refuse_to_make(path: Path, *, must_exist: bool) -> None:
    """Refuse to make a new store where that must be a mistake."""
    if must_exist:
        raise DirectoryUnusable(
            f"{path}: holds no store, and none is to be made", exit_status=EX_CONFIG
        )
    if (path / "member").is_dir():
        raise DirectoryUnusable(
            f"{path}: is a data directory of etcd, which kvd cannot read; name another one by "
            "--data-dir, and bring its keys there by `kvdctl import`",
            exit_status=EX_CONFIG,
        )


def make_directory(path: Path, undo: ExitStack) -> None:
    """Make a directory and its missing parents; register their removal in `undo`."""
    if path.exists():
        return
    for made in disk.make_directory_durably(path):
        undo.push(_on_refusal(made.rmdir))


def _on_refusal(remove: Callable[[], None]) -> Callable[..., None]:
    """Return an exit callback that calls `remove` after an error, but not at the process's end."""

    def leave(kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, Exception):
            with suppress(OSError):
                remove()

    return leave


def initialise(
    path: Path, locks: Locks, new_ids: NewIds | None, wal_dir: Path | None, undo: ExitStack
) -> None:
    """Make the directory a new store."""
    log_dir = path / "wal" if wal_dir is None else wal_dir.absolute()
    if wal_dir is not None:
        _require_empty(path, "wal", path / "wal")
    if wal_dir is not None:
        make_directory(log_dir, undo)
    if wal_dir is not None or log_dir.is_dir():
        claim.require_own(log_dir, claim.is_log, is_store=False)
        locks.add(log_dir, name=path / "wal")
    for name in _EMPTY_AT_FIRST:
        _require_empty(path, name, log_dir if name == "wal" else path / name)
    if locks.sign():
        undo.push(_on_refusal((path / "LOCK").unlink))
    close_to_others(path)
    if wal_dir is not None:
        close_to_others(log_dir)
        _place_log(path / "wal", log_dir, undo)
    for name in SUBDIRECTORIES:
        if not (path / name).is_dir():
            (path / name).mkdir(mode=disk.DIRECTORY_MODE)
            undo.push(_on_refusal((path / name).rmdir))
            if name == "wal":
                locks.add(path / name)
    disk.sync_directory(path)
    # An earlier start may have been killed between making the directory and syncing its name.
    with suppress(PermissionError):
        disk.sync_directory(path.resolve().parent)
    # FORMAT may exist although the sync of its directory, or a later step, has failed.
    undo.push(_on_refusal(partial((path / "FORMAT").unlink, missing_ok=True)))
    write_new_format(path, new_ids)


def _place_log(link: Path, target: Path, undo: ExitStack) -> None:
    """Link the log of a new store to a directory of its own.

    The link is in the data directory, so that no later start or tool needs `--wal-dir`.
    """
    if link.is_symlink() or link.exists():
        # Left by an earlier start that was killed.
        link.unlink() if link.is_symlink() else link.rmdir()
    link.symlink_to(target)
    undo.push(_on_refusal(link.unlink))


def _require_empty(path: Path, name: str, directory: Path) -> None:
    """Check that a subdirectory of a new store holds nothing of another store."""
    for entry in entries(directory):
        if entry.suffix != ".tmp" and not claim.is_stray(entry.name):
            raise DirectoryUnusable(
                f"{path}: holds {name}/{entry.name}, but no FORMAT; restore that file from a "
                "backup, or name another directory by --data-dir",
                exit_status=EX_DATAERR,
            )


def close_to_others(path: Path) -> None:
    """Make a directory private, and log its change of mode."""
    mode = claim.make_private(path)
    if mode is not None:
        private = mode & disk.DIRECTORY_MODE
        log.info(
            "%s: changed mode from %04o to %04o (was accessible to other users)",
            path,
            mode,
            private,
        )


def entries(path: Path) -> list[Path]:
    """Return the entries of a directory in their order; none of one that is not there."""
    return sorted(path.iterdir()) if path.is_dir() else []

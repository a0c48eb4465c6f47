"""Checks of a directory's owner and content, made before anything in it is changed.

A directory for a new store may hold what file systems and tools put anywhere (`lost+found`, names
that begin with a dot). It is refused if it belongs to another user, or if other users need it: a
store is closed to them. In a store only `wal` may be a symbolic link, to a directory; any other
link, and a directory or a pipe in the place of a file, is refused, so that no write goes elsewhere.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from kvd.storage import disk
from kvd.storage.errors import EX_CANTCREAT, EX_DATAERR, DirectoryUnusable

# Entries that file systems, quotas and desktops make in the root of a disk.
_STRAY = frozenset(
    {
        "lost+found",
        "quota.user",
        "quota.group",
        "aquota.user",
        "aquota.group",
        "$RECYCLE.BIN",
        "System Volume Information",
    }
)
_OURS = frozenset({"FORMAT", "LOCK", "REPLICA", "wal", "snap", "index", "quarantine", "tls"})
_DIRECTORIES = ("snap", "index", "quarantine", "tls")
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}
# The files of each subdirectory that are opened by name. LMDB's `lock.mdb` may be a link of ours.
_FILES: dict[str, Callable[[str], bool]] = {
    "wal": lambda name: name.endswith(".wal") or name == "next.tmp",
    "snap": lambda name: name.endswith(".snap"),
    "index": lambda name: name in ("data.mdb", "CLEAN", "RUNNING"),
    "tls": lambda name: name in ("cert.pem", "key.pem"),
}
_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def is_stray(name: str) -> bool:
    """Return whether an entry is neither of a store nor of use to the users of a directory."""
    return name.startswith(".") or name in _STRAY


def is_part(name: str) -> bool:
    """Return whether an entry of a data directory may belong to a store."""
    return name in _OURS or name.endswith(".tmp")


def is_log(name: str) -> bool:
    """Return whether an entry of a log's directory may belong to the log."""
    return name.endswith((".wal", ".tmp"))


def require_own(path: Path, is_known: Callable[[str], bool], *, is_store: bool) -> None:
    """Check that a directory belongs to this user and is used by no other. Changes nothing.

    Args:
        path: the directory.
        is_known: whether an entry of it belongs to a store.
        is_store: it is a store already, so that its owner may have added other entries.

    Raises:
        DirectoryUnusable: it is not a directory, belongs to another user, or others use it.
    """
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise DirectoryUnusable(f"{path}: is not a directory")
    if status.st_uid != os.geteuid():
        raise DirectoryUnusable(
            f"{path}: belongs to user {status.st_uid}, but this process is user {os.geteuid()}; "
            "change its owner, or name another directory by --data-dir"
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode == mode & disk.DIRECTORY_MODE:
        return
    with os.scandir(path) as entries:
        for entry in entries:
            if _is_others(entry, mode, is_known, is_store=is_store):
                raise DirectoryUnusable(
                    f"{path}: is open to others (mode {mode:04o}) and holds {entry.name}, which is "
                    "not this store's: it would be closed to them; name a directory of its own"
                )


def _is_others(
    entry: os.DirEntry[str], mode: int, is_known: Callable[[str], bool], *, is_store: bool
) -> bool:
    """Return whether an entry shows that other users use the directory that holds it."""
    if entry.stat(follow_symlinks=False).st_uid not in (os.geteuid(), 0):
        return True
    if is_known(entry.name):
        return False
    if mode & _MAY_WRITE:
        return bool(mode & stat.S_ISVTX) or not is_stray(entry.name)
    return not is_store and not is_stray(entry.name) and entry.is_dir(follow_symlinks=False)


def make_private(path: Path) -> int | None:
    """Remove the access of other users; return the mode before, None if it was private."""
    mode = stat.S_IMODE(path.stat().st_mode)
    private = mode & disk.DIRECTORY_MODE
    if mode == private:
        return None
    path.chmod(private)
    return mode


def require_plain(path: Path) -> None:
    """Check that the entries that a store opens by name are regular files, and no links.

    Raises:
        DirectoryUnusable: one is something else.
    """
    for name in ("FORMAT", "LOCK"):
        _require(path / name, stat.S_ISREG, "file")
    for name in _DIRECTORIES:
        _require(path / name, lambda mode: not stat.S_ISLNK(mode), "directory")
    for room, is_opened in _FILES.items():
        status = EX_DATAERR if room in ("wal", "snap") else EX_CANTCREAT
        if not (path / room).is_dir():
            continue
        with os.scandir(path / room) as entries:
            for entry in entries:
                if is_opened(entry.name) and not entry.is_file(follow_symlinks=False):
                    _require(path / room / entry.name, stat.S_ISREG, "file", status)


def _require(
    path: Path, is_right: Callable[[int], bool], expected: str, status: int = EX_CANTCREAT
) -> None:
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not is_right(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "a file")
        raise DirectoryUnusable(
            f"{path}: is {kind}, expected a {expected}; put the original back",
            exit_status=status,
        )

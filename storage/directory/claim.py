"""Whose a directory is, and what may stand in it: looked at before anything in it is changed.

A directory that is to be a store's may hold what file systems and tools put anywhere (`lost+found`,
names that begin with a dot). It is refused if it is another user's, or if others use it: kvd would
close it to them. Of what stands in a store only `wal` may be a symbolic link, to a directory; a
file of it that is a link, a directory or a pipe is refused, so that nothing outside is touched.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from kvd.storage import disk
from kvd.storage.errors import EX_CANTCREAT, EX_DATAERR, DirectoryUnusable

# What file systems, quotas and desktops put into the root of a disk; and whatever is hidden.
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
_OURS = frozenset({"FORMAT", "LOCK", "wal", "snap", "index", "quarantine", "tls"})
_DIRECTORIES = ("snap", "index", "quarantine", "tls")
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}
# The files of each room that are opened by their names; LMDB's `lock.mdb` may be a link of ours.
_FILES: dict[str, Callable[[str], bool]] = {
    "wal": lambda name: name.endswith(".wal") or name == "next.tmp",
    "snap": lambda name: name.endswith(".snap"),
    "index": lambda name: name in ("data.mdb", "CLEAN", "RUNNING"),
    "tls": lambda name: name in ("cert.pem", "key.pem"),
}
_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def is_stray(name: str) -> bool:
    """Return whether a name is none of ours, and of no meaning to the users of a directory."""
    return name.startswith(".") or name in _STRAY


def is_part(name: str) -> bool:
    """Return whether an entry of a data directory may be a store's."""
    return name in _OURS or name.endswith(".tmp")


def is_log(name: str) -> bool:
    """Return whether an entry of a log's directory may be the log's."""
    return name.endswith((".wal", ".tmp"))


def require_own(path: Path, is_known: Callable[[str], bool], *, is_store: bool) -> None:
    """Check that a directory is this user's, and nobody else's business. Changes nothing.

    Args:
        path: the directory.
        is_known: whether an entry of it belongs to a store.
        is_store: it is a store's already: what else stands there its owner may have put there.

    Raises:
        DirectoryUnusable: it is no directory, another user's, or used by others.
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
    """Return whether an entry says that others use the directory it stands in."""
    if entry.stat(follow_symlinks=False).st_uid not in (os.geteuid(), 0):
        return True
    if is_known(entry.name):
        return False
    if mode & _MAY_WRITE:
        return bool(mode & stat.S_ISVTX) or not is_stray(entry.name)
    return not is_store and not is_stray(entry.name) and entry.is_dir(follow_symlinks=False)


def make_private(path: Path) -> int | None:
    """Close a directory to everybody else; return the mode it had, None if it was private."""
    mode = stat.S_IMODE(path.stat().st_mode)
    private = mode & disk.DIRECTORY_MODE
    if mode == private:
        return None
    path.chmod(private)
    return mode


def require_plain(path: Path) -> None:
    """Check that what a store opens by name is a file where a file is due, and no link elsewhere.

    Raises:
        DirectoryUnusable: it is not.
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
            f"{path}: is {kind}, expected a {expected}; put back what stood there",
            exit_status=status,
        )

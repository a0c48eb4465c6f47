"""The locks of a data directory, and a check that the directory is still in its place.

Three things are locked (flock): the directory and the directory of the log, so that the lock holds
under every path and link that leads there and cannot be unlinked; and the file LOCK, for versions
that lock that file alone. LOCK also names the process that holds the lock.
"""

import errno
import logging
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from kvd.storage import disk
from kvd.storage.errors import DirectoryLocked, DirectoryLost

log = logging.getLogger(__name__)

# Errors of file systems that cannot lock a directory: only LOCK is locked there.
_UNLOCKABLE = frozenset(
    {
        errno.EBADF,
        errno.EINVAL,
        errno.EISDIR,
        errno.ENOLCK,
        errno.ENOSYS,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EACCES,
    }
)
_NAME = "LOCK"
_HOLDER_BYTES = 200


class Locks:
    """The locks that one process holds on one data directory, until `close`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._directories: list[tuple[Path, int]] = []
        self._file: int | None = None

    @classmethod
    def take(cls, path: Path) -> Self:
        """Lock a directory, without a change to it.

        Raises:
            DirectoryLocked: another process has it.
        """
        locks = cls(path)
        locks.add(path)
        return locks

    def add(self, directory: Path, *, name: Path | None = None) -> None:
        """Lock another directory of the store, which opens it as `name` if that is given.

        Raises:
            DirectoryLocked: another process has it, through another data directory.
        """
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._directories.append((name or directory, fd))
        try:
            disk.lock_exclusive(fd)
        except BlockingIOError as error:
            self.close()
            if directory == self._path:
                raise DirectoryLocked(f"{directory}: in use by {holder(self._path)}") from error
            raise DirectoryLocked(
                f"{self._path}: its log in {directory.resolve()} is in use by another process"
            ) from error
        except OSError as error:
            if error.errno not in _UNLOCKABLE:
                self.close()
                raise
        except BaseException:
            self.close()
            raise

    def sign(self) -> bool:
        """Lock the file LOCK and write this process into it; return whether it had to be made.

        Raises:
            DirectoryLocked: another process has it.
        """
        made = not (self._path / _NAME).exists()
        fd = os.open(
            self._path / _NAME,
            os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
            disk.FILE_MODE,
        )
        try:
            disk.lock_exclusive(fd)
            _sign(fd)
        except BlockingIOError as error:
            os.close(fd)
            raise DirectoryLocked(f"{self._path}: in use by {holder(self._path)}") from error
        except BaseException:
            os.close(fd)
            raise
        if self._file is not None:
            os.close(self._file)
        self._file = fd
        return made

    def require_place(self) -> None:
        """Check that the names of the locked directories still lead to them.

        A LOCK that was removed is made again.

        Raises:
            DirectoryLost: one does not, or another process has locked it.
        """
        for path, fd in self._directories:
            require_at(path, os.fstat(fd))
        if self._file is None:
            return
        try:
            require_at(self._path / _NAME, os.fstat(self._file))
        except DirectoryLost:
            self._sign_again()

    def _sign_again(self) -> None:
        try:
            self.sign()
        except DirectoryLocked as error:
            raise DirectoryLost(f"{error}, which has replaced {_NAME}") from error
        except OSError:
            return  # such as a full disk: the directory itself is still locked
        log.warning("%s: %s was removed or replaced, and was made again", self._path, _NAME)

    def close(self) -> None:
        """Release all locks."""
        for _, fd in self._directories:
            os.close(fd)
        self._directories.clear()
        if self._file is not None:
            os.close(self._file)
            self._file = None


def require_at(path: Path | str, expected: os.stat_result) -> None:
    """Check that a name still leads to a file or directory that was opened by it.

    Raises:
        DirectoryLost: it was removed, renamed or replaced.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 -- the log calls this for each frame, with a str
    except (FileNotFoundError, NotADirectoryError):
        raise DirectoryLost(f"{path}: was removed or renamed while it was in use") from None
    except OSError:
        return  # such as a directory above that cannot be searched now
    if (found.st_ino, found.st_dev) != (expected.st_ino, expected.st_dev):
        raise DirectoryLost(f"{path}: was replaced by another one while it was in use")


def holder(path: Path) -> str:
    """Return the process that holds the lock of a directory, as LOCK names it."""
    text = b""
    with suppress(OSError):
        fd = disk.open_to_read(path / _NAME)
        try:
            text = disk.read_at(fd, _HOLDER_BYTES, 0)
        finally:
            os.close(fd)
    return text.decode(errors="replace").strip() or "another process"


class SharedLocks:
    """The locks of a reader of a data directory, which exclude servers but no other readers.

    Attributes:
        live: another process holds a lock, so a server may be writing to the directory.
    """

    def __init__(self, path: Path) -> None:
        self._fds: list[int] = []
        self.live = False
        for name in (".", "wal", _NAME):
            with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                self._fds.append(disk.open_to_read(path / name, follow=name != _NAME))
                self.live = not _lock_shared(self._fds[-1]) or self.live

    def close(self) -> None:
        """Release all locks."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()


def _lock_shared(fd: int) -> bool:
    try:
        disk.lock_shared(fd)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNLOCKABLE:
            raise
    return True


def _sign(fd: int) -> None:
    """Write this process into LOCK, for the errors of others; a full disk is ignored.

    A file with a second name is left as it is: it may belong to something else.
    """
    if os.fstat(fd).st_nlink > 1:
        return
    now = datetime.fromtimestamp(disk.wall_clock_ns() // 10**9, UTC)
    text = f"process {os.getpid()} on {socket.gethostname()} since {now:%Y-%m-%dT%H:%M:%SZ}\n"
    with suppress(OSError):
        disk.truncate(fd, 0)
        disk.write_at(fd, text.encode(errors="replace"), 0)

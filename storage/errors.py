"""Errors of the storage, each with the exit status of the process that it ends.

Every message is one line a person can act on: it names the file, what was expected and what was
found. An `OSError` is not wrapped: a disk that fails is told apart from data that is damaged.

    StorageError            74 EX_IOERR
    ├── Corrupt             65 EX_DATAERR
    │   ├── CorruptLog                       acknowledged writes are damaged or missing
    │   │   └── LogMissing                   there is no log at all where there has been one
    │   └── CorruptSnapshot                  a snapshot cannot be used; an older one may do
    ├── OtherHistory        78 EX_CONFIG     what is to follow the log does not go on from it
    ├── LogTooNew           78 EX_CONFIG     the log holds what a later version of kvd has written
    ├── Behind              75 EX_TEMPFAIL   the log of all replicas lacks what this one needs next
    ├── DirectoryLocked     73 EX_CANTCREAT  another process has the data directory
    ├── DirectoryUnusable   73, 65 or 78     the data directory cannot be this store's
    ├── OutOfReach          64 EX_USAGE      what a tool was asked for is not to be had from here
    └── LogFull             74 EX_IOERR      no room: nothing was written, later appends may be

    OSError
    └── DirectoryLost       73 EX_CANTCREAT  the directory in use is not where it was
"""

from pathlib import Path
from typing import Self

EX_USAGE = 64
EX_DATAERR = 65
EX_CANTCREAT = 73
EX_IOERR = 74
EX_TEMPFAIL = 75
EX_CONFIG = 78


class StorageError(Exception):
    """A failure of the store, described in one line.

    Attributes:
        exit_status: what the process ends with when it cannot go on (sysexits.h).
    """

    exit_status: int = EX_IOERR


class Corrupt(StorageError):
    """Bytes that were durable are not what they were."""

    exit_status = EX_DATAERR

    @classmethod
    def at(cls, file: Path, offset: int, problem: str) -> Self:
        """Return the error for one place in one file."""
        return cls(f"{file.parent.name}/{file.name}: offset {offset}: {problem}")


class CorruptLog(Corrupt):
    """The log holds something that no crash explains, or lacks something that was acknowledged."""


class LogMissing(CorruptLog):
    """A store that has had a log finds none: its disk may not be mounted."""


class LogTooNew(StorageError):
    """The log is good, but only a later version of the program can read it."""

    exit_status = EX_CONFIG


class OtherHistory(StorageError):
    """A payload does not go on where the store ends: nothing of it was applied."""

    exit_status = EX_CONFIG


class Behind(StorageError):
    """The log of all replicas has been trimmed past this one: its next start takes a snapshot."""

    exit_status = EX_TEMPFAIL


class CorruptSnapshot(Corrupt):
    """A snapshot is incomplete or damaged."""


class DirectoryLocked(StorageError):
    """Another process holds the lock of the data directory."""

    exit_status = EX_CANTCREAT


class DirectoryUnusable(StorageError):
    """The data directory is not readable, not ours, damaged, or of another format version."""

    exit_status = EX_CANTCREAT

    def __init__(self, message: str, *, exit_status: int = EX_CANTCREAT) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class OutOfReach(StorageError):
    """The files are good, but what was asked for (an index, a time) is not in them."""

    exit_status = EX_USAGE


class LogFull(StorageError):
    """An append was definitely not written: the log is as it was, and later appends may succeed.

    Attributes:
        errno: why the system refused (ENOSPC, EDQUOT, EFBIG, EMFILE or ENFILE).
    """

    def __init__(self, errno: int, message: str) -> None:
        super().__init__(message)
        self.errno = errno


class DirectoryLost(OSError):
    """A directory or file in use was removed, renamed or replaced.

    What is written now is not found by the next start, so nothing may be acknowledged any more.
    """

    exit_status = EX_CANTCREAT

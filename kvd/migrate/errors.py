"""Refusals of an import or export, each with the exit status that it ends `kvdctl` with."""

from __future__ import annotations

from pathlib import Path

from kvd.storage.errors import EX_CANTCREAT, EX_DATAERR, Corrupt, StorageError

EX_CONFLICT = 7
"""The exit status of a conflict with what the target holds."""


class Damaged(Corrupt):
    """A file of etcd, or a document, is not what its writer has written."""

    @classmethod
    def in_line(cls, name: str, line: int, problem: str) -> Damaged:
        """Return the error for one line of a document."""
        return cls(f"{name}: line {line}: {problem}")


class TornTail(Damaged):
    """The last record is damaged, and nothing follows it: `--drop-tail` imports what is before."""

    @classmethod
    def at(cls, file: Path, offset: int, problem: str) -> TornTail:
        """Return the error for one place in one file."""
        more = "nothing intact follows: --drop-tail imports what is before it"
        return cls(f"{file.parent.name}/{file.name}: offset {offset}: {problem}; {more}")


class Refused(StorageError):
    """The source or the target cannot be used as it is."""

    def __init__(self, message: str, *, exit_status: int = EX_DATAERR) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class Running(Refused):
    """A server runs on the directory."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path}: etcd runs on this directory: stop it, or import from its URL; "
            "--force reads what is durable",
            exit_status=EX_CANTCREAT,
        )


class Conflict(Refused):
    """Others have changed what was to be written, or the target is not empty."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_status=EX_CONFLICT)

"""Consistent copies of a store.

A backup has the form of a data directory without index, lock and quarantine: FORMAT, the snapshots,
and the log up to the last frame that was complete when it was read. The frames read are synced in
the source before the copy is finished, so a backup never holds more than the source after a crash.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from kvd.storage import disk
from kvd.storage.directory import claim
from kvd.storage.errors import CorruptLog, CorruptSnapshot, DirectoryUnusable, StorageError
from kvd.storage.format.frame import Position
from kvd.storage.snapshot.directory import available
from kvd.storage.tools.source import Source, reading

_CHUNK_BYTES = 4 << 20
_ATTEMPTS = 5
_PARTIAL = ".partial"


class Backup(NamedTuple):
    """The result of a backup: bytes, files, and the end of the copied log."""

    size: int
    files: int
    end: Position


def backup(source: Source, target: Path) -> Backup:
    """Copy a store to a directory that is new or empty; durable and read back on return.

    All snapshots and the whole log are copied, so that the copy can be restored to every index
    that the source can be restored to.

    Raises:
        StorageError: the source is damaged, or changed too often during the copy (snapshots and
            purges in close succession); there is no copy then.
        OSError: reading or writing failed; there is no copy then.
    """
    attempts = _ATTEMPTS if source.live else 1
    while True:
        attempts -= 1
        try:
            with staged(target) as draft:
                return _copy(source, draft)
        except (StorageError, FileNotFoundError) as error:
            # A server that purges its log meanwhile looks like damage; another attempt decides.
            if not attempts or isinstance(error, DirectoryUnusable):
                raise


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Make a directory under a temporary name; rename it once its content is complete and durable.

    The root of a disk, or a directory with entries of a file system, cannot be renamed; it is
    filled instead, with FORMAT last: without FORMAT it is no store.

    Raises:
        DirectoryUnusable: the target is not empty, or other users use it.
    """
    target = target.absolute()
    entries = list(target.iterdir()) if target.is_dir() else []
    if any(not claim.is_stray(entry.name) for entry in entries) or (
        target.exists() and not target.is_dir()
    ):
        raise DirectoryUnusable(f"{target}: is not empty; name a directory that is new or empty")
    fills = bool(entries) or target.is_symlink() or target.is_mount()
    if fills:
        claim.require_own(target, claim.is_stray, is_store=False)
    draft = target / _PARTIAL if fills else target.with_name(target.name + _PARTIAL)
    shutil.rmtree(draft, ignore_errors=True)
    disk.make_directory_durably(draft.parent)
    draft.mkdir(mode=disk.DIRECTORY_MODE)  # fails if another process has made it
    try:
        yield draft
        disk.sync_directory(draft)
        if fills:
            _move_into(target, draft)
        else:
            disk.rename_durably(draft, target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _move_into(target: Path, draft: Path) -> None:
    """Move the content of a draft to the directory above it, FORMAT last."""
    claim.make_private(target)
    names = sorted((path.name for path in draft.iterdir()), key=lambda name: name == "FORMAT")
    moved: list[str] = []
    try:
        for name in names:
            if name == "FORMAT":
                disk.sync_directory(target)
            disk.rename(draft / name, target / name)
            moved.append(name)
        disk.sync_directory(target)
    except BaseException:
        for name in moved:
            disk.rename(target / name, draft / name)
        raise
    draft.rmdir()


def _copy(source: Source, draft: Path) -> Backup:
    sizes = []
    for name in ("wal", "snap"):
        (draft / name).mkdir(mode=disk.DIRECTORY_MODE)
    for path in available(source.snap):
        sizes.append(_copy_file(path, draft / "snap" / path.name, path.stat().st_size))
    segments = source.segments()
    for _ in source.frames():
        pass
    assert source.scan is not None
    end = source.scan.tail
    for segment in segments:
        if segment.number <= end.segment:
            size = end.offset if segment.number == end.segment else segment.path.stat().st_size
            sizes.append(_copy_file(segment.path, draft / "wal" / segment.path.name, size))
    for name in ("wal", "snap"):
        disk.sync_directory(draft / name)
    text = (source.path / "FORMAT").read_bytes()
    disk.write_file_durably(draft / "FORMAT", text)
    sizes.append(len(text))
    return Backup(sum(sizes), len(sizes), _check(draft))


def _check(draft: Path) -> Position:
    """Read a copy as a start would, and return the end of its log."""
    with reading(draft) as copy:
        for _, found in copy.snapshots():
            if isinstance(found, CorruptSnapshot):
                raise found
        bases = copy.bases()
        if not bases:
            raise CorruptLog(f"{draft}: the log begins late, and there is no snapshot")
        for base in (bases[0], bases[-1]):
            for _ in copy.frames(base.position):
                pass
        assert copy.scan is not None
        return copy.scan.tail


def _copy_file(source: Path, target: Path, size: int) -> int:
    """Copy the first `size` bytes and sync both files; return the number copied."""
    fd = disk.open_to_read(source)
    try:
        copy = disk.create(target)
        try:
            offset = 0
            while chunk := disk.read_at(fd, min(_CHUNK_BYTES, size - offset), offset):
                disk.write_at(copy, chunk, offset)
                offset += len(chunk)
            disk.sync_file(copy)
        finally:
            os.close(copy)
        disk.sync_data(fd)
    finally:
        os.close(fd)
    return offset

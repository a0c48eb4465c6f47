"""The data directory: whose it is, and where everything is in it.

    DATA/          0700
      FORMAT       one line of JSON (format, min_reader, store_uuid, cluster_id, member_id, created,
                   and "log": "begun" once the log has had a segment, before its first frame is
                   written) and one with its crc32; the directory is a store once this file is
                   durable
      LOCK         locked (flock) for as long as it is open; says by whom, for the error message
      wal/         storage/wal.py; a symbolic link where the log has a disk of its own
      snap/        storage/snapshot.py
      index/       storage/index.py
      quarantine/  what recovery cut off

Files are 0600. `*.tmp` is what a crash left unfinished and is removed, but for `wal/next.tmp`.
"""

import json
import logging
import os
import secrets
import shutil
import socket
import stat
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Self
from zlib import crc32

from storage import disk
from storage.errors import EX_CONFIG, EX_DATAERR, DirectoryLocked, DirectoryUnusable
from storage.spare import SPARE_NAME

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
_ROOMS = ("wal", "snap", "index", "quarantine")
_PRECIOUS = ("wal", "snap")
_LOG = "log"
_STORE_UUID_BYTES = 16


class Identity(NamedTuple):
    """What names a store for all its life: 16 random bytes, and two 64-bit ids, never 0."""

    store_uuid: bytes
    cluster_id: int
    member_id: int


class NewIds(NamedTuple):
    """What a store that is to be made is called: two 64-bit ids, not 0."""

    cluster_id: int
    member_id: int


class Format(NamedTuple):
    """What FORMAT says: whose the directory is, and whether its log has ever had a segment."""

    identity: Identity
    log_begun: bool


class DataDirectory:
    """An open data directory, locked until `close`.

    Attributes:
        path: the directory; `wal`, `snap`, `index` and `quarantine` are its rooms.
        identity: what FORMAT says.
        log_begun: FORMAT says that the log has had a segment: without any, it is gone.
        created: FORMAT was written just now: the store is new.
    """

    def __init__(self, path: Path, lock_fd: int, found: Format, *, created: bool) -> None:
        self.path = path
        self.wal, self.snap, self.index, self.quarantine = (path / room for room in _ROOMS)
        self.identity, self.log_begun = found
        self.created = created
        self._lock_fd = lock_fd

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        new_ids: NewIds | None = None,
        must_exist: bool = False,
        wal_dir: Path | None = None,
    ) -> Self:
        """Lock a data directory, or make a new one where there is none.

        A directory of one's own that others may enter is made private, with one line of log.

        Args:
            path: the directory.
            new_ids: what a new store is called; random ids without.
            must_exist: make no new one.
            wal_dir: where the log is to be, if not in the directory itself.

        Raises:
            DirectoryLocked: another process has it.
            DirectoryUnusable: it is somebody else's, damaged, of an unknown format, or the system
                does not let us in.
        """
        try:
            if not (path / "FORMAT").exists():
                _refuse_to_make(path, must_exist=must_exist)
            if not path.exists():
                disk.make_directory_durably(path)
            _claim(path)
            lock_fd = _lock(path)
            try:
                created = _initialise(path, new_ids, wal_dir)
                _remove_unfinished(path)
                return cls(path, lock_fd, read_format(path), created=created)
            except BaseException:
                os.close(lock_fd)
                raise
        except OSError as error:
            where = error.filename or path
            raise DirectoryUnusable(f"{where}: {error.strerror}") from error

    def begin_log(self) -> None:
        """Have FORMAT say that the log has had a segment; durable on return.

        A call for when the name of that segment is durable: a crash must not leave the one without
        the other.

        Raises:
            OSError: FORMAT is as it was.
        """
        if not self.log_begun:
            _write_format(self.path, _fields(self.path / "FORMAT") | {_LOG: "begun"})
            self.log_begun = True

    def close(self) -> None:
        """Release the lock."""
        os.close(self._lock_fd)


def require_local(*paths: Path) -> None:
    """Refuse directories, there already or not, that are on a network file system.

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


def _refuse_to_make(path: Path, *, must_exist: bool) -> None:
    """Refuse where a new store would not be what somebody wants."""
    if must_exist:
        raise DirectoryUnusable(
            f"{path}: holds no store, and none is to be made", exit_status=EX_CONFIG
        )
    if (path / "member").is_dir():
        raise DirectoryUnusable(
            f"{path}: is a data directory of etcd, which kvd cannot read; name another one by "
            "--data-dir, and copy the keys through a running etcd",
            exit_status=EX_CONFIG,
        )


def _claim(path: Path) -> None:
    """Check that the directory is ours and nobody else's business."""
    status = path.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise DirectoryUnusable(f"{path}: is not a directory")
    if status.st_uid != os.geteuid():
        raise DirectoryUnusable(
            f"{path}: belongs to user {status.st_uid}, but this process is user {os.geteuid()}; "
            "change its owner, or name another directory by --data-dir"
        )
    mode = stat.S_IMODE(status.st_mode)
    private = mode & disk.DIRECTORY_MODE
    if mode != private:
        path.chmod(private)
        log.info("%s: mode %04o made %04o: nobody else may look in", path, mode, private)


def _lock(path: Path) -> int:
    fd = os.open(path / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, disk.FILE_MODE)
    try:
        disk.lock_exclusive(fd)
        _sign(fd)
    except BlockingIOError as error:
        holder = disk.read_at(fd, 200, 0).decode(errors="replace").strip() or "another process"
        os.close(fd)
        raise DirectoryLocked(f"{path}: in use by {holder}") from error
    except BaseException:
        os.close(fd)
        raise
    return fd


def _sign(fd: int) -> None:
    """Write into the lock whose it is, for the message that others get; not on a full disk."""
    now = datetime.fromtimestamp(disk.wall_clock_ns() // 10**9, UTC)
    holder = f"process {os.getpid()} on {socket.gethostname()} since {now:%Y-%m-%dT%H:%M:%SZ}\n"
    with suppress(OSError):
        disk.truncate(fd, 0)
        disk.write_at(fd, holder.encode(errors="replace"), 0)


def _initialise(path: Path, new_ids: NewIds | None, wal_dir: Path | None) -> bool:
    """Make the directory a store, unless it is one; return whether it was made."""
    if (path / "FORMAT").exists():
        for room in _ROOMS:
            _require(path, room)
        if wal_dir is not None:
            _require_log_in(path, wal_dir)
        return False
    if wal_dir is not None:
        _place_log(path, wal_dir)
    for room in _ROOMS:
        _require_empty(path, room)
        (path / room).mkdir(mode=disk.DIRECTORY_MODE, exist_ok=True)
    disk.sync_directory(path)
    # A start that was killed may have made the directory without having synced its name.
    with suppress(PermissionError):
        disk.sync_directory(path.resolve().parent)
    _write_format(path, _new_fields(new_ids or NewIds(_random_id(), _random_id())))
    return True


def _place_log(path: Path, wal_dir: Path) -> None:
    """Have the log of a store that is to be made in a directory of its own.

    The data directory leads there, so that whoever opens it needs to know nothing else.
    """
    link, target = path / "wal", wal_dir.absolute()
    disk.make_directory_durably(target)
    _claim(target)
    if link.is_symlink() or link.exists():
        # A start that was cut short may have left one.
        _require_empty(path, "wal")
        link.unlink() if link.is_symlink() else link.rmdir()
    link.symlink_to(target)


def _require_log_in(path: Path, wal_dir: Path) -> None:
    log_dir = (path / "wal").resolve()
    if log_dir != wal_dir.resolve():
        raise DirectoryUnusable(
            f"{path}: the log of this store is in {log_dir}, not in {wal_dir}; to move it, stop "
            f"the server, move that directory and let {path / 'wal'} be a symbolic link to it",
            exit_status=EX_CONFIG,
        )


def _require(path: Path, room: str) -> None:
    """Check that a room of a store is there; make it again if nothing is lost without it."""
    if (path / room).is_dir():
        return
    if (path / room).is_symlink():
        target = (path / room).readlink()
        raise DirectoryUnusable(
            f"{path}: {room}/ leads to {target}, which is missing; is its disk mounted?",
            exit_status=EX_DATAERR,
        )
    if room in _PRECIOUS:
        raise DirectoryUnusable(
            f"{path}: {room}/ is missing; restore it from a backup", exit_status=EX_DATAERR
        )
    _require_no_file(path, room)
    (path / room).mkdir(mode=disk.DIRECTORY_MODE)
    disk.sync_directory(path)


def _require_no_file(path: Path, room: str) -> None:
    if (path / room).exists():
        raise DirectoryUnusable(
            f"{path}: {room} is not a directory; move it away", exit_status=EX_DATAERR
        )


def require_rooms(path: Path) -> None:
    """Check the rooms of a store as its start does, and make none.

    Raises:
        DirectoryUnusable: one is missing whose content is needed, or is not a directory.
    """
    for room in _ROOMS:
        if room in _PRECIOUS:
            _require(path, room)
        elif not (path / room).is_dir():
            _require_no_file(path, room)


def _require_empty(path: Path, room: str) -> None:
    """Check that a room of what is to become a store holds nothing of another one."""
    found = [entry for entry in _entries(path / room) if entry.suffix != ".tmp"]
    if room in _PRECIOUS and found:
        raise DirectoryUnusable(
            f"{path}: holds {room}/{found[0].name}, but no FORMAT; restore that file from a "
            "backup, or name another directory by --data-dir",
            exit_status=EX_DATAERR,
        )


def _new_fields(ids: NewIds) -> dict[str, object]:
    """Return what FORMAT says of a new store."""
    now = datetime.fromtimestamp(disk.wall_clock_ns() // 10**9, UTC)
    return {
        "format": FORMAT_VERSION,
        "min_reader": FORMAT_VERSION,
        "store_uuid": secrets.token_hex(_STORE_UUID_BYTES),
        "cluster_id": f"{ids.cluster_id:016x}",
        "member_id": f"{ids.member_id:016x}",
        "created": f"{now:%Y-%m-%dT%H:%M:%SZ}",
    }


def _write_format(path: Path, fields: dict[str, object]) -> None:
    line = json.dumps(fields)
    data = f"{line}\n{crc32(line.encode()):08x}\n".encode()
    disk.write_file_durably(path / "FORMAT", data)


def _random_id() -> int:
    return secrets.randbelow(2**64 - 1) + 1


def _entries(path: Path) -> list[Path]:
    return sorted(path.iterdir()) if path.is_dir() else []


def _remove_unfinished(path: Path) -> None:
    for directory in (path, *(path / room for room in _ROOMS)):
        for entry in _entries(directory):
            if entry.suffix != ".tmp" or entry.name == SPARE_NAME:
                continue
            if entry.is_dir():
                shutil.rmtree(entry)  # an index
            else:
                disk.remove(entry)


def read_format(path: Path) -> Format:
    """Return what FORMAT says, if this version can read the directory.

    Raises:
        DirectoryUnusable: FORMAT is damaged, or of a format that this version does not know.
        OSError: there is none, or it cannot be read.
    """
    file = path / "FORMAT"
    fields = _fields(file)
    try:
        identity = _identity(file, fields)
    except (KeyError, TypeError, ValueError):
        raise _damaged(file, "does not say whose the directory is") from None
    return Format(identity, _LOG in fields)


def _identity(file: Path, fields: dict[str, object]) -> Identity:
    """Return what names the store, if this version can read the directory.

    Raises:
        DirectoryUnusable: it cannot.
        KeyError, TypeError, ValueError: the fields do not say.
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
    if len(store_uuid) != _STORE_UUID_BYTES:
        raise ValueError(store_uuid)
    cluster_id, member_id = (int(str(fields[name]), 16) for name in ("cluster_id", "member_id"))
    return Identity(store_uuid, cluster_id, member_id)


def _fields(file: Path) -> dict[str, object]:
    """Return the fields of FORMAT.

    Raises:
        DirectoryUnusable: it is damaged.
        OSError: there is none, or it cannot be read.
    """
    line, _, crc = file.read_bytes().rstrip(b"\n").partition(b"\n")
    expected = f"{crc32(line):08x}"
    if crc != expected.encode():
        raise _damaged(file, f"fails its checksum ({crc!r}, expected {expected!r})")
    try:
        fields: object = json.loads(line)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise _damaged(file, "is not in the form of a FORMAT")
    return fields


def _damaged(file: Path, problem: str) -> DirectoryUnusable:
    return DirectoryUnusable(f"{file}: {problem}; restore it from a backup", exit_status=EX_DATAERR)

"""The few calls that touch files: everything durable goes through here, and so do injected faults.

What we assume of the disk, and nothing more:

1. A write is durable when an fdatasync or fsync that began after it has returned 0.
2. A file's name is durable when an fsync of its directory has returned 0.
3. Writes that are not yet durable may be lost, kept, or kept in part, sector by sector and in any
   order. A rename happens as a whole.
4. After a failed fsync nothing is known: a second one may succeed without having written anything,
   and reads may show bytes that are not on the disk. So it is not retried; the process stops, and
   the next one drops the page cache before it reads.

Callers use these as `disk.write_at(...)`, never by `from kvd.storage.disk import write_at`.
"""

import ctypes
import errno
import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from struct import Struct

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700

# Errors by which the system says "no" before or instead of writing. Anything else (EIO above all)
# leaves the file in an unknown state.
REFUSALS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE})


# What statfs(2) calls file systems whose locks, renames and memory maps go through a network.
_NETWORK_FILE_SYSTEMS = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB2",
    0x01021997: "9P",
    0x00C36400: "Ceph",
    0x5346414F: "AFS",
    0x0BD00BD0: "Lustre",
}
_BTRFS = 0x9123683E
# Of linux/fs.h; the numbers of the calls are those of 64-bit machines but mips, ppc and sparc.
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_SETFLAGS = 0x40086602
_FS_NOCOW_FL = 0x00800000
_STATFS_BYTES = 256
# f_type, the first field: a word of the machine's on every 64-bit Linux.
_STATFS_TYPE = Struct("@l")
_FLAGS = Struct("@l")


class PartialWrite(OSError):
    """A write was refused after some of its bytes had been taken.

    Attributes:
        written: how many.
    """

    def __init__(self, error: OSError, written: int) -> None:
        super().__init__(error.errno, error.strerror)
        self.written = written


# Neither another file that a symbolic link leads to, nor waiting for the other end of a pipe.
_OPEN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def open_to_read(path: Path, *, follow: bool = False) -> int:
    """Open an existing file, no symbolic link without `follow`, and return its descriptor."""
    return os.open(path, (_OPEN & ~os.O_NOFOLLOW if follow else _OPEN) | os.O_RDONLY)


def open_to_write(path: Path) -> int:
    """Open an existing file, no symbolic link, for reading and writing; return its descriptor."""
    return os.open(path, os.O_RDWR | _OPEN)


def create(path: Path) -> int:
    """Create a file of mode 0600 that must not exist yet, and return its descriptor."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)


def read_at(fd: int, length: int, offset: int) -> bytes:
    """Read `length` bytes at `offset`; fewer only where the file ends."""
    data = os.pread(fd, length, offset)
    if len(data) == length or not data:
        return data
    parts = [data]
    missing = length - len(data)
    while missing and data:
        data = os.pread(fd, missing, offset + length - missing)
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)


def next_data(fd: int, offset: int) -> int | None:
    """Return where, from an offset on, a file may hold something but zeros; None for nowhere."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        if error.errno != errno.EINVAL:
            raise
        return offset if offset < os.fstat(fd).st_size else None


def write_at(fd: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`. Not durable before a sync.

    Raises:
        OSError: none of it was written; `PartialWrite` when some of it was.
    """
    written = os.pwrite(fd, data, offset)
    while written < len(data):
        # Asking for the rest is how to learn why the system stopped.
        try:
            more = os.pwrite(fd, memoryview(data)[written:], offset + written)
        except OSError as error:
            raise PartialWrite(error, written) from error
        if more == 0:
            raise PartialWrite(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), written)
        written += more


def sync_data(fd: int) -> None:
    """Make a file's data durable, with its size where that changed (fdatasync)."""
    os.fdatasync(fd)


def sync_file(fd: int) -> None:
    """Make a file's data and metadata durable (fsync)."""
    os.fsync(fd)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def preallocate(fd: int, length: int) -> None:
    """Reserve `length` bytes, which read as zeros, and make the file that long.

    Where the file system cannot reserve, the file gets its length only.
    """
    try:
        os.posix_fallocate(fd, 0, length)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(fd, length)


def allocate(fd: int, offset: int, length: int) -> None:
    """Reserve a part of a file that others may be writing to, and make the file that long.

    Unlike `preallocate` it never writes a byte: `posix_fallocate` does where the file system cannot
    reserve.

    Raises:
        OSError: nothing is reserved; ENOSYS or EOPNOTSUPP where it never can be.
    """
    try:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    except (AttributeError, OSError):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    if fallocate(fd, 0, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def truncate(fd: int, length: int) -> None:
    """Cut a file to `length` bytes, or lengthen it by zeros. Not durable before a sync."""
    os.ftruncate(fd, length)


def rename(source: Path, target: Path) -> None:
    """Rename a file. Not durable before its directory is synced."""
    source.rename(target)


def rename_durably(source: Path, target: Path) -> None:
    """Rename a file whose bytes are durable, within its directory; durable on return."""
    rename(source, target)
    sync_directory(target.parent)


def remove(path: Path) -> None:
    """Remove a file. Not durable before its directory is synced."""
    path.unlink()


def remove_if_there(path: Path) -> None:
    """Remove a file that may not exist. Not durable before its directory is synced."""
    with suppress(FileNotFoundError):
        remove(path)


def write_file_durably(path: Path, data: bytes) -> None:
    """Replace a small file's content as a whole; durable on return.

    A crash leaves the old content or the new, and maybe a `.tmp` beside it.
    """
    temporary = path.with_name(path.name + ".tmp")
    remove_if_there(temporary)
    fd = create(temporary)
    try:
        write_at(fd, data, 0)
        sync_file(fd)
    finally:
        os.close(fd)
    rename_durably(temporary, path)


def make_directory_durably(path: Path) -> list[Path]:
    """Create a directory of mode 0700 and the missing ones above it; durable on return.

    Returns:
        Those that were made, the topmost first.
    """
    if path.is_dir():
        return []
    made = make_directory_durably(path.parent)
    path.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
    sync_directory(path.parent)
    return [*made, path]


def drop_cache(fd: int) -> None:
    """Have the next reads come from the disk, not from pages a failed sync may have left behind.

    Drops clean pages only, so the file must have been synced first.
    """
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def lock_exclusive(fd: int) -> None:
    """Take the lock of an open file (flock), held until the descriptor is closed.

    Raises:
        BlockingIOError: another holder has it.
    """
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_shared(fd: int) -> None:
    """Take a lock (flock) that other readers may take too, held until the descriptor is closed.

    Raises:
        BlockingIOError: another holder has it exclusively.
    """
    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)


def free_bytes(path: Path) -> int:
    """Return how many bytes may still be written to the file system that holds `path`."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def network_file_system(path: Path) -> str | None:
    """Return the kind of network file system that holds `path`; None for a local or unknown one."""
    return _NETWORK_FILE_SYSTEMS.get(_file_system(path))


def write_in_place(path: Path) -> None:
    """Have an empty file, or the files of an empty directory, written in place on btrfs.

    btrfs writes each block to a new place, so on a full disk not even reserved space can be
    written twice. No other file system needs this; where it is refused, nothing happens.
    """
    if _file_system(path) != _BTRFS:
        return
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            (flags,) = _FLAGS.unpack(fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(_FLAGS.size)))
            fcntl.ioctl(fd, _FS_IOC_SETFLAGS, _FLAGS.pack(flags | _FS_NOCOW_FL))
        finally:
            os.close(fd)


def _file_system(path: Path) -> int:
    """Return what statfs(2) calls the file system that holds `path`, 0 where it does not say."""
    try:
        statfs = ctypes.CDLL(None, use_errno=True).statfs
    except (AttributeError, OSError):
        return 0
    answer = ctypes.create_string_buffer(_STATFS_BYTES)
    if statfs(os.fsencode(path), answer) != 0:
        return 0
    (kind,) = _STATFS_TYPE.unpack_from(answer.raw)
    return int(kind) & 0xFFFFFFFF


def wall_clock_ns() -> int:
    """Return nanoseconds since 1970, for names and header fields that only people read."""
    return time.time_ns()

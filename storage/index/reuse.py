"""Reuse of an index: the markers that prove that nothing of it was lost.

The index is written without any sync, which outlives the death of the process (the page cache holds
what was written) but not the death of the machine. It is reused only if one of two markers in its
directory matches, and is discarded otherwise:

    CLEAN    a clean stop, after a full sync; exists only while no server runs
    RUNNING  boot, mount, device and inode of the file that a server was writing to. If all four are
             the same, the page cache that it was written to has been there ever since. The mount is
             named by the id that the kernel never reuses (statx, Linux 6.8): the ordinary one is
             given to the next mount, after a forced unmount that dropped what was not synced.

Both are one line of JSON with a checksum. A process that met an I/O error removes RUNNING. They
also name the store, and the last frame of the log at the start or the stop: the log can never end
before it. What follows from them is decided in storage/evidence.py. A third one outlives a
discarded index:

    REACHED  the frame up to which the log had been applied to it

And one condemns the index:

    CRASH    empty, unless a fatal signal ended a process that had it open (kvd/crash_file.py)
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
from pathlib import Path
from struct import Struct
from zlib import crc32

from kvd.storage import disk
from kvd.storage.format.applied import Applied
from kvd.storage.format.node import CorruptIndex
from kvd.storage.format.sums import APPLIED_KEY
from kvd.storage.index.index_view import STORE_KEY
from kvd.storage.index.integrity.durable import durable_frame
from kvd.storage.index.integrity.lmdb_file import look_up

log = logging.getLogger(__name__)

CLEAN_STOP = "clean stop"
"""What `reusable` returns for an index that was closed by a clean stop, and not opened since."""

CLEAN, RUNNING, REACHED = MARKS = ("CLEAN", "RUNNING", "REACHED")
CRASH = "CRASH"
"""The file, in the index's directory, to which Python writes a fatal signal."""
DATA, LOCK_TABLE = "data.mdb", "lock.mdb"
FRAME, STORE = "frame", "store"
"""The fields of a marker for the last frame of the log, and for the uuid of the store."""

_AT_FDCWD = -100
_STATX_MNT_ID_UNIQUE = 0x4000
_STATX_BYTES = 256
_STATX_MASK = Struct("<I")
_STATX_MNT_ID = Struct("<144xQ")


def reusable(directory: Path, store_uuid: bytes | None = None) -> str | None:
    """Return which marker proves that nothing of an index was lost: its name, or None."""
    clean, running = (_marker_of(directory / name, store_uuid) for name in (CLEAN, RUNNING))
    if matches(clean, fingerprint(directory, with_size=True)):
        return CLEAN_STOP
    if matches(running, fingerprint(directory)):
        return "same boot"
    return None


def matches(marker: dict[str, str] | None, file: dict[str, str] | None) -> bool:
    """Return whether a marker has the fingerprint of a file."""
    return bool(marker and file and marker.items() >= file.items())


def crash_of(directory: Path) -> str:
    """Return what Python wrote as a fatal signal ended a process with this index open, or nothing.

    A damaged page may end the process instead of raising an error: by an assertion of LMDB, or by
    reading where nothing is mapped. Python then writes to `CRASH`.
    """
    try:
        text = (directory / CRASH).read_bytes()
    except OSError:
        return ""
    return text.decode("utf-8", "backslashreplace").strip().partition("\n")[0]


def discard(directory: Path, store_uuid: bytes) -> None:
    """Remove an index that cannot be reused; REACHED keeps what it says of the log.

    If there is no room to write that, the index stays.
    """
    seq = reached(directory, store_uuid)
    known = marked_frame(directory / REACHED, store_uuid) or 0
    fields = {FRAME: str(seq), STORE: store_uuid.hex()}
    if seq <= known or write_marker(directory / REACHED, fields):
        for name in (DATA, LOCK_TABLE):
            disk.remove_if_there(directory / name)


def forget(directory: Path) -> None:
    """Remove an index and its markers, and so all that they say of the log. Not durable yet."""
    for name in (DATA, LOCK_TABLE, *MARKS):
        disk.remove_if_there(directory / name)


def marked_frame(path: Path, store_uuid: bytes) -> int | None:
    """Return the frame of the log that a marker names; None if it is no marker of this store."""
    mark = _marker_of(path, store_uuid)
    return int(mark.get(FRAME, "0")) if mark is not None else None


def reached(directory: Path, store_uuid: bytes) -> int:
    """Return the frame up to which the log was applied to an index, by what its file says.

    It need not be reusable, and may be damaged: 0 if the file does not say. The row has a checksum,
    and was written after that frame was durable, but where another one says how far the log was.
    """
    file = directory / DATA
    try:
        if look_up(file, None, STORE_KEY) not in (None, store_uuid):
            return 0
        applied = Applied.decode(look_up(file, b"meta", APPLIED_KEY)).position.seq
        known = durable_frame(file)
        return applied if known is None else min(applied, known)
    except (CorruptIndex, OSError):
        return 0


def fingerprint(directory: Path, *, with_size: bool = False) -> dict[str, str] | None:
    """Identify the index file and the page cache behind it (boot, mount, device, inode).

    With `with_size`, inode and length instead: those of a file that was synced. None if there is no
    file, or the kernel does not name mounts uniquely.
    """
    try:
        stat = (directory / DATA).stat()
    except OSError:
        return None
    if with_size:
        return {"inode": str(stat.st_ino), "bytes": str(stat.st_size)}
    mount = _unique_mount_id(directory)
    if mount is None:
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return {
        "boot": boot,
        "mount": str(mount),
        "device": str(stat.st_dev),
        "inode": str(stat.st_ino),
    }


def _unique_mount_id(path: Path) -> int | None:
    """Return the id of the mount that holds `path`, or None where the kernel cannot say (< 6.8)."""
    try:
        statx = ctypes.CDLL(None, use_errno=True).statx
    except (AttributeError, OSError):
        return None
    answer = ctypes.create_string_buffer(_STATX_BYTES)
    if statx(_AT_FDCWD, os.fsencode(path), 0, _STATX_MNT_ID_UNIQUE, answer) != 0:
        return None
    if not _STATX_MASK.unpack_from(answer.raw)[0] & _STATX_MNT_ID_UNIQUE:
        return None
    mount_id: int = _STATX_MNT_ID.unpack_from(answer.raw)[0]
    return mount_id


def write_marker(path: Path, fields: dict[str, str]) -> bool:
    """Write a mark; return whether there was room for it."""
    line = json.dumps(fields, sort_keys=True)
    try:
        disk.write_file_durably(path, f"{line} {crc32(line.encode()):08x}\n".encode())
    except OSError as error:
        if error.errno not in disk.REFUSALS:
            raise
        log.warning("%s could not be written, the index may be rebuilt: %s", path.name, error)
        return False
    return True


def _marker_of(path: Path, store_uuid: bytes | None) -> dict[str, str] | None:
    """Return the fields of a mark, unless it is another store's."""
    mark = read_marker(path)
    whose = None if mark is None else mark.get(STORE)
    return mark if whose is None or store_uuid is None or whose == store_uuid.hex() else None


def read_marker(path: Path) -> dict[str, str] | None:
    """Return the fields of a mark, or None where there is none that is whole."""
    try:
        line, _, crc = path.read_text(encoding="ascii").strip().rpartition(" ")
        # First, because what is damaged may be anything, too deep for the parser, too.
        if f"{crc32(line.encode()):08x}" != crc:
            return None
        fields: object = json.loads(line)
    except (OSError, ValueError):
        return None
    if not isinstance(fields, dict):
        return None
    is_whole = str(fields.get(FRAME, "0")).isdecimal()
    return {str(key): str(value) for key, value in fields.items()} if is_whole else None

"""The index: an LMDB environment that can always be built again from the snapshots and the log.

It is written without any sync, which outlives the death of the process (the page cache holds what
was written) but not the death of the machine. So it is used again only when one of two marks in its
directory says that nothing was lost, and is thrown away otherwise:

    CLEAN    the server stopped by itself, after a full sync; exists only while no server runs
    RUNNING  boot, mount, device and inode of the file a server was writing to. All four the same
             means that the page cache it was written to has been there ever since. The mount is
             named by the id that the kernel never gives twice (statx, Linux 6.8): the ordinary one
             is given to the next mount, after a forced unmount that dropped what was not synced.

Both are one line of JSON with a checksum. A process that met an I/O error removes RUNNING. They say
also whose store it is, and how far the log was, at the start or the stop: it can never end before
that again. What is made of them is decided in storage/evidence.py. A third one outlives an index
that was thrown away:

    REACHED  how far the log had been performed on it

And one that condemns it:

    CRASH    empty but for what Python writes into it as a fatal signal ends the process
             (kvd/crash_file.py): an index that did that is not used again
"""

from __future__ import annotations

import ctypes
import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from struct import Struct
from tempfile import TemporaryDirectory
from zlib import crc32

import lmdb

from kvd.storage import disk, failpoints
from kvd.storage.directory.locks import require_at
from kvd.storage.errors import DirectoryUnusable
from kvd.storage.format.applied import Applied
from kvd.storage.format.node import CorruptIndex
from kvd.storage.format.sums import APPLIED_KEY, Sums
from kvd.storage.format.tables import TABLES
from kvd.storage.index.index_view import STORE_KEY, IndexView, Tables
from kvd.storage.index.integrity.completeness import prove_start
from kvd.storage.index.integrity.lmdb_file import look_up
from kvd.storage.index.integrity.pages import prove_pages

log = logging.getLogger(__name__)

# Nothing is allocated for the map: it must only never have to grow, because growing it kills every
# open reader. A system that refuses 1 TiB of address space gets half, and so on.
_MAP_BYTES = 1 << 40
_MAP_BYTES_MIN = 1 << 30

CLEAN_STOP = "clean stop"
"""What `vouched` says of an index whose store was stopped cleanly, and not opened since."""

# Space that is reserved in the index's file beyond what it uses, so that removals can be performed
# on a full disk: they, too, write new pages before old ones are free.
RESERVE_BYTES = 4 << 20

CLEAN, RUNNING, REACHED = MARKS = ("CLEAN", "RUNNING", "REACHED")
_DATA = "data.mdb"
# What the marks call the last frame of the log and the store, beside what tells the index.
_FRAME, _STORE = "frame", "store"
_LOCK_TABLE = "lock.mdb"
# Where links can be made though the disk is full.
_MEMORY = Path("/dev/shm")  # noqa: S108 -- a directory of our own is made in it
CRASH = "CRASH"
"""The file, beside the index, to which the process that has it open writes a fatal signal."""

_AT_FDCWD = -100
_STATX_MNT_ID_UNIQUE = 0x4000
_STATX_BYTES = 256
_STATX_MASK = Struct("<I")
_STATX_MNT_ID = Struct("<144xQ")


class Index:
    """An open LMDB environment with its tables."""

    def __init__(self, env: lmdb.Environment, directory: Path, *, new: bool = False) -> None:
        self.env = env
        self.directory = directory
        # An index of an older version may lack a table: it is built anew, not changed here.
        self.tables: Tables = {name: env.open_db(name, create=new) for name in TABLES}
        with env.begin() as txn:
            self.store_uuid: bytes | None = txn.get(STORE_KEY)
        """Whose it is; None where it does not say."""
        self.is_proved = True
        """Whether it is known to hold every row; see integrity/completeness.py."""
        self._reservable = True
        self._stat = (directory / _DATA).stat()

    @classmethod
    def reuse(cls, directory: Path, store_uuid: bytes | None = None) -> tuple[Index, str] | None:
        """Open the index that stands there, if nothing of it can have been lost.

        Its history, users, roles and members are proved complete then; `is_proved` says whether its
        nodes are.

        Args:
            directory: where.
            store_uuid: whose the marks must be, if they say.

        Returns:
            The index and the name of the mark that vouches for it; None where it must be rebuilt.
        """
        mark = vouched(directory, store_uuid)
        if mark is None:
            return None
        crash = crash_of(directory)
        if crash:
            log.warning("a kvd that used the index was ended by it; it will be rebuilt: %s", crash)
            return None
        try:
            prove_pages(directory / _DATA)
            index = cls(_open(directory), directory)
        except (CorruptIndex, lmdb.Error, OSError) as error:
            log.warning("the index cannot be opened and will be rebuilt: %s", error)
            return None
        try:
            index.is_proved = prove_start(index.env, index.tables)
        except (CorruptIndex, lmdb.Error) as error:
            log.warning("the index is unfinished or damaged and will be rebuilt: %s", error)
            index.env.close()
            return None
        return index, mark

    @classmethod
    def create(cls, directory: Path, store_uuid: bytes | None = None) -> Index:
        """Throw away what stands there and start an empty index, of a store or of none."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700)
        disk.write_in_place(directory)
        index = cls(_open(directory), directory, new=True)
        if store_uuid is not None:
            with index.env.begin(write=True) as txn:
                txn.put(STORE_KEY, store_uuid)
            index.store_uuid = store_uuid
        return index

    def take_place(self, directory: Path) -> None:
        """Move to a directory, instead of the index that stands there; which goes."""
        # Closed in between, because LMDB keeps the memory of all that was written.
        self._reach_last_page()
        self.env.close()
        shutil.rmtree(directory, ignore_errors=True)
        disk.rename_durably(self.directory, directory)
        _release_memory()
        self.__init__(_open(directory), directory)  # type: ignore[misc]

    def applied(self) -> Applied:
        """Return how far the log has been performed on it.

        Raises:
            CorruptIndex: it does not say.
        """
        with self.env.begin() as txn:
            return IndexView(txn, self.tables).applied

    def sums(self) -> Sums:
        """Return the sums of its tables.

        Raises:
            CorruptIndex: it does not know them.
        """
        with self.env.begin() as txn:
            return IndexView(txn, self.tables).sums()

    def mark_running(self) -> None:
        """Say, before the first write, whose page cache holds the index from now on.

        On a full disk it cannot be said: the next start then rebuilds.
        """
        (self.directory / CLEAN).unlink(missing_ok=True)
        running = self.directory / RUNNING
        fingerprint = _fingerprint(self.directory)
        stands = _tells(_read_mark(running), fingerprint)
        written = fingerprint is not None and _write_mark(running, fingerprint | self._frame())
        if not (written or stands):
            running.unlink(missing_ok=True)
        disk.sync_directory(self.directory)

    def require_place(self) -> None:
        """Check that its file is still where it was.

        Raises:
            DirectoryLost: it is not.
        """
        require_at(self.directory / _DATA, self._stat)

    def reserve_is_low(self) -> bool:
        """Return whether the file reserves less than `RESERVE_BYTES` beyond what it uses."""
        return self._reservable and self.file_bytes < self.used_bytes + RESERVE_BYTES

    def reserve(self) -> None:
        """Have the file reserve twice `RESERVE_BYTES` beyond what it uses.

        Raises:
            OSError: there is no room for it.
        """
        fd = disk.open_to_write(self.directory / _DATA)
        try:
            disk.allocate(fd, self.used_bytes, 2 * RESERVE_BYTES)
        except OSError as error:
            self._reservable = error.errno in disk.REFUSALS
            raise
        finally:
            os.close(fd)

    @property
    def file_bytes(self) -> int:
        """The length of the file; what is reserved is in it."""
        return (self.directory / _DATA).stat().st_size

    @property
    def used_bytes(self) -> int:
        """How much of the file is in use."""
        pages: int = self.env.info()["last_pgno"] + 1
        return pages * self.env.stat()["psize"]

    def probe(self) -> None:
        """Find out whether there is room for the file to grow by `RESERVE_BYTES`.

        Raises:
            OSError: there is none; one of `disk.REFUSALS`.
        """
        path = self.directory / "probe.tmp"
        disk.remove_if_there(path)
        fd = disk.create(path)
        try:
            # At the same place in another file, because there may be a limit to lengths, too.
            os.posix_fallocate(fd, self.file_bytes, RESERVE_BYTES)
        except OSError as error:
            if error.errno in disk.REFUSALS:
                raise
        finally:
            os.close(fd)
            disk.remove_if_there(path)

    def sync(self) -> None:
        """Write it out; durable on return.

        Raises:
            OSError: the disk failed: what was written may be lost though it can still be read, so
                nothing may be served from it any more, and nobody may use it again.
        """
        try:
            failpoints.reach("indexBeforeSync")
            self.env.sync(True)
        except (lmdb.Error, OSError) as error:
            self.distrust()
            # LMDB's errors are no `OSError`; its older versions do not say which error it was.
            code = getattr(error, "code", None) or getattr(error, "errno", None) or errno.EIO
            raise OSError(code, f"the index could not be synced: {error}") from error

    def distrust(self) -> None:
        """After an I/O error: the next start rebuilds the index."""
        (self.directory / RUNNING).unlink(missing_ok=True)

    def close(self, *, clean: bool) -> None:
        """Close it; with `clean`, sync it whole and vouch for it."""
        if clean:
            failpoints.reach("stopBeforeIndex")
            self._reach_last_page()
            self.sync()
        frame = self._frame() if clean else {}
        self.env.close()
        if clean and (fingerprint := _fingerprint(self.directory, with_size=True)):
            failpoints.reach("stopBeforeMark")
            _write_mark(self.directory / CLEAN, fingerprint | frame)
            failpoints.reach("stopAfterMark")

    def _reach_last_page(self) -> None:
        """Have the file reach the last page that LMDB counts: a shorter one is damaged (`_open`).

        A page that is freed in the transaction that has taken it is never written.
        """
        if self.file_bytes < self.used_bytes:
            fd = disk.open_to_write(self.directory / _DATA)
            try:
                disk.truncate(fd, self.used_bytes)
            except OSError as error:
                if error.errno not in disk.REFUSALS:
                    raise
            finally:
                os.close(fd)

    def _frame(self) -> dict[str, str]:
        store = {_STORE: self.store_uuid.hex()} if self.store_uuid else {}
        return {_FRAME: str(self.applied().position.seq)} | store


def vouched(directory: Path, store_uuid: bytes | None = None) -> str | None:
    """Return the name of the mark by which nothing of an index can have been lost, or None."""
    clean, running = (_mark_of(directory / name, store_uuid) for name in (CLEAN, RUNNING))
    if _tells(clean, _fingerprint(directory, with_size=True)):
        return CLEAN_STOP
    if _tells(running, _fingerprint(directory)):
        return "same boot"
    return None


def _tells(mark: dict[str, str] | None, fingerprint: dict[str, str] | None) -> bool:
    """Return whether a mark is of this very file, and this life of it."""
    return bool(mark and fingerprint and mark.items() >= fingerprint.items())


def crash_of(directory: Path) -> str:
    """Return what a process that had the index open said as a fatal signal ended it, or nothing.

    A damaged page may end the process instead of giving an error: by an assertion of LMDB, or by
    reading where nothing is mapped. Python then writes to `CRASH`; no other death does.
    """
    try:
        text = (directory / CRASH).read_bytes()
    except OSError:
        return ""
    return text.decode("utf-8", "backslashreplace").strip().partition("\n")[0]


def discard(directory: Path, store_uuid: bytes) -> None:
    """Remove an index that nothing vouches for, but not what it says of the log.

    Where that cannot be written down, for want of room, the index stays.
    """
    seq = reached(directory, store_uuid)
    known = marked_frame(directory / REACHED, store_uuid) or 0
    fields = {_FRAME: str(seq), _STORE: store_uuid.hex()}
    if seq <= known or _write_mark(directory / REACHED, fields):
        for name in (_DATA, _LOCK_TABLE):
            disk.remove_if_there(directory / name)


def forget(directory: Path) -> None:
    """Remove an index, and all that it and its marks say of the log. Not durable before a sync."""
    for name in (_DATA, _LOCK_TABLE, *MARKS):
        disk.remove_if_there(directory / name)


def marked_frame(path: Path, store_uuid: bytes) -> int | None:
    """Return the frame of the log that a mark names, None where it is no mark of this store."""
    mark = _mark_of(path, store_uuid)
    return int(mark.get(_FRAME, "0")) if mark is not None else None


def reached(directory: Path, store_uuid: bytes) -> int:
    """Return the frame up to which an index was performed, by what its file says.

    Nothing need vouch for it, and it may be damaged: 0 where it does not say. The row has a
    checksum, and it was written after that frame was durable.
    """
    file = directory / _DATA
    try:
        if look_up(file, None, STORE_KEY) not in (None, store_uuid):
            return 0
        return Applied.decode(look_up(file, b"meta", APPLIED_KEY)).position.seq
    except (CorruptIndex, OSError):
        return 0


def _open(directory: Path) -> lmdb.Environment:
    map_bytes = _MAP_BYTES
    while True:
        try:
            with _lock_table_in_memory(directory) as place:
                env = lmdb.open(
                    os.fsencode(place),
                    map_size=map_bytes,
                    max_dbs=len(TABLES),
                    mode=0o600,
                    sync=False,
                    metasync=False,
                    writemap=False,
                    max_spare_txns=4,
                )
        except (lmdb.MemoryError, MemoryError, OSError) as error:
            map_bytes //= 2
            if map_bytes < _MAP_BYTES_MIN:
                raise DirectoryUnusable(
                    f"{directory}: LMDB cannot map its file: {error}"
                ) from error
            continue
        break
    # A page behind the end of the file is a SIGBUS, not an exception: look before the first read.
    needed = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if (directory / _DATA).stat().st_size < needed and env.info()["last_txnid"]:
        env.close()
        raise CorruptIndex("its file is shorter than it says")
    return env


@contextmanager
def _lock_table_in_memory(directory: Path) -> Iterator[Path]:
    """Have LMDB, which is opened inside by the path that is yielded, keep its readers in memory.

    It maps `lock.mdb`, the table of its readers, and writes to the map. Where the disk is full that
    is a SIGBUS: on btrfs at any time, because each write needs a new block there, elsewhere while
    the file has holes. So the name leads to a file in memory until it is open. Only one process
    uses an index at a time, so no other one has to find the table.

    The target names this process: a link that a crash leaves behind leads nowhere.
    """
    fd = os.memfd_create("kvd-lock.mdb", os.MFD_CLOEXEC)
    try:
        table = Path(f"/proc/{os.getpid()}/fd/{fd}")
        disk.remove_if_there(directory / _LOCK_TABLE)
        if not os.access(table, os.R_OK | os.W_OK):
            yield directory  # there is no /proc: the table lies on the disk
            return
        try:
            (directory / _LOCK_TABLE).symlink_to(table)
        except OSError as error:
            if error.errno not in disk.REFUSALS or not _MEMORY.is_dir():
                raise
            with TemporaryDirectory(prefix="kvd-", dir=_MEMORY) as links:
                (Path(links) / _LOCK_TABLE).symlink_to(table)
                (Path(links) / _DATA).symlink_to(directory.absolute() / _DATA)
                yield Path(links)
        else:
            yield directory
            disk.remove_if_there(directory / _LOCK_TABLE)
    finally:
        os.close(fd)


def _release_memory() -> None:
    """Give back to the system what was freed: glibc keeps small blocks, which LMDB's pages are."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _fingerprint(directory: Path, *, with_size: bool = False) -> dict[str, str] | None:
    """What tells the file of the index from every other, and this life of it from the next."""
    try:
        stat = (directory / _DATA).stat()
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


def reach_commit() -> None:
    """Be at the failpoint before a commit; its errors are those that LMDB would raise.

    Raises:
        lmdb.Error: ENOSPC stands for a full map, EBADMSG for damage, any other for itself.
    """
    try:
        failpoints.reach("indexBeforeCommit")
    except OSError as error:
        kinds = {errno.ENOSPC: lmdb.MapFullError, errno.EBADMSG: lmdb.CorruptedError}
        raise kinds.get(error.errno or 0, lmdb.Error)(str(error)) from error


def _write_mark(path: Path, fields: dict[str, str]) -> bool:
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


def _mark_of(path: Path, store_uuid: bytes | None) -> dict[str, str] | None:
    """Return the fields of a mark, unless it is another store's."""
    mark = _read_mark(path)
    whose = None if mark is None else mark.get(_STORE)
    return mark if whose is None or store_uuid is None or whose == store_uuid.hex() else None


def _read_mark(path: Path) -> dict[str, str] | None:
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
    is_whole = str(fields.get(_FRAME, "0")).isdecimal()
    return {str(key): str(value) for key, value in fields.items()} if is_whole else None

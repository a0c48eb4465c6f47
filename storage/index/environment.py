"""The index: an LMDB environment that can always be rebuilt from the snapshots and the log.

It is written without any sync; reuse.py says when a start can use it again.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import lmdb

from kvd.storage import disk
from kvd.storage.directory.locks import require_at
from kvd.storage.errors import DirectoryUnusable
from kvd.storage.failpoints import NO_FAULTS, Faults
from kvd.storage.format.applied import Applied
from kvd.storage.format.node import CorruptIndex
from kvd.storage.format.sums import Sums
from kvd.storage.format.tables import TABLES
from kvd.storage.index import reuse
from kvd.storage.index.index_view import STORE_KEY, IndexView, Tables
from kvd.storage.index.integrity.completeness import prove_start
from kvd.storage.index.integrity.pages import prove_pages
from kvd.storage.index.reuse import (
    CLEAN,
    DATA,
    FRAME,
    LOCK_TABLE,
    RUNNING,
    STORE,
)

log = logging.getLogger(__name__)

# Nothing is allocated for the map: it must only never have to grow, because growing it kills every
# open reader. A system that refuses 1 TiB of address space gets half, and so on.
_MAP_BYTES = 1 << 40
_MAP_BYTES_MIN = 1 << 30

# Space that is reserved in the index's file beyond what it uses, so that removals can be performed
# on a full disk: they, too, write new pages before old ones are free.
RESERVE_BYTES = 4 << 20

# Where links can be made though the disk is full.
_MEMORY = Path("/dev/shm")  # noqa: S108 -- a directory of our own is made in it


class Index:
    """An open LMDB environment with its tables."""

    def __init__(
        self, env: lmdb.Environment, directory: Path, faults: Faults, *, new: bool = False
    ) -> None:
        self.env, self.faults = env, faults
        self.directory = directory
        # An index of an older version may lack a table: it is rebuilt, not changed here.
        self.tables: Tables = {name: env.open_db(name, create=new) for name in TABLES}
        with env.begin() as txn:
            self.store_uuid: bytes | None = txn.get(STORE_KEY)
        """The store that it belongs to; None if it does not say."""
        self.is_proved = True
        """Whether it has been proved to hold every row; see integrity/completeness.py."""
        self._reservable = True
        self._stat = (directory / DATA).stat()

    @classmethod
    def reuse(
        cls, directory: Path, store_uuid: bytes | None = None, faults: Faults = NO_FAULTS
    ) -> tuple[Index, str] | None:
        """Open the index in a directory, if nothing of it can have been lost.

        Its history, users, roles and members are proved complete then; `is_proved` says whether its
        nodes are.

        Args:
            directory: where it is.
            store_uuid: the store that its markers must name, if they name one.
            faults: those that are to be made in it.

        Returns:
            The index and which marker matches; None if it must be rebuilt.
        """
        mark = reuse.reusable(directory, store_uuid)
        if mark is None:
            return None
        crash = reuse.crash_of(directory)
        if crash:
            log.warning("a kvd that used the index was ended by it; it will be rebuilt: %s", crash)
            return None
        try:
            prove_pages(directory / DATA)
            index = cls(_open(directory), directory, faults)
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
    def create(
        cls, directory: Path, store_uuid: bytes | None = None, faults: Faults = NO_FAULTS
    ) -> Index:
        """Delete the index in a directory, and start an empty one, of a store or of none."""
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700)
        disk.write_in_place(directory)
        index = cls(_open(directory), directory, faults, new=True)
        if store_uuid is not None:
            with index.env.begin(write=True) as txn:
                txn.put(STORE_KEY, store_uuid)
            index.store_uuid = store_uuid
        return index

    def replace(self, directory: Path) -> Index:
        """Move it to a directory, in place of the index there; return the moved one, open."""
        # Closed in between, because LMDB keeps the memory of all that was written.
        self._reach_last_page()
        self.env.close()
        shutil.rmtree(directory, ignore_errors=True)
        disk.rename_durably(self.directory, directory)
        _release_memory()
        return Index(_open(directory), directory, self.faults)

    def applied(self) -> Applied:
        """Return how far the log has been applied on it.

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
        """Write RUNNING, before the first write to the index.

        On a full disk it cannot be written: the next start then rebuilds.
        """
        (self.directory / CLEAN).unlink(missing_ok=True)
        running = self.directory / RUNNING
        found = reuse.fingerprint(self.directory)
        stands = reuse.matches(reuse.read_marker(running), found)
        written = found is not None and reuse.write_marker(running, found | self._frame())
        if not (written or stands):
            running.unlink(missing_ok=True)
        disk.sync_directory(self.directory)

    def require_place(self) -> None:
        """Check that its file is still where it was.

        Raises:
            DirectoryLost: it is not.
        """
        require_at(self.directory / DATA, self._stat)

    def reserve_is_low(self) -> bool:
        """Return whether the file reserves less than `RESERVE_BYTES` beyond what it uses."""
        return self._reservable and self.file_bytes < self.used_bytes + RESERVE_BYTES

    def reserve(self) -> None:
        """Have the file reserve twice `RESERVE_BYTES` beyond what it uses.

        Raises:
            OSError: there is no room for it.
        """
        fd = disk.open_to_write(self.directory / DATA)
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
        return (self.directory / DATA).stat().st_size

    @property
    def used_bytes(self) -> int:
        """The bytes of the file that are in use."""
        pages: int = self.env.info()["last_pgno"] + 1
        return pages * self.env.stat()["psize"]

    def probe(self) -> None:
        """Check whether there is room for the file to grow by `RESERVE_BYTES`.

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
        """Write the index to the disk; durable on return.

        Raises:
            OSError: the disk failed: what was written may be lost though it can still be read, so
                nothing may be served from it any more, and it must not be reused.
        """
        try:
            self.faults.reach("indexBeforeSync")
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
        """Close it; with `clean`, sync all of it and write the marker of a clean stop."""
        if clean:
            self.faults.reach("stopBeforeIndex")
            self._reach_last_page()
            self.sync()
        frame = self._frame() if clean else {}
        self.env.close()
        if clean and (found := reuse.fingerprint(self.directory, with_size=True)):
            self.faults.reach("stopBeforeMark")
            reuse.write_marker(self.directory / CLEAN, found | frame)
            self.faults.reach("stopAfterMark")

    def _reach_last_page(self) -> None:
        """Have the file reach the last page that LMDB counts: a shorter one is damaged (`_open`).

        A page that is freed in the transaction that has taken it is never written.
        """
        if self.file_bytes < self.used_bytes:
            fd = disk.open_to_write(self.directory / DATA)
            try:
                disk.truncate(fd, self.used_bytes)
            except OSError as error:
                if error.errno not in disk.REFUSALS:
                    raise
            finally:
                os.close(fd)

    def _frame(self) -> dict[str, str]:
        store = {STORE: self.store_uuid.hex()} if self.store_uuid else {}
        return {FRAME: str(self.applied().position.seq)} | store


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
    if (directory / DATA).stat().st_size < needed and env.info()["last_txnid"]:
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
        disk.remove_if_there(directory / LOCK_TABLE)
        if not os.access(table, os.R_OK | os.W_OK):
            yield directory  # there is no /proc: the table lies on the disk
            return
        try:
            (directory / LOCK_TABLE).symlink_to(table)
        except OSError as error:
            if error.errno not in disk.REFUSALS or not _MEMORY.is_dir():
                raise
            with TemporaryDirectory(prefix="kvd-", dir=_MEMORY) as links:
                (Path(links) / LOCK_TABLE).symlink_to(table)
                (Path(links) / DATA).symlink_to(directory.absolute() / DATA)
                yield Path(links)
        else:
            yield directory
            disk.remove_if_there(directory / LOCK_TABLE)
    finally:
        os.close(fd)


def _release_memory() -> None:
    """Give back to the system what was freed: glibc keeps small blocks, which LMDB's pages are."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def reach_commit(faults: Faults) -> None:
    """Be at the failpoint before a commit; its errors are those that LMDB would raise.

    Raises:
        lmdb.Error: ENOSPC stands for a full map, EBADMSG for damage, any other for itself.
    """
    try:
        faults.reach("indexBeforeCommit")
    except OSError as error:
        kinds = {errno.ENOSPC: lmdb.MapFullError, errno.EBADMSG: lmdb.CorruptedError}
        raise kinds.get(error.errno or 0, lmdb.Error)(str(error)) from error

"""Snapshots of a running store, taken in the background.

The index is copied compactly (by LMDB, in C, outside of the interpreter's lock; the read
transaction ends with the copy) to a scratch file that is never synced. A worker process, started
and not forked, with a low priority, converts the copy to a snapshot at a limited pace and verifies
it; see storage/snapshot/directory.py. Only then, and after a sync of the log, the snapshot gets its
name: that says that the frames before it are durable.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lmdb

from kvd.storage.directory.data_directory import DataDirectory
from kvd.storage.errors import CorruptSnapshot
from kvd.storage.failpoints import Faults
from kvd.storage.format.applied import Applied
from kvd.storage.format.identity import Identity
from kvd.storage.format.node import CorruptIndex
from kvd.storage.format.sums import APPLIED_KEY
from kvd.storage.index.errors import BROKEN
from kvd.storage.snapshot import directory as snapshot
from kvd.storage.wal.unsynced import sync_newest


class Checkpoint:
    """The snapshots of one store, taken one at a time on a thread of their own."""

    def __init__(self, env: lmdb.Environment, directory: DataDirectory, faults: Faults) -> None:
        self._env = env
        self._faults = faults
        self._directory, self._wal = directory.snap, directory.wal
        self._identity = directory.identity
        self._worker: subprocess.Popen[str] | None = None
        self._stopped = False

    def take(self) -> snapshot.Header:
        """Write, verify and install a snapshot of the committed state; return its header.

        Raises:
            OSError, CorruptSnapshot: no snapshot was made; nothing is left behind.
            CorruptIndex, or another of `BROKEN`: the same, and the index must not be served.
        """
        scratch = self._directory / "scratch.tmp"
        target = self._directory / "snapshot.tmp"
        try:
            scratch.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
            try:
                self._copy(scratch)
                header = header_of(_applied(scratch), self._identity)
            except BROKEN:
                raise
            except lmdb.Error as error:
                # Usually a full disk; LMDB's errors are no `OSError`.
                raise OSError(f"{scratch.name}: {error}") from error
            self._faults.reach("snapshotBeforeWrite")
            self._convert(scratch, target, header)
            sync_newest(self._wal)
            self._faults.reach("snapshotBeforeRename")
            snapshot.install(target, self._directory, header)
            self._faults.reach("snapshotAfterRename")
        finally:
            scratch.unlink(missing_ok=True)
            target.unlink(missing_ok=True)
        return header

    def stop(self) -> None:
        """Abort the snapshot being taken. Thread-safe."""
        self._stopped = True
        if self._worker is not None:
            self._worker.kill()

    def _copy(self, scratch: Path) -> None:
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            self._faults.reach("snapshotBeforeCopy")
            self._env.copyfd(fd, compact=True)
        finally:
            os.close(fd)

    def _convert(self, scratch: Path, target: Path, header: snapshot.Header) -> None:
        command = [
            sys.executable,
            "-m",
            "kvd.storage.snapshot.directory",
            str(scratch),
            str(target),
        ]
        with subprocess.Popen(  # noqa: S603 -- our own module, our own paths
            [*command, snapshot.encode_header(header).hex()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as worker:
            self._worker = worker
            if self._stopped:
                worker.kill()
            _, errors = worker.communicate()
        self._worker = None
        reason = errors.strip().rpartition("\n")[2] or f"status {worker.returncode}"
        if worker.returncode == snapshot.EX_INCOMPLETE:
            raise CorruptIndex(reason)
        if worker.returncode != 0:
            raise CorruptSnapshot(f"the snapshot of index {header.index} failed: {reason}")


def _applied(copy: Path) -> Applied:
    env = lmdb.open(os.fsencode(copy), subdir=False, readonly=True, lock=False, max_dbs=1)
    try:
        table = env.open_db(b"meta", create=False)
        with env.begin() as txn:
            return Applied.decode(txn.get(APPLIED_KEY, db=table))
    finally:
        env.close()


def header_of(applied: Applied, identity: Identity) -> snapshot.Header:
    """Return the header of a snapshot of a state of a store."""
    position = applied.position
    return snapshot.Header(
        store_uuid=identity.store_uuid,
        cluster_id=identity.cluster_id,
        member_id=identity.member_id,
        index=applied.index,
        seq=position.seq,
        segment=position.segment,
        offset=position.offset,
        crc=position.crc,
        chain=applied.chain,
        pos=applied.pos,
        term=applied.term,
        time_ns=applied.wall_ns,
        payload_seq=applied.seq,
    )

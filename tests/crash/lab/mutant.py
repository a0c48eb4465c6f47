"""Bugs to be caught: each is put into a server that is started here, and nowhere else.

    python -m tests.crash.lab.mutant NAME -- FLAGS OF KVD

The product has no switch for any of them: its functions are replaced in this process.
"""

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from kvd.__main__ import main
from kvd.core.clock import Clock
from kvd.core.committer import Committer
from kvd.storage import disk, recovery, replay
from kvd.storage.evidence import Evidence
from kvd.storage.format import document, event, expiration, frame, node, payload, sums
from kvd.storage.format.applied import Applied
from kvd.storage.format.event import Event
from kvd.storage.format.frame import Position
from kvd.storage.index import environment, reuse
from kvd.storage.index.environment import Index
from kvd.storage.index.flush import Flush
from kvd.storage.index.integrity import completeness, proof
from kvd.storage.index.pending import Pending
from kvd.storage.index.state import State
from kvd.storage.journal import Journal
from kvd.storage.snapshot import directory as snapshot
from kvd.storage.tools import source, verify
from kvd.storage.wal import segments
from kvd.storage.wal.segment_writer import BEGUN_BYTES_MAX
from kvd.storage.wal.wal import Wal
from kvd.v2.commands import Transaction
from kvd.v2.errors import ApiError
from tests.crash.lab.log_mutations import (
    ack_before_end,
    ack_before_fsync,
    die_when_full,
    drop_event,
    fsync_every_other,
    in_place,
    late_write,
    no_crc,
    no_directory_fsync,
    no_file_fsync,
    no_fsync,
    real_write_at,
    retry_fsync,
    sync_on_loop,
    wait_when_full,
)
from tests.crash.lab.witness import WITNESS, report_syncs


def shrug() -> None:
    """What the system says to a write is not looked at."""

    def write_at(fd: int, data: bytes, offset: int) -> None:
        with suppress(OSError):
            real_write_at(fd, data, offset)

    disk.write_at = write_at


def no_retry() -> None:
    """A write that a signal interrupts is taken for done."""
    pwrite = ctypes.CDLL(None).pwrite64

    def write_at(fd: int, data: bytes, offset: int) -> None:
        pwrite(fd, bytes(data), ctypes.c_size_t(len(data)), ctypes.c_int64(offset))

    disk.write_at = write_at


def wall_clock() -> None:
    """Leases follow the system's clock, wherever it is set."""
    Clock.now_ns = lambda self: time.time_ns()


def no_reuse() -> None:
    """The index is built anew at every start."""
    Index.reuse = staticmethod(lambda *_: None)


def trust_index() -> None:
    """An index that stands there is used, whatever happened to the disk."""
    reuse.reusable = lambda directory, *_: (
        "same boot" if (directory / "data.mdb").exists() else None
    )


def no_evidence() -> None:
    """What names a frame of the log is not believed, and an index that is vouched for is."""

    def gather(place: Path, snap: Path, store_uuid: bytes, *, log_begun: bool) -> Evidence:
        return Evidence(reuse.reusable(place, store_uuid), 0, "", 0)

    def left_behind(applied: Applied, frames: Iterable[segments.Frame]) -> None:
        for _ in frames:
            pass

    recovery.gather = source.gather = gather
    recovery.objection = verify.objection = lambda *_, **__: None
    recovery.left_behind = verify.left_behind = left_behind


def clean_stays() -> None:
    """The mark of a clean stop is left where it is while the server runs, and no size is in it."""
    fingerprint = reuse.fingerprint

    def sizeless(directory: Path, *, with_size: bool = False) -> dict[str, str] | None:
        return (fingerprint(directory, with_size=with_size) or {}) | {"bytes": "any"}

    Index.mark_running = lambda self: None
    reuse.fingerprint = sizeless


def short_write() -> None:
    """A write that was taken in part is taken for whole."""

    def write_at(fd: int, data: bytes, offset: int) -> None:
        os.pwrite(fd, data, offset)

    disk.write_at = write_at


def keep_cache() -> None:
    """Recovery reads what the page cache holds, be it on the disk or not."""
    disk.drop_cache = lambda fd: None


def purge_early() -> None:
    """The log is purged before the snapshot that covers it is durable."""
    disk.rename_durably = disk.rename


def keep_segments() -> None:
    """The log is never purged."""
    Wal.purge = lambda self, below_seq: 0


def lossy_load() -> None:
    """One row of a snapshot is left out when it is loaded."""
    read_chunks = snapshot.read_chunks

    def lossy(path: Path) -> tuple:
        header, chunks = read_chunks(path)
        kept = list(chunks)
        del kept[0][len(kept[0]) // 2]
        return header, iter(kept)

    snapshot.read_chunks = lossy


def no_order() -> None:
    """Neither the sequence of frames nor what chains them is looked at."""
    segments._check_place = lambda *args: None
    replay.decode = lambda found, seq, chain: payload.decode_payload(found.payload)


def no_index_crc() -> None:
    """The checksums of the index are found good."""
    for module in (completeness, document, event, expiration, node, sums):
        module.crc32 = lambda data, seed=0: 0
    environment.prove_pages = lambda path: None


def index_ahead() -> None:
    """The index has a batch before the log has, and each batch at once."""
    make, merge = Journal.encode, State.merge
    committed: list[Pending] = []

    def encode(self: Journal, pending: Pending, records: list, time_ns: int) -> None:
        make(self, pending, records, time_ns)
        if pending.size <= BEGUN_BYTES_MAX:
            pending.chain = payload.next_chain(pending.base.chain, pending.payload)
            segment, offset, seq, crc = self._wal.position
            first_index = pending.base.index + 1
            data, crc = frame.seal(
                pending.payload, seq + 1, first_index, len(records), crc, self._wal.writer._salt
            )
            state = pending._state
            merge(state, pending, Position(segment, offset + len(data), seq + 1, crc))
            state.flush()
            committed.append(pending)

    def merge_the_rest(self: State, pending: Pending, position: Position) -> None:
        if pending in committed:
            committed.clear()
        else:
            merge(self, pending, position)

    Journal.encode, State.merge = encode, merge_the_rest


def forget_dirty() -> None:
    """Each flush forgets one of the nodes that the index lacks: only memory has it."""
    write_nodes = Flush.write_nodes

    def lossy(self: Flush, nodes: dict, dirty: Iterable[bytes], paths: dict) -> None:
        keys = sorted(dirty)
        del keys[len(keys) // 2]
        write_nodes(self, nodes, keys, paths)

    Flush.write_nodes = lossy


def scan_unflushed() -> None:
    """Scans read what the index holds, whatever memory has beyond that."""
    State.flushed = State._index_view
    State.late_rows = lambda self: {}


def no_completeness() -> None:
    """What is in an index that is used again is taken for all that was in it."""

    class Blind(completeness.Scan):
        def go_on(self, sums: object, for_s: float) -> bool:
            return True

    environment.prove_pages = lambda path: None
    environment.prove_start = lambda env, tables: False
    proof.Scan = Blind


def split_transaction() -> None:
    """The operations of a transaction are applied one after the other."""

    def transact(
        self: Committer, transaction: Transaction, done: Callable[[list[Event] | ApiError], None]
    ) -> None:
        events: list[Event] = []

        def received(outcome: Event | ApiError) -> None:
            if isinstance(outcome, ApiError):
                done(outcome)
                return
            events.append(outcome)
            go_on()

        def go_on() -> None:
            if len(events) < len(transaction.ops):
                self.submit(transaction.ops[len(events)], received)
            else:
                done(events)

        go_on()

    Committer.transact = transact


def interrupted() -> None:
    """No bug: each thread is interrupted by a signal a thousand times a second."""
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.siginterrupt(signal.SIGUSR1, True)

    def interrupt() -> None:
        while True:
            time.sleep(0.001)
            for thread in threading.enumerate():
                if thread is not threading.current_thread() and thread.ident:
                    with suppress(ProcessLookupError):
                        signal.pthread_kill(thread.ident, signal.SIGUSR1)

    threading.Thread(target=interrupt, daemon=True).start()


def none() -> None:
    """No bug: only what the environment asks for."""


MUTANTS: dict[str, Callable[[], None]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        *(late_write, in_place, no_directory_fsync, no_file_fsync, fsync_every_other, no_fsync),
        *(
            ack_before_fsync,
            ack_before_end,
            retry_fsync,
            no_crc,
            die_when_full,
            wait_when_full,
            shrug,
            no_retry,
            sync_on_loop,
            drop_event,
        ),
        *(wall_clock, no_reuse, trust_index, clean_stays, short_write, keep_cache, purge_early),
        *(
            keep_segments,
            lossy_load,
            no_order,
            no_index_crc,
            no_completeness,
            no_evidence,
            index_ahead,
            forget_dirty,
            scan_unflushed,
            split_transaction,
            interrupted,
            none,
        ),
    )
}

CLOCK_FILE = "KVD_LAB_CLOCK"
"""Names the file that holds how many seconds the system's clock is off."""

PROVE_LATE = "KVD_LAB_PROVE_LATE"
"""Has each index proved as that of a large store: nodes and expirations once it is served."""

SLOW_SYNC = "KVD_LAB_SLOW_SYNC"
"""Names the seconds that each sync of the log takes longer."""


def slow_syncs(seconds: float) -> None:
    """Make each sync of the log take longer."""
    sync_data = disk.sync_data

    def slow(fd: int) -> None:
        time.sleep(seconds)
        sync_data(fd)

    disk.sync_data = slow


def step_clock(path: str) -> None:
    """Put the system's clock off by what a file says, now and whenever it changes."""
    real = time.time_ns

    def time_ns() -> int:
        return real() + int(json.loads(Path(path).read_text()) * 1e9)

    time.time_ns = time_ns


def launch(name: str, argv: list[str]) -> int:
    """Put a bug in, and what the environment asks for, and be a kvd; return its exit status."""
    MUTANTS[name]()
    if CLOCK_FILE in os.environ:
        step_clock(os.environ[CLOCK_FILE])
    if PROVE_LATE in os.environ:
        completeness._ROWS_AT_START = 0
    if SLOW_SYNC in os.environ:
        slow_syncs(float(os.environ[SLOW_SYNC]))
    if WITNESS in os.environ:
        report_syncs(os.environ[WITNESS])
    return main(argv)


if __name__ == "__main__":
    sys.exit(launch(sys.argv[1], sys.argv[3:]))

"""Maintenance of an open store: snapshots, purging the log behind them, writing the index out.

It happens on a thread of its own, one job at a time. No answer depends on it: what fails is logged
and tried again later. But for a sync of the index that failed: pages of it may be lost, and the old
ones of the disk would be read instead, whose checksums are good. So that ends the process. So does
a directory that is not where it was: the next start would not find what is written.

Once the server listens, the snapshots are read here, and the log that its start has not read, in
slices of a few milliseconds with pauses between them, so that the loop hardly notices. Damage there
is reported in one line and by `/health`; a snapshot is taken at once, because until then only the
index, which is never synced, holds all that was acknowledged. Nothing of it is served, so the
server goes on. See storage/wal/scrub.py and storage/snapshot/scrub.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from kvd.core.histogram import SNAPSHOTS_S, Histogram
from kvd.core.worker_thread import WorkerThread
from kvd.storage.errors import DirectoryLost, StorageError
from kvd.storage.format.frame import Position
from kvd.storage.index.errors import BROKEN
from kvd.storage.snapshot.scrub import SnapshotScrubber
from kvd.storage.store import Store
from kvd.storage.wal.scrub import LogScrubber

log = logging.getLogger(__name__)

_SNAPSHOT_BYTES_MIN = 64 << 20
_INDEX_BYTES = 64 << 20
# When the log has outgrown this part of the last snapshot, the next one is due: a rebuild replays
# that much of log, which takes five times as long as it takes to load as much of a snapshot.
_SNAPSHOT_PART = 2
# Where large values are written, 64 MiB of log are less than a second, and a snapshot takes a good
# part of one: they come no closer than this, as long as the log has not grown by so much more.
_SNAPSHOT_INTERVAL_S = 5.0
_POSTPONED_BYTES = 512 << 20
_MEMBER_IDS = 1 << 64
_BACK_OFF_S = 30.0
_BACK_OFF_S_MAX = 600.0
# The unread log is read for so long at a time: a tenth of what one thread could.
_CHECK_S = 0.002
_CHECK_PAUSE_S = 0.02


class Housekeeping:
    """Decides after each flush of the index whether something is due.

    A snapshot is due after `snapshot_count` records, and, with that number and without, once the
    log since the last snapshot exceeds both 64 MiB and half the size of that snapshot: so the log
    never takes more than a part of the disk, and writing snapshots never costs more than twice as
    much as writing the log. What is due by bytes alone waits until the one before has been there
    for five seconds, but for no more than 512 MiB of log, and not where the disk has no room for
    that. The index is written out every 64 MiB of log, so that a commit never waits because the
    kernel holds too much of it unwritten.

    Attributes:
        snapshot_s: How long snapshots took.
        snapshots_failed: How many could not be made.
        damage: What is wrong with the log or the snapshots that are kept, as long as no new
            snapshot lies behind it.
    """

    def __init__(
        self,
        *,
        store: Store,
        sync: WorkerThread[Position],
        loop: asyncio.AbstractEventLoop,
        on_fatal: Callable[[BaseException], None],
        snapshot_count: int | None,
        member_id: int = 0,
    ) -> None:
        """`member_id` sets apart the replicas of one log, which take their snapshots by turns."""
        self._store = store
        self._sync = sync
        self._loop = loop
        self._on_fatal = on_fatal
        # Part of what there is between two snapshots that this one takes less.
        self._earlier = member_id / _MEMBER_IDS / 2
        self._count = None if snapshot_count is None else self._spread(snapshot_count)
        self._wanted: list[Callable[[BaseException | None], object]] = []
        self._thread: WorkerThread[int] = WorkerThread(loop, "kvd-housekeeping")
        self._snapshot_scrubber: SnapshotScrubber | None = store.snapshot_scrubber()
        last = store.last_snapshot()
        self._snapshot_pos = last.pos
        self._snapshot_size = last.size
        self._snapshot_at = store.wal.log_bytes - last.log_bytes_since
        self._index_at = store.wal.log_bytes
        self._busy = False
        self._not_before = 0.0
        self._back_off_s = _BACK_OFF_S
        self._snapshot_began = 0.0
        self._snapshot_ended = float("-inf")
        # How much more log there may be before a snapshot that is due by bytes is taken.
        self._postponed_bytes = self._room_to_postpone()
        self._log_scrubber: LogScrubber | None = store.log_scrubber()
        self._is_checking = False
        self._relief = ""
        self._taken = 0
        self.damage = ""
        self.snapshot_s = Histogram(SNAPSHOTS_S)
        self.snapshots_failed = 0
        self._stopped = False

    def after_flush(self) -> None:
        """Start what is due, unless something is running."""
        if self._busy or self._stopped:
            return
        log_bytes = self._store.wal.log_bytes
        if self._snapshot_due(log_bytes):
            self._take_snapshot()
        elif log_bytes - self._index_at > _INDEX_BYTES:
            self._busy = True
            self._index_at = log_bytes
            self._thread.run(self._sync_index, self._done)

    def tick(self) -> None:
        """Do what must not wait for a commit, about once a second."""
        try:
            self._store.require_place()
        except DirectoryLost as error:
            self._on_fatal(error)
            return
        self._postponed_bytes = self._room_to_postpone()
        if not self._is_checking:
            self._is_checking = True
            self._check()
        if self._busy or self._stopped:
            return
        is_wanted = self.damage and self._loop.time() >= self._not_before
        # What was postponed is due some time, even if nothing more is written.
        if is_wanted or self._snapshot_due(self._store.wal.log_bytes):
            self._take_snapshot()
        elif self._store.index.reserve_is_low():
            # Room for removals on a full disk.
            self._busy = True
            self._thread.run(self._reserve, self._reserved)

    def snapshot_now(self, done: Callable[[BaseException | None], object]) -> bool:
        """Take a snapshot of what is committed; call `done` with why there is none, or None.

        Returns:
            Whether it was begun; not while something is under way.
        """
        if self._busy or self._stopped:
            return False
        self._wanted.append(done)
        self._take_snapshot()
        return True

    def stop(self) -> None:
        """Start nothing any more; give up a snapshot that is being taken, and wait for its end."""
        self._stopped = True
        self._store.snapshots.stop()
        self._thread.stop()

    def _snapshot_due(self, log_bytes: int) -> bool:
        count = self._count
        is_counted = count is not None and self._store.applied.pos - self._snapshot_pos >= count
        due_bytes = self._spread(max(_SNAPSHOT_BYTES_MIN, self._snapshot_size // _SNAPSHOT_PART))
        beyond = log_bytes - self._snapshot_at - due_bytes
        if beyond <= 0 and not is_counted:
            return False
        now = self._loop.time()
        if now < self._not_before:
            return False
        is_soon = now - self._snapshot_ended < _SNAPSHOT_INTERVAL_S
        return is_counted or not is_soon or beyond > self._postponed_bytes

    def _spread(self, due: int) -> int:
        """Return after how much this replica takes a snapshot: between half of it and all."""
        return due - int(due * self._earlier)

    def _room_to_postpone(self) -> int:
        """Return how much log may be written while a snapshot waits: nothing on a full disk."""
        # Each of the snapshots that are kept may have waited.
        is_scarce = self._store.is_low_on_space(reserve=2 * _POSTPONED_BYTES)
        return 0 if is_scarce else _POSTPONED_BYTES

    def _take_snapshot(self) -> None:
        state = self._store.state
        try:
            state.flushed()  # what the index lacks is not in a snapshot of it
        except BROKEN as damage:
            self._on_fatal(damage)
            return
        self._busy = True
        self._snapshot_began = self._loop.time()
        begun = state.stored.pos, self._store.wal.log_bytes
        self._thread.run(self._snapshot, partial(self._snapshot_taken, begun))

    def _snapshot(self) -> int:
        purge_below = self._store.snapshot()
        # Here and not on the loop, because the file's pages are dropped before it is looked at. If
        # it cannot be, the size of the one before decides when the next is due.
        with suppress(OSError):
            self._snapshot_size = self._store.last_snapshot().size
        return purge_below

    def _snapshot_taken(self, begun: tuple[int, int], outcome: int | BaseException) -> None:
        self._busy = False
        wanted, self._wanted = self._wanted, []
        for done in wanted:
            done(outcome if isinstance(outcome, BaseException) else None)
        if isinstance(outcome, (OSError, StorageError)):
            if not self._stopped:
                log.warning("no snapshot was made, the old ones stay: %s", outcome)
                self._not_before = self._loop.time() + self._back_off_s
                self._back_off_s = min(2 * self._back_off_s, _BACK_OFF_S_MAX)
                self.snapshots_failed += 1
        elif isinstance(outcome, BROKEN):
            self._on_fatal(outcome)
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            self._snapshot_pos, self._snapshot_at = begun
            self._back_off_s = _BACK_OFF_S
            self._taken += 1
            if self.damage:
                self.damage = ""
                log.warning("a snapshot was taken: %s", self._relief)
            self._snapshot_ended = self._loop.time()
            self.snapshot_s.observe(self._snapshot_ended - self._snapshot_began)
            # The list of segments belongs to the thread that appends to the last of them.
            store = self._store
            self._sync.run(lambda: store.purge(outcome), self._purged)

    def _purged(self, outcome: Position | BaseException) -> None:
        if isinstance(outcome, OSError):
            log.warning("the log before the oldest snapshot could not be purged: %s", outcome)
        elif isinstance(outcome, BaseException):
            raise outcome

    def _check(self) -> None:
        """Look at the next slice of the snapshots, then of the log, once the thread is free."""
        snapshots, log_scrubber = self._snapshot_scrubber, self._log_scrubber
        if self._stopped or (snapshots is None and log_scrubber is None):
            return
        if self._busy:
            self._loop.call_later(_CHECK_PAUSE_S, self._check)
            return
        self._busy = True
        if snapshots is not None:
            self._thread.run(lambda: snapshots.check(_CHECK_S), self._snapshots_checked)
        elif log_scrubber is not None:
            self._thread.run(lambda: log_scrubber.check(_CHECK_S), self._checked)

    def _snapshots_checked(self, outcome: int | BaseException) -> None:
        self._busy = False
        snapshots = self._snapshot_scrubber
        assert snapshots is not None
        if isinstance(outcome, BaseException):
            raise outcome
        if not outcome:
            self._snapshot_scrubber = None
            # One that was taken meanwhile was read back, and all others may have been pruned.
            if snapshots.bad and not self._taken:
                self.damage = "snapshots are missing or damaged, and there is no new one yet"
                self._relief = "it replaces those that are missing or damaged"
                log.error(
                    "%s. The index is good, and everything is served. A snapshot is taken now: "
                    "until then do not use --rebuild-index. To inspect: kvdctl verify --force %s",
                    "; ".join(snapshots.bad),
                    self._store.directory.path,
                )
                self.tick()
        self._loop.call_later(_CHECK_PAUSE_S, self._check)

    def _checked(self, outcome: int | BaseException) -> None:
        self._busy = False
        log_scrubber, self._log_scrubber = self._log_scrubber, None
        assert log_scrubber is not None
        if isinstance(outcome, (OSError, StorageError)):
            self.damage = "the log behind the index is damaged, and no snapshot lies behind it yet"
            self._relief = "the damaged part of the log is no longer needed"
            log.error(
                "%s. What is kept of the log is damaged behind index %d; nothing of it is served, "
                "the index is good. A snapshot is taken now: until then do not use "
                "--rebuild-index. To inspect: kvdctl verify --force %s",
                outcome,
                log_scrubber.last_index,
                self._store.directory.path,
            )
            self.tick()
        elif isinstance(outcome, BaseException):
            raise outcome
        elif outcome:
            self._log_scrubber = log_scrubber
            self._loop.call_later(_CHECK_PAUSE_S, self._check)
        elif log_scrubber.frames:
            log.info("the log behind the index is good: %d frames", log_scrubber.frames)

    def _sync_index(self) -> int:
        self._store.index.sync()
        return 0

    def _reserve(self) -> int:
        self._store.index.reserve()
        return 0

    def _reserved(self, outcome: int | BaseException) -> None:
        self._busy = False
        if isinstance(outcome, BaseException) and not isinstance(outcome, OSError):
            raise outcome
        # Without room for it there is nothing to say: an append will meet the full disk.

    def _done(self, outcome: int | BaseException) -> None:
        self._busy = False
        if isinstance(outcome, BaseException):
            self._on_fatal(outcome)

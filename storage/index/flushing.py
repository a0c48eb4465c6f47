"""Flushes: transactions that write to the index what it lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

from kvd.storage.format.applied import Applied
from kvd.storage.format.node import Node
from kvd.storage.format.sums import Scanned
from kvd.storage.index.environment import Index, reach_commit
from kvd.storage.index.flush import Flush
from kvd.storage.index.history import History
from kvd.storage.index.index_view import Transaction
from kvd.storage.index.integrity import durable
from kvd.storage.index.unflushed import Unflushed

_NO_SCAN = Scanned()
"""The progress of no scan."""


class Committed(NamedTuple):
    """The state that a flush brings the index to."""

    late: Unflushed
    nodes: Mapping[bytes, Node | None]
    applied: Applied
    stored: Applied
    history_bytes_max: int
    has_garbage: bool


class Written(NamedTuple):
    """The outcome of a flush."""

    flush: Flush
    applied: Applied
    history: History | None
    has_garbage: bool


class IndexWriter:
    """Writes to an index; one transaction for each flush, or one for many.

    Attributes:
        sums: Those of the index's tables.
        scanned: How far a scan of the index has come.
        durable_frame: Says how far the log is durable, where a state may be ahead of that.
    """

    def __init__(self, index: Index) -> None:
        self.sums = index.sums()
        self.scanned = _NO_SCAN
        self.durable_frame: Callable[[], int] | None = None
        self._env = index.env
        self._faults = index.faults
        self._tables = index.tables
        self._history: History | None = None
        self._bulk: Transaction | None = None

    @property
    def is_bulk(self) -> bool:
        """Whether all flushes write to one transaction."""
        return self._bulk is not None

    def read(self) -> Transaction:
        """Return a transaction that reads what has been flushed."""
        return self._bulk if self._bulk is not None else self._env.begin()

    def write(self, state: Committed, free: int) -> Written:
        """Write what the index lacks, and free so many nodes of removed directories.

        Raises:
            IndexRefused: nothing was written.
            CorruptIndex, lmdb.Error: damage, one of `BROKEN`.
        """
        bulk = self._bulk
        # Of old rows only the heads are looked at: no copies.
        txn = bulk or cast("Transaction", self._env.begin(write=True, buffers=True))
        try:
            flush = Flush(txn, self._tables, self.sums, self.scanned)
            applied, history = self._write(flush, state)
            has_garbage = flush.free(free) if free else state.has_garbage
            flush.finish(applied)
            if self.durable_frame is not None:
                durable.note(txn, self.durable_frame())
            if bulk is None:
                reach_commit(self._faults)
                txn.commit()
        except BaseException:
            if bulk is None:
                txn.abort()
            raise
        if bulk is None:
            self._faults.reach("indexAfterCommit")
        return Written(flush, applied, history, has_garbage)

    def _write(self, flush: Flush, state: Committed) -> tuple[Applied, History | None]:
        late, applied, stored, history = state.late, state.applied, state.stored, self._history
        late.write(flush, state.nodes)
        is_limit_new = applied.history_limit != stored.history_limit
        if late.events or is_limit_new or late.new_bytes_max:
            if history is None:
                history = flush.history.read(stored.oldest_event, state.history_bytes_max)
            history = history._replace(bytes_max=state.history_bytes_max)
            history = flush.history.write(late.events, stored, applied, history)
            if history.oldest_event != applied.oldest_event:
                applied = applied._replace(oldest_event=history.oldest_event)
        return applied, history

    def take(self, written: Written) -> None:
        """Take note of a flush, on the thread that owns the state."""
        flush, history = written.flush, written.history
        self.sums = flush.sums
        if flush.nodes_behind or flush.ttl_behind:
            self.scanned.nodes += flush.nodes_behind
            self.scanned.ttl += flush.ttl_behind
        if history is not None:
            history.named.update(flush.history.named)
            history.named.difference_update(flush.history.unnamed)
        self._history = history

    def begin_bulk(self) -> None:
        """Write to one transaction until `commit_bulk`."""
        self._bulk = self._env.begin(write=True)

    def commit_bulk(self) -> None:
        """Commit that transaction.

        Raises:
            IndexRefused: nothing of it has happened.
        """
        assert self._bulk is not None
        self._bulk.commit()
        self._bulk = None

    def abort_bulk(self) -> None:
        """Give that transaction up, if there is one."""
        if self._bulk is not None:
            self._bulk.abort()
            self._bulk = None

"""Transplant: a store made from nodes, events and documents that have indexes already.

What `bulk_load.py` is for keys without a past: the store is left as after a clean stop, with a
snapshot, a log that begins behind it, and an index that the next start reuses.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from kvd.storage import disk
from kvd.storage.directory.data_directory import DataDirectory
from kvd.storage.format.applied import HISTORY_LIMIT_DEFAULT, Applied
from kvd.storage.format.event import Event
from kvd.storage.format.frame import PAGE_SIZE, Position
from kvd.storage.format.identity import NewIds
from kvd.storage.format.node import Node
from kvd.storage.format.records import Change, Document, Kind
from kvd.storage.index.environment import Index
from kvd.storage.index.index_view import IndexView
from kvd.storage.index.pending import Pending
from kvd.storage.index.state import State
from kvd.storage.index.view import View
from kvd.storage.replay import load
from kvd.storage.tools.backup import staged
from kvd.storage.tools.restore import found_store
from kvd.storage.tools.source import reading

_NODES_PER_FLUSH = 10_000


class Past(NamedTuple):
    """The state of a history that a new store goes on from.

    Attributes:
        index: The etcd index: the next change has the one behind it.
        events: Each event up to `index`, without a gap; none where none is known.
        pos, term: How many records its log has had, and the last term.
        ids: Its cluster and member id; random ones if None.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which is not used
    events: Sequence[Event] = ()
    pos: int = 0
    term: int = 0
    ids: NewIds | None = None


def transplant(
    target: Path,
    nodes: Iterable[tuple[bytes, Node]],
    documents: Iterable[Document],
    past: Past,
    check: Callable[[Path], None],
) -> int:
    """Make a store in a directory that is new or empty; durable on return.

    Args:
        target: the new data directory.
        nodes: paths and nodes, each directory before its children; a `dir_id` says only whether it
            is one.
        documents: its documents.
        past: how it goes on.
        check: called with the finished store before it gets its name; if it raises, there is none.

    Returns:
        The cluster id.

    Raises:
        DirectoryUnusable: the target is not empty.
        OSError: the disk failed or is full. There is no new store then.
    """
    with staged(target) as draft:
        directory = DataDirectory.open(draft, new_ids=past.ids)
        try:
            index = Index.create(directory.index, directory.identity.store_uuid)
            try:
                applied = _fill(index, nodes, documents, past)
            except BaseException:
                index.env.close()
                raise
            index.close(clean=True)
            found_store(directory, directory.index, applied)
        finally:
            directory.close()
        check(draft)
        return directory.identity.cluster_id


@contextmanager
def stored(path: Path, scratch: Path) -> Iterator[IndexView]:
    """Yield what a store holds, from its snapshot and log: what a start without an index builds.

    Args:
        path: its directory.
        scratch: a directory for that index, which is removed at the end by the caller.
    """
    with reading(path) as source:
        index = source.latest(scratch)
        try:
            with index.env.begin() as txn:
                yield IndexView(txn, index.tables)
        finally:
            index.env.close()


def each_node(view: View) -> Iterator[tuple[bytes, Node]]:
    """Yield path and node of all nodes below the root, directories before their children."""
    waiting: list[tuple[bytes, int]] = [(b"", 1)]
    while waiting:
        path, dir_id = waiting.pop()
        for name, node in view.children(dir_id):
            yield path + b"/" + name, node
            if node.dir_id:
                waiting.append((path + b"/" + name, node.dir_id))


def _fill(
    index: Index, nodes: Iterable[tuple[bytes, Node]], documents: Iterable[Document], past: Past
) -> Applied:
    """Write all of it to an index; return the position reached."""
    time_ns = disk.wall_clock_ns()
    # No log has made this history, so its chain must be unique.
    chain = secrets.token_bytes(8)
    position = Position(1, PAGE_SIZE, 1, 0)
    load(index, None)
    state = State(index)
    state.begin_bulk()
    rest = iter(nodes)
    try:
        while batch := list(islice(rest, _NODES_PER_FLUSH)):
            pending = Pending(state)
            for path, node in batch:
                _put(pending, path, node)
            # These are no changes: the history has its own events, which come last.
            pending.events.clear()
            pending.index = state.applied.index
            _merge(state, pending, chain, time_ns, position)
        pending = Pending(state)
        for document in documents:
            pending.apply(document, time_ns)
        pending.events = [(event, None) for event in past.events]
        pending.index, pending.pos = past.index, past.pos
        oldest = past.events[0].change.index if past.events else past.index + 1
        pending.base = pending.base._replace(
            term=past.term,
            history_limit=max(HISTORY_LIMIT_DEFAULT, past.index + 1 - oldest),
            oldest_event=oldest,
        )
        _merge(state, pending, chain, time_ns, position)
        state.end_bulk()
    finally:
        state.end()
    return state.applied


def _put(pending: Pending, path: bytes, node: Node) -> None:
    value, created, modified, expiration_ns, dir_id = node
    change = Change(Kind.SET, modified, path, value, bool(dir_id), created, expiration_ns)
    pending.change(change, 0)


def _merge(state: State, pending: Pending, chain: bytes, time_ns: int, place: Position) -> None:
    pending.seq, pending.chain, pending.time_ns = place.seq, chain, time_ns
    state.merge(pending, place)
    state.flush()

"""Bulk load: a store made from many keys without a log, for benches, tests and imports.

The store is the one that a server would have made from as many plain sets, in that order: the same
nodes, indexes and history, made by the same code. It is left as after a clean stop: a snapshot, a
log that begins after it, and an index that the next start reuses.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from kvd.storage import disk
from kvd.storage.directory.data_directory import DataDirectory
from kvd.storage.format.applied import Applied
from kvd.storage.format.frame import PAGE_SIZE, Position
from kvd.storage.format.records import Change, Kind
from kvd.storage.index.environment import Index
from kvd.storage.index.pending import Pending
from kvd.storage.index.state import State
from kvd.storage.replay import load
from kvd.storage.tools.backup import staged
from kvd.storage.tools.restore import found_store

Item = tuple[bytes, bytes]
"""The cleaned path of a file, as `/a/b`, and its value."""

_ITEMS_PER_FLUSH = 10_000


class Loaded(NamedTuple):
    """A new store: its index, one more than the number of items, and its cluster id."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which is not used
    cluster_id: int


def bulk_load(target: Path, items: Iterable[Item], *, time_ns: int | None = None) -> Loaded:
    """Make a store in a directory that is new or empty; durable on return.

    Missing directories are made; a path that comes twice gets the later value. Keys in the order of
    their paths take half the space in the index.

    Args:
        target: the new data directory.
        items: paths and values; they are consumed one by one and need not fit into memory.
        time_ns: time of all changes, in nanoseconds since 1970; now if missing.

    Raises:
        ValueError: a path is not clean, leads through a file, or names a directory.
        DirectoryUnusable: the target is not empty.
        OSError: the disk failed or is full. There is no new store then.
    """
    now_ns = disk.wall_clock_ns() if time_ns is None else time_ns
    with staged(target) as draft:
        directory = DataDirectory.open(draft)
        try:
            index = Index.create(directory.index)
            try:
                applied = _fill(index, items, now_ns)
            except BaseException:
                index.env.close()
                raise
            index.close(clean=True)
            found_store(directory, directory.index, applied)
        finally:
            directory.close()
        return Loaded(applied.index, directory.identity.cluster_id)


def _fill(index: Index, items: Iterable[Item], time_ns: int) -> Applied:
    """Apply one set after another; return the position reached."""
    # No log has made this history, so its chain must be unique.
    applied = Applied(
        seq=1, chain=secrets.token_bytes(8), time_ns=time_ns, position=Position(1, PAGE_SIZE, 1, 0)
    )
    load(index, None)
    state = State(index)
    state.begin_bulk()
    passable: set[bytes] = set()
    rest = iter(items)
    try:
        while True:
            pending = Pending(state)
            size = 0
            for path, value in islice(rest, _ITEMS_PER_FLUSH):
                _check(pending, path, passable)
                number = pending.index + 1
                pending.apply(Change(Kind.SET, number, path, value, False, number), time_ns)
                pending.end_batch()
                size += len(value)
            pending.seq, pending.chain = applied.seq, applied.chain
            pending.time_ns, pending.size = time_ns, size
            state.merge(pending, applied.position)
            if not pending.nodes:
                break
            state.flush()
        state.end_bulk()
    finally:
        state.end()
    return state.applied


def _check(pending: Pending, path: bytes, passable: set[bytes]) -> None:
    """Check that a set of this path is allowed, which applying it relies on.

    `passable` caches paths that are directories or can become some: nothing is removed here.
    """
    if path[:1] != b"/" or path[-1:] == b"/" or b"//" in path:
        raise ValueError(f"{path!r} is no clean path of a file")
    node = pending.find(path)
    if node is not None:
        if node.value is None:
            raise ValueError(f"{path!r} is a directory")
        return
    parent = path.rpartition(b"/")[0]
    if parent not in passable:
        obstacle = pending.obstacle(path)
        if obstacle.blocked:
            raise ValueError(f"{path!r} leads through {obstacle.path!r}, which is a file")
        passable.add(parent)

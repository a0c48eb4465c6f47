"""Joining: a replica that the log of all replicas has left behind, or a new one, gets a snapshot.

It is fetched from another replica, a follower rather than the leader, while the own store stays as
it is; then it becomes the store's content (storage/tools/install.py), and the log goes on behind
it. A replica never starts empty because no other one has a snapshot.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from kvd.replicas.engine import Candidate, Engine, EngineError
from kvd.replicas.links import LinkError
from kvd.replicas.snapshots import NoSnapshot, SnapshotLink, fetch
from kvd.replicas.upkeep.report import JOINING, Report, decode, encode
from kvd.replicas.upkeep.upkeep import REPORT_S
from kvd.storage import disk
from kvd.storage.errors import CorruptSnapshot
from kvd.storage.snapshot.directory import Header
from kvd.storage.store import Store
from kvd.storage.tools.install import install

log = logging.getLogger(__name__)

MARGIN_FRAMES = 500
"""So many frames before its end the log of all replicas is never trimmed."""
PATIENCE_S = 60.0
"""So long the others are asked again: all may have been started at once, or be behind."""
_AGAIN_S = 1.0


class NoSource(Exception):
    """No other replica gives a snapshot; the text says why, and the own store is as it was."""


class FetchingLink(SnapshotLink, Protocol):
    """A link of this replica's own."""

    def close(self) -> None:
        """End the link."""


Dial = Callable[[str], Awaitable[FetchingLink]]


async def install_newest(
    store: Store,
    reopen: Callable[[], Store],
    engine: Engine,
    me: Candidate,
    dial: Dial,
    *,
    describe: Callable[[int], Report],
    wait: Callable[[Coroutine[Any, Any, Header]], Awaitable[Header]] = asyncio.ensure_future,
    patience_s: float = PATIENCE_S,
) -> Store:
    """Fetch a snapshot, and make it the content of a store that nothing else uses; return it open.

    Args:
        store: the open store, which is closed once a snapshot is there.
        reopen: opens it again; called on a thread.
        engine: knows the other replicas by their reports.
        me: this replica.
        dial: connects to the peer URL of another one; raises LinkError.
        describe: makes the report of this replica; gets the batch behind which the log of all
            replicas is needed here: it is not trimmed further meanwhile.
        wait: waits for the snapshot; may be cancelled, which leaves the store open as before.
        patience_s: how long the others are asked again.

    Raises:
        NoSource: there is none; the store is open as before.
        StorageError, OSError: it could not be installed, or opened again: the directory holds the
            old store, or the new one.
    """
    at_least = max(store.applied.seq + 1, (await engine.end()).seq - MARGIN_FRAMES)
    received = store.directory.snap / "received.tmp"
    async with _reporting(engine, me.id, partial(describe, at_least)):
        fetch_by = partial(_fetch, at_least, received)
        header = await wait(_fetch_newest(engine, me, dial, fetch_by, patience_s))
        return await _install(store, reopen, header, received)


@asynccontextmanager
async def _reporting(
    engine: Engine, replica: int, describe: Callable[[], Report]
) -> AsyncIterator[None]:
    """Have this replica seen by the others meanwhile."""

    async def report() -> None:
        while True:
            with suppress(EngineError):
                await engine.report(replica, encode(describe()))
            await asyncio.sleep(REPORT_S)

    task = asyncio.ensure_future(report())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _install(
    store: Store, reopen: Callable[[], Store], header: Header, received: Path
) -> Store:
    path, segment_bytes_max = store.directory.path, store.segment_bytes_max
    began = time.monotonic()
    await asyncio.to_thread(store.close)
    make = partial(install, path, received, segment_bytes_max=segment_bytes_max)
    await asyncio.to_thread(make)
    opened = await asyncio.to_thread(reopen)
    log.info(
        "installed a snapshot of index %d in %.1f s: the log of all replicas goes on behind it",
        header.index,
        time.monotonic() - began,
    )
    return opened


async def _fetch_newest(
    engine: Engine,
    me: Candidate,
    dial: Dial,
    fetch_by: Callable[[FetchingLink, Report], Awaitable[Header]],
    patience_s: float,
) -> Header:
    """Ask one replica after the other, until one gives a snapshot."""
    until = time.monotonic() + patience_s
    while True:
        reasons = []
        for report in in_order(await engine.reports(), me.id):
            try:
                link = await dial(report.peer)
                try:
                    return await fetch_by(link, report)
                finally:
                    link.close()
            except (LinkError, NoSnapshot, CorruptSnapshot) as error:
                reasons.append(f"{report.name}: {error}")
        if not reasons or time.monotonic() >= until:
            found = "; ".join(reasons) or "there is no other one"
            raise NoSource(f"no other replica gives a snapshot: {found}")
        log.info("waiting for a replica that gives a snapshot: %s", "; ".join(reasons))
        await asyncio.sleep(_AGAIN_S)


async def _fetch(at_least: int, target: Path, link: FetchingLink, report: Report) -> Header:
    began = time.monotonic()
    disk.remove_if_there(target)
    try:
        header = await fetch(link, at_least, target)
    except BaseException:
        disk.remove_if_there(target)
        raise
    size_mb = target.stat().st_size / 1e6
    log.info("fetched a snapshot of %.1f MB from %s: %.1f s", size_mb, report.name, _since(began))
    return header


def _since(began: float) -> float:
    return time.monotonic() - began


def in_order(reports: dict[int, bytes], own_id: int) -> Sequence[Report]:
    """Return the reports of the other replicas in the order in which they are asked.

    Followers come before the leader, the furthest ones first. Those that join themselves, and
    damaged reports, are left out.
    """
    found = []
    for replica, document in reports.items():
        if replica != own_id:
            try:
                report = decode(document)
            except ValueError:
                continue  # the upkeep logs it
            if report.state != JOINING:
                found.append(report)
    return sorted(found, key=lambda report: (report.state == "leading", -report.applied))

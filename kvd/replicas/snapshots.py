"""Snapshots that go from one replica to another, in pieces over a link of their own.

    fetches    snapshot [at_least]      a batch that it must reach
    serves     alive []                 while it is taken, once a second
               piece [bytes] ...        the file, and an empty one at its end
               nosnapshot [reason]      instead

The side that fetches ends the link. The other one takes a new snapshot unless the newest reaches
that batch, so that the log of all replicas has what follows.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from kvd.core.background.housekeeping import Housekeeping
from kvd.replicas.links import LinkError
from kvd.storage import disk
from kvd.storage.errors import CorruptSnapshot, StorageError
from kvd.storage.snapshot import directory as snapshot
from kvd.storage.snapshot.directory import Header
from kvd.storage.store import Store

T = TypeVar("T")

PIECE_BYTES = 256 << 10
_ALIVE_S = 1.0
SILENCE_S = 10.0
"""A peer that sends nothing for so long, or takes nothing, is given up."""
# While something else is under way in the background.
_AGAIN_S = 0.02


class NoSnapshot(Exception):
    """The peer has none to give; the text says why."""


class SnapshotLink(Protocol):
    """A link as it is used here (links.py)."""

    def send(self, name: str, *fields: object) -> None:
        """Queue a message; LinkError if the link has ended."""

    async def drain(self) -> None:
        """Wait until the peer has read most of what was sent."""

    async def receive(self) -> tuple[str, list[Any]]:
        """Return the next message; LinkError if the link has ended."""


class Snapshots:
    """Serves the snapshots of one running store."""

    def __init__(self, store: Store, housekeeping: Housekeeping) -> None:
        self._store = store
        self._housekeeping = housekeeping

    async def serve(self, link: SnapshotLink, at_least: int) -> None:
        """Send a snapshot that reaches a batch, or say why there is none; return at the end.

        Raises:
            LinkError: the link has ended before.
        """
        try:
            fd = await _meanwhile(link, self._open(at_least))
        except (NoSnapshot, OSError, StorageError) as error:
            link.send("nosnapshot", str(error))
        else:
            try:
                await _send(link, fd)
            finally:
                os.close(fd)
        # What is not read yet would be lost if this side ended the link.
        await _unless_silent(link.receive())

    async def _open(self, at_least: int) -> int:
        """Return the open file of a snapshot that reaches a batch; pruning does not take it away.

        Raises:
            NoSnapshot: this replica has not come so far, or its index lacks it.
            OSError, StorageError: none could be taken.
        """
        applied = self._store.applied.seq
        if applied < at_least:
            raise NoSnapshot(f"it has applied frame {applied} only, not {at_least}")
        for _ in range(2):
            for path in snapshot.available(self._store.directory.snap)[:1]:
                fd = disk.open_to_read(path)
                if await asyncio.to_thread(_reach, path) >= at_least:
                    return fd
                os.close(fd)
            await self._take()
        raise NoSnapshot("its index lacks what it has applied")

    async def _take(self) -> None:
        taken = asyncio.get_running_loop().create_future()

        def end(error: BaseException | None) -> None:
            if not taken.done():
                taken.set_result(error)

        while not self._housekeeping.snapshot_now(end):
            await asyncio.sleep(_AGAIN_S)
        error = await taken
        if error is not None:
            raise error


def _reach(path: Path) -> int:
    try:
        return snapshot.read_header(path).payload_seq
    except (CorruptSnapshot, FileNotFoundError):
        return 0  # reported by others, or pruned


async def _meanwhile(link: SnapshotLink, opening: Awaitable[int]) -> int:
    """Tell the peer once a second that a file is being opened, and return it."""
    task = asyncio.ensure_future(opening)
    try:
        while not (await asyncio.wait([task], timeout=_ALIVE_S))[0]:
            link.send("alive")
        return await task
    finally:
        task.cancel()


async def _send(link: SnapshotLink, fd: int) -> None:
    offset = 0
    while data := await _on_thread(partial(disk.read_at, fd, PIECE_BYTES, offset)):
        link.send("piece", data)
        await _unless_silent(link.drain())
        offset += len(data)
    link.send("piece", b"")
    await _unless_silent(link.drain())


async def fetch(link: SnapshotLink, at_least: int, target: Path) -> Header:
    """Fetch a snapshot that reaches a batch into a new file, and verify it; durable on return.

    Raises:
        NoSnapshot: the peer has none.
        LinkError: the link has ended, or the peer is silent.
        CorruptSnapshot: what came is none, or does not reach that batch.
        OSError: the own disk.
    """
    link.send("snapshot", at_least)
    fd = disk.create(target)
    try:
        await _receive(link, fd)
        await _on_thread(partial(disk.sync_file, fd))
    finally:
        os.close(fd)
    header = await asyncio.to_thread(snapshot.verify, target)
    if header.payload_seq < at_least:
        raise CorruptSnapshot(f"it reaches batch {header.payload_seq}, expected {at_least}")
    return header


async def _receive(link: SnapshotLink, fd: int) -> None:
    offset = 0
    while True:
        name, fields = await _unless_silent(link.receive())
        match name, fields:
            case "piece", [b""]:
                return
            case "piece", [bytes(data)]:
                await _on_thread(partial(disk.write_at, fd, data, offset))
                offset += len(data)
            case "nosnapshot", [reason]:
                raise NoSnapshot(reason)
            case "alive", _:
                pass
            case _:
                raise LinkError(f"the peer sends {name!r} instead of a snapshot")


async def _on_thread(call: Callable[[], T]) -> T:
    """Return the result of a call that blocks; a cancellation waits for its end.

    So no file is closed while it is used, and its number given to another one.
    """
    running = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(running)
    finally:
        if not running.done():
            await asyncio.wait([running])


async def _unless_silent(awaitable: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(SILENCE_S):
            return await awaitable
    except TimeoutError:
        raise LinkError(f"the peer is silent for {SILENCE_S:.0f} s") from None

"""The verbs of a test on a running server, on the server's loop; `KvdFixture` has their meaning."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from typing import TypeVar

from kvd.server import KvdServer
from kvd.storage.failpoints import Fault, Faults
from kvd.storage.format.node import ROOT
from kvd.storage.index.view import View
from kvd.testing.machine_time import ClockSetting, MachineTime
from kvd.v2.commands import Delete
from kvd.v2.documents.auth import ROLE, USER, is_enabled
from kvd.v2.documents.auth_commands import DeleteRole, DeleteUser, Switch
from kvd.v2.documents.decision import Reply
from kvd.v2.documents.entries import EntryCommand
from kvd.v2.errors import KEY_NOT_FOUND, ApiError, RouteError

T = TypeVar("T")

_POLL_S = 0.002


class Controls:
    """The verbs of one server; each returns what JSON can say.

    Args:
        server: started, or being started.
        faults: those that it was made with.
        machine: by whose clocks it goes.
    """

    def __init__(self, server: KvdServer, faults: Faults, machine: MachineTime) -> None:
        self._server = server
        self._faults = faults
        self._machine = machine
        self._loop = asyncio.get_running_loop()

    async def started(self) -> list[str]:
        """Wait until it serves; return its addresses."""
        while not self._server.urls:
            await asyncio.sleep(_POLL_S)
        return self._server.urls

    # Reading

    async def index(self) -> int:
        """Return the index of the last event."""
        return self._server.running.hub.index

    async def wait_for_index(self, index: int, timeout_s: float) -> bool:
        """Wait until the index has been reached; return whether it was reached in time."""
        hub = self._server.running.hub
        until = self._loop.time() + timeout_s
        while hub.index < index:
            if self._loop.time() >= until:
                return False
            await self._turn()
        return True

    async def dump(self) -> dict[str, str]:
        """Return the values of all files, hidden ones too, by their keys."""
        return {_text(path): _text(value) for path, value in _files(self._view())}

    def _view(self) -> View:
        return self._server.store.view_at(self._server.clock.now_ns())

    # The disk

    async def fail_next_sync(self, code: int) -> None:
        """Have the next sync of the log fail."""
        parts = self._server.running
        # The heartbeat that follows the last write would take the fault before the next write.
        await self._unless_failed(parts.committer.drain())
        parts.committer.tick()
        while parts.sync.waiting:
            await self._turn()
        self._faults.arm([Fault("walBeforeSync", "error", code, 1)])

    async def fill_disk(self, free_bytes: int | None) -> None:
        """Have the store find so much free on its disks (None: what there is), and take note."""
        self._faults.free_bytes_max = free_bytes
        store, committer = self._server.store, self._server.running.committer
        committer.tick()
        while committer.no_room and not store.is_low_on_space():
            await self._turn()
            committer.tick()

    # Time

    async def set_time(self, *setting: int | None) -> None:
        """Set the clocks of the machine; return when all that has ended then has expired."""
        self._machine.setting = ClockSetting._make(setting)
        await self._catch_up()

    async def _catch_up(self) -> None:
        """Log what has changed by the clocks, and let the watchers know."""
        parts = self._server.running
        committer, timer = parts.committer, parts.committer.expiry_timer
        committer.look_at_clock()
        if not committer.no_room:  # without room a step is logged later
            await self._unless_failed(committer.drain())
        while timer.is_overdue:
            await self._unless_failed(committer.settle())
        # The timer was set by the time that went before.
        timer.armed_ns = -1
        timer.arm()
        while parts.hub.backlog_bytes:
            await self._turn()

    async def _turn(self) -> None:
        if self._server.failed is not None:
            raise self._server.failed
        await asyncio.sleep(_POLL_S)

    async def _unless_failed(self, awaited: Awaitable[T]) -> T:
        """Wait for what may never come once the server has failed."""
        task = asyncio.ensure_future(awaited)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_POLL_S)
                if self._server.failed is not None:
                    raise self._server.failed
        finally:
            task.cancel()
        return task.result()

    # Everything

    async def reset(self, *setting: int | None) -> None:
        """Make room, set the clocks, and remove all keys, users and roles."""
        self._faults.arm([])
        await self.fill_disk(None)
        await self.set_time(*setting)
        for name, _ in [*self._view().children(ROOT.dir_id)]:
            await self._delete(b"/" + name)
        await self._remove_users()

    async def _delete(self, key: bytes) -> None:
        done: asyncio.Future[object] = self._loop.create_future()
        self._server.running.committer.submit(Delete(key, recursive=True), done.set_result)
        refused = await self._unless_failed(done)
        if isinstance(refused, ApiError) and refused.code != KEY_NOT_FOUND:
            raise refused

    async def _remove_users(self) -> None:
        view = self._view()
        commands: list[EntryCommand] = [Switch(on=False)] if is_enabled(view) else []
        commands += [DeleteUser(document.name) for document in view.each_document(USER)]
        commands += [DeleteRole(document.name) for document in view.each_document(ROLE)]
        for command in commands:
            done: asyncio.Future[Reply | RouteError] = self._loop.create_future()
            self._server.running.committer.submit_document(command, done.set_result)
            await self._unless_failed(done)


def _files(view: View) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys of all files, each with its value."""
    directories = [(b"", ROOT.dir_id)]
    while directories:
        path, dir_id = directories.pop()
        for name, node in view.children(dir_id):
            key = b"%b/%b" % (path, name)
            if node.value is None:
                directories.append((key, node.dir_id))
            else:
                yield key, node.value


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")

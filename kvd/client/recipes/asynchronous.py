"""`AsyncLock`, `AsyncCounter` and `AsyncBarrier` of an `AsyncClient`; see blocking.py."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from kvd.client.errors import ClusterChanged, HistoryLost, KeyNotFound, KvdError
from kvd.client.recipes.claim import Claim, Held, LockLost, LockTimeout
from kvd.client.watches import Watching

if TYPE_CHECKING:
    from kvd.client.loop import AsyncDriver
    from kvd.client.operations import Operations


class AsyncLock:
    """A fair lock among programs. If it is lost in an `async with`, the body is cancelled.

    Example:
        >>> from kvd import AsyncClient
        >>> async def backup(client: AsyncClient) -> int:
        ...     async with client.lock("/locks/backup") as held:
        ...         return held.fence
    """

    def __init__(
        self,
        driver: AsyncDriver,
        ops: Operations,
        name: str,
        ttl: int,
        on_lost: Callable[[], object] | None = None,
    ) -> None:
        self._driver = driver
        self._ops = ops
        self._name = name
        self._ttl = ttl
        self._on_lost = on_lost
        self._claim = Claim(ops, name, ttl)
        self._keeper: asyncio.Task[None] | None = None
        self._body: asyncio.Task[object] | None = None
        self._is_held = False
        self._lost = asyncio.Event()

    async def __aenter__(self) -> Held[asyncio.Event]:
        held = await self.acquire()
        self._body = asyncio.current_task()
        return held

    async def __aexit__(self, kind: object, *_: object) -> None:
        body, self._body = self._body, None
        await self.release()
        was_cancelled = kind is asyncio.CancelledError and self._lost.is_set()
        # If the caller has cancelled the task too, that cancellation goes on.
        if was_cancelled and body is not None and body.uncancel() == 0:
            raise LockLost(f"{self._claim.key} was lost") from None

    async def acquire(self, timeout: float | None = None) -> Held[asyncio.Event]:
        """Wait for the lock; see `Lock.acquire`."""
        if self._keeper is not None:
            raise RuntimeError("this lock is held already; make another one for each holder")
        self._claim = Claim(self._ops, self._name, self._ttl)
        self._lost = asyncio.Event()
        try:
            async with asyncio.timeout(timeout):
                await self._enter()
        except TimeoutError:
            await self.release()
            raise LockTimeout(f"{self._name} was not free in time") from None
        except BaseException:
            await self.release()
            raise
        self._is_held = True
        return Held(self._claim, self._lost)

    async def _enter(self) -> None:
        await self._driver.run(self._claim.enter())
        self._keeper = asyncio.create_task(self._keep())
        waiting = asyncio.ensure_future(self._wait())
        lost = asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait((waiting, lost), return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise LockLost(f"{self._claim.key} was lost while waiting")
            waiting.result()
        finally:
            for task in (waiting, lost):
                task.cancel()
            await asyncio.gather(waiting, lost, return_exceptions=True)

    async def _wait(self) -> None:
        """Wait until no entry is before this one."""
        while (before := await self._driver.run(self._claim.before())) is not None:
            key, index = before
            await wait_until_gone(self._driver, self._ops, key, index)

    async def _keep(self) -> None:
        wait_s = self._claim.refresh_s
        while True:
            await asyncio.sleep(wait_s)
            try:
                wait_s = await self._driver.run(self._claim.refresh())
            except KvdError:
                break
        self._lost.set()
        if self._is_held:
            if self._on_lost is not None:
                self._on_lost()
            if self._body is not None:
                self._body.cancel()

    async def release(self) -> None:
        """Give the lock up; of one that was lost nothing is changed."""
        keeper, self._keeper = self._keeper, None
        self._is_held = False
        if keeper is not None:
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper
        if self._claim.key and not self._lost.is_set():
            await self._driver.run(self._claim.leave())


async def wait_until_gone(driver: AsyncDriver, ops: Operations, key: str, index: int) -> None:
    """Wait until a key is removed after an index, or its history is lost."""
    watching = Watching(ops, key, index + 1, recursive=False)
    try:
        while not (await driver.run(watching.next())).removes(key):
            pass
    except (ClusterChanged, HistoryLost):
        return  # look again
    finally:
        watching.let_go()


class AsyncCounter:
    """A number in a key, that many programs add to."""

    def __init__(self, driver: AsyncDriver, ops: Operations, key: str) -> None:
        self._driver = driver
        self._ops = ops
        self._key = key

    async def value(self) -> int:
        """Return the number; 0 where there is no such key."""
        return int(await self._driver.run(self._ops.get_or(self._key, "0")))

    async def add(self, number: int = 1) -> int:
        """Add a number; return the sum. See `Counter.add`."""
        event = await self._driver.run(self._ops.add(self._key, number))
        return int(event.node.value or 0)


class AsyncBarrier:
    """A key that programs wait for to be gone."""

    def __init__(self, driver: AsyncDriver, ops: Operations, key: str) -> None:
        self._driver = driver
        self._ops = ops
        self._key = key

    async def close(self, *, ttl: int | None = None) -> None:
        """Let `wait` wait from now on; for so many seconds, or until `lift`."""
        form = {"value": "", "ttl": ttl}
        await self._driver.run(self._ops.write("PUT", self._key, form))

    async def lift(self) -> None:
        """Let all go on."""
        operation = self._ops.delete(
            self._key, recursive=False, dir=False, if_index=None, if_value=None, missing_ok=True
        )
        await self._driver.run(operation)

    async def wait(self) -> None:
        """Wait until the key is gone; return at once where it is not there."""
        while True:
            try:
                node = await self._driver.run(self._ops.get(self._key, quorum=False))
            except KeyNotFound:
                return
            await wait_until_gone(self._driver, self._ops, self._key, node.index)

    async def __aenter__(self) -> Self:
        await self.close()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.lift()

"""Recipes of an `AsyncClient`; see blocking.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from kvd.client.errors import ClusterChanged, HistoryLost, KeyNotFound
from kvd.client.recipes.asynchronous_keeper import AsyncKeeper
from kvd.client.recipes.claim import Claim, LockTimeout
from kvd.client.recipes.leaders import Observing
from kvd.client.recipes.lease import Held, LockLost, require_ttl
from kvd.client.streams.asynchronous import AsyncObservation
from kvd.client.watches import Watching, require_seconds

if TYPE_CHECKING:
    from kvd.client.loop import AsyncDriver
    from kvd.client.operations import Operations


class AsyncLock:
    """A fair lock among programs. If it is lost in an `async with`, the body is cancelled.

    Example:
        >>> import asyncio
        >>> from kvd import AsyncClient
        >>> async def main() -> bool:
        ...     async with AsyncClient("http://127.0.0.1:2379") as client:
        ...         async with client.lock("/locks/backup") as held:
        ...             return held.fence > 0
        >>> asyncio.run(main())
        True
    """

    def __init__(
        self,
        driver: AsyncDriver,
        ops: Operations,
        name: str,
        ttl: int,
        on_lost: Callable[[], object] | None = None,
        *,
        shown: str | None = None,
    ) -> None:
        self._driver = driver
        self._ops = ops
        self._name = name
        self._ttl = ttl
        self._on_lost = on_lost
        self._shown = shown
        self._claim = Claim(ops, name, ttl, shown)
        self._keeper: AsyncKeeper | None = None

    async def __aenter__(self) -> Held[asyncio.Event]:
        held = await self.acquire()
        assert self._keeper is not None
        self._keeper.body = asyncio.current_task()
        return held

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        keeper, key = self._keeper, self._claim.lease.key
        is_lost = keeper is not None and keeper.take_back(kind)
        await self.release()
        if is_lost:
            raise LockLost(f"{key} was lost") from None

    async def acquire(self, timeout: float | None = None) -> Held[asyncio.Event]:
        """Wait for the lock; see `Lock.acquire`."""
        if self._keeper is not None:
            raise RuntimeError("this lock is held already; make another one for each holder")
        require_seconds(timeout)
        self._claim = Claim(self._ops, self._name, self._ttl, self._shown)
        try:
            async with asyncio.timeout(timeout):
                keeper = await self._enter()
        except TimeoutError:
            await self.release()
            raise LockTimeout(f"{self._name} was not free in time") from None
        except BaseException:
            await self.release()
            raise
        keeper.is_held = True
        return Held(self._claim.lease, self._claim.fence, keeper.lost)

    async def _enter(self) -> AsyncKeeper:
        await self._driver.run(self._claim.enter())
        keeper = self._keeper = AsyncKeeper(self._driver, self._claim.lease, self._on_lost)
        waiting = asyncio.ensure_future(self._wait())
        lost = asyncio.ensure_future(keeper.lost.wait())
        try:
            await asyncio.wait((waiting, lost), return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise LockLost(f"{self._claim.lease.key} was lost while waiting")
            waiting.result()
            return keeper
        finally:
            for task in (waiting, lost):
                task.cancel()
            await asyncio.gather(waiting, lost, return_exceptions=True)

    async def _wait(self) -> None:
        """Wait until no entry is before this one."""
        while (before := await self._driver.run(self._claim.before())) is not None:
            key, index = before
            await wait_until_gone(self._driver, self._ops, key, index)

    async def release(self) -> None:
        """Give the lock up; of one that was lost nothing is changed."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.is_held = False
            await keeper.stop()
            if not keeper.lost.is_set():
                await self._driver.run(self._claim.lease.leave())


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


class AsyncElection:
    """`Election` for programs with an event loop.

    Example:
        >>> import asyncio
        >>> from kvd import AsyncClient
        >>> async def main() -> bool:
        ...     async with AsyncClient("http://127.0.0.1:2379") as client:
        ...         async with client.election("/leaders/db").campaign("10.0.0.5") as held:
        ...             return held.lost.is_set()
        >>> asyncio.run(main())
        False
    """

    def __init__(
        self,
        driver: AsyncDriver,
        ops: Operations,
        name: str,
        ttl: int,
        on_lost: Callable[[], object] | None = None,
    ) -> None:
        require_ttl(ttl)
        self._driver = driver
        self._ops = ops
        self._name = name
        self._ttl = ttl
        self._on_lost = on_lost

    def campaign(self, value: str) -> AsyncLock:
        """Return a lock: `async with` waits until this program leads. See `Election.campaign`."""
        return AsyncLock(self._driver, self._ops, self._name, self._ttl, self._on_lost, shown=value)

    def observe(self, *, timeout: float | None = None) -> AsyncObservation:
        """Return the value of the leader at each change. See `Election.observe`."""
        return AsyncObservation(self._driver, Observing(self._ops, self._name), timeout)


class AsyncCounter:
    """A number in a key, that many programs add to.

    Example:
        >>> import asyncio
        >>> from kvd import AsyncClient
        >>> async def main() -> int:
        ...     async with AsyncClient("http://127.0.0.1:2379") as client:
        ...         return await client.counter("/hits/async").add()
        >>> asyncio.run(main())
        1
    """

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
    """A key that programs wait for to be gone.

    Example:
        >>> import asyncio
        >>> from kvd import AsyncClient
        >>> async def main() -> None:
        ...     async with AsyncClient("http://127.0.0.1:2379") as client:
        ...         barrier = client.barrier("/upgrade/async")
        ...         async with barrier:  # other programs wait
        ...             pass
        ...         await barrier.wait()
        >>> asyncio.run(main())
    """

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

"""`AsyncQueue` of an `AsyncClient`; see blocking_queue.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from kvd.client.recipes.asynchronous_keeper import AsyncKeeper
from kvd.client.recipes.items import Item, Taking, new_item
from kvd.client.recipes.lease import LockLost, require_ttl

if TYPE_CHECKING:
    from kvd.client.loop import AsyncDriver
    from kvd.client.operations import Operations


class AsyncQueue:
    """`Queue` for programs with an event loop.

    Example:
        >>> import asyncio
        >>> from kvd import AsyncClient
        >>> async def main() -> str:
        ...     async with AsyncClient("http://127.0.0.1:2379") as client:
        ...         queue = client.queue("/jobs/async")
        ...         await queue.put("7.png")
        ...         async with queue.take() as item:
        ...             return item.value
        >>> asyncio.run(main())
        '7.png'
    """

    def __init__(self, driver: AsyncDriver, ops: Operations, name: str, ttl: int) -> None:
        require_ttl(ttl)
        self._driver = driver
        self._ops = ops
        self._name = name
        self._ttl = ttl

    async def put(self, value: str, *, id: str | None = None) -> str:  # noqa: A002 -- what it is called
        """Put an item at the end; return its id. See `Queue.put`."""
        item_id, text = new_item(value, id)
        form = {"value": text}
        await self._driver.run(self._ops.write("POST", self._name, form))
        return item_id

    @asynccontextmanager
    async def take(self, timeout: float | None = None) -> AsyncIterator[Item[asyncio.Event]]:
        """Wait for an item in an `async with`, at whose end it is removed. See `Queue.take`.

        If the claim is lost, the body is cancelled and LockLost raised. If the body is cancelled
        otherwise, the item is handed out again at once.
        """
        taking = Taking(self._ops, self._name, self._ttl)
        node = await self._driver.run(taking.take(timeout))
        keeper = AsyncKeeper(self._driver, taking.lease, None)
        keeper.body = asyncio.current_task()
        try:
            yield Item(node, taking.lease, keeper.lost)
        except BaseException as error:
            is_lost = keeper.take_back(error)
            await keeper.stop()
            if is_lost:
                raise LockLost(f"{node.key} was lost, and is handed out again") from None
            if not isinstance(error, Exception):
                await self._driver.run(taking.give_back())
            raise
        keeper.take_back(None)
        await keeper.stop()
        if keeper.lost.is_set():
            raise LockLost(f"{node.key} was lost, and is handed out again")
        try:
            await self._driver.run(taking.finish())
        except asyncio.CancelledError:
            await self._driver.run(taking.give_back())
            raise

"""`AsyncWatch`, `AsyncFollow` and `AsyncObservation`: the open streams of an `AsyncClient`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Self

from kvd.client.errors import TransportError
from kvd.client.loop import AsyncDriver
from kvd.client.recipes.leaders import Observing
from kvd.client.watches import Following, Watching

if TYPE_CHECKING:
    from kvd.client.model import Event, Snapshot


class _Stream:
    """The base of all of them."""

    def __init__(
        self,
        driver: AsyncDriver,
        state: Watching | Following | Observing,
        timeout: float | None = None,
    ) -> None:
        self._driver = driver
        self._timeout = timeout
        self._state = state
        self._task: asyncio.Task[Any] | None = None
        self._is_awaited = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, and whatever waits for its next event."""
        self._state.is_closed = True
        self._state.let_go()
        if self._task is not None and not self._task.cancel() and not self._task.cancelled():
            self._task.exception()  # its outcome has no reader

    async def _next(self) -> Any:
        if self._state.is_closed:
            raise StopAsyncIteration
        if self._is_awaited:
            raise RuntimeError("another task already waits for the next event")
        if self._task is None:
            self._task = asyncio.ensure_future(self._driver.run(self._state.next(self._timeout)))
        task = self._task
        self._is_awaited = True
        try:
            # A caller that is cancelled leaves the task to the next call: no event is lost.
            await asyncio.wait([task])
        finally:
            self._is_awaited = False
        self._task = None
        if task.cancelled():
            raise StopAsyncIteration
        try:
            return task.result()
        except (TransportError, OSError):
            if self._state.is_closed:
                raise StopAsyncIteration from None
            raise


class AsyncWatch(_Stream):
    """The events of a key, one after the other; ends when it is closed.

    Example:
        >>> import asyncio
        >>> from kvd import AsyncClient
        >>> async def main() -> str | None:
        ...     async with AsyncClient("http://127.0.0.1:2379") as client:
        ...         since = (await client.set("/watched/async", "1")).index
        ...         async with client.watch("/watched/async", since=since) as watch:
        ...             return (await anext(watch)).node.value
        >>> asyncio.run(main())
        '1'
    """

    _state: Watching

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        event: Event = await self._next()
        return event

    @property
    def index(self) -> int | None:
        """The last index that is complete: save it, and continue with `since=index + 1`."""
        return self._state.index


class AsyncFollow(_Stream):
    """A snapshot of a subtree and the events behind it; ends when it is closed.

    Example:
        >>> import asyncio
        >>> from kvd import AsyncClient
        >>> async def main() -> str:
        ...     async with AsyncClient("http://127.0.0.1:2379") as client:
        ...         async with client.follow("/services") as follow:
        ...             async for news in follow:
        ...                 return type(news).__name__
        ...     return ""
        >>> asyncio.run(main())
        'Snapshot'
    """

    _state: Following

    def __aiter__(self) -> AsyncIterator[Snapshot | Event]:
        return self

    async def __anext__(self) -> Snapshot | Event:
        received: Snapshot | Event = await self._next()
        return received


class AsyncObservation(_Stream):
    """The value of an election's leader, at first and at each change; ends when it is closed.

    Example:
        >>> import asyncio
        >>> from kvd import AsyncClient
        >>> async def main() -> str:
        ...     async with AsyncClient("http://127.0.0.1:2379") as client:
        ...         async with client.election("/leaders/none").observe() as leaders:
        ...             return await anext(leaders) or "no leader"
        >>> asyncio.run(main())
        'no leader'
    """

    _state: Observing

    def __aiter__(self) -> AsyncIterator[str | None]:
        return self

    async def __anext__(self) -> str | None:
        leader: str | None = await self._next()
        return leader

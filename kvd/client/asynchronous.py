"""`AsyncClient`: the client for programs with an event loop. What its methods do, `Client` says."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Self, TypeVar

from kvd.client.blocking import Client
from kvd.client.keys import PAGE
from kvd.client.loop import AsyncDriver
from kvd.client.operations import Operations
from kvd.client.recipes.asynchronous import (
    AsyncBarrier,
    AsyncCounter,
    AsyncElection,
    AsyncLock,
)
from kvd.client.recipes.asynchronous_queue import AsyncQueue
from kvd.client.streams.asynchronous import AsyncFollow, AsyncWatch
from kvd.client.watches import Following, Watching

if TYPE_CHECKING:
    import ssl

    from kvd.client.model import Compare, Event, Node, Op, Tree

T = TypeVar("T")


class AsyncClient:
    """`Client` for programs with an event loop: the same methods, to be awaited.

    It belongs to one loop.

    Example:
        >>> import asyncio
        >>> from kvd import AsyncClient
        >>> async def main() -> str | None:
        ...     async with AsyncClient("http://127.0.0.1:2379") as client:
        ...         await client.set("/app/async", "1")
        ...         return (await client.get("/app/async")).value
        >>> asyncio.run(main())
        '1'
    """

    def __init__(
        self,
        url: str | Sequence[str] = "http://127.0.0.1:2379",
        *,
        username: str | None = None,
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
        timeout: float = 5.0,
        namespace: str = "",
        connections: int = 10,
    ) -> None:
        self._driver = AsyncDriver(tls)
        self._operations = Operations(
            url,
            username=username,
            password=password,
            timeout=timeout,
            namespace=namespace,
            connections=connections,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._operations.exchanges.close()

    async def get(self, key: str, *, quorum: bool = False) -> Node:
        return await self._driver.run(self._operations.get(key, quorum=quorum))

    async def get_or(self, key: str, default: T) -> str | T:
        found: str | T = await self._driver.run(self._operations.get_or(key, default))
        return found

    async def get_bytes(self, key: str) -> bytes:
        return await self._driver.run(self._operations.get_bytes(key))

    async def exists(self, key: str) -> bool:
        return await self._driver.run(self._operations.exists(key))

    async def ls(self, key: str = "/", *, recursive: bool = False) -> Tree:
        return await self._driver.run(self._operations.ls(key, recursive=recursive))

    async def iter_ls(self, key: str = "/", *, page: int = PAGE) -> AsyncIterator[Node]:
        after: str | None = None
        while True:
            tree, after = await self._driver.run(self._operations.page(key, after, page))
            for node in tree:
                yield node
            if after is None:
                return

    async def set(
        self,
        key: str,
        value: str,
        *,
        ttl: int | None = None,
        if_index: int | None = None,
        if_value: str | None = None,
        if_exists: bool | None = None,
    ) -> Event:
        return await self._driver.run(
            self._operations.set(
                key, value, ttl=ttl, if_index=if_index, if_value=if_value, if_exists=if_exists
            )
        )

    async def set_bytes(
        self,
        key: str,
        value: bytes,
        *,
        ttl: int | None = None,
        if_index: int | None = None,
        if_value: bytes | None = None,
        if_exists: bool | None = None,
    ) -> Event:
        return await self._driver.run(
            self._operations.set_bytes(
                key, value, ttl=ttl, if_index=if_index, if_value=if_value, if_exists=if_exists
            )
        )

    async def create(self, key: str, value: str, *, ttl: int | None = None) -> Event:
        form = {"value": value, "ttl": ttl, "prevExist": False}
        return await self._driver.run(self._operations.write("PUT", key, form))

    async def append(self, key: str, value: str, *, ttl: int | None = None) -> Event:
        form = {"value": value, "ttl": ttl}
        return await self._driver.run(self._operations.write("POST", key, form))

    async def mkdir(
        self, key: str, *, ttl: int | None = None, exist_ok: bool = False
    ) -> Event | None:
        return await self._driver.run(self._operations.mkdir(key, ttl=ttl, exist_ok=exist_ok))

    async def refresh(self, key: str, ttl: int, *, if_value: str | None = None) -> Event:
        form = {"ttl": ttl, "refresh": True, "prevExist": True, "prevValue": if_value}
        return await self._driver.run(self._operations.write("PUT", key, form))

    async def delete(
        self,
        key: str,
        *,
        recursive: bool = False,
        dir: bool = False,  # noqa: A002 -- etcd's name
        if_index: int | None = None,
        if_value: str | None = None,
        missing_ok: bool = False,
    ) -> Event | None:
        return await self._driver.run(
            self._operations.delete(
                key,
                recursive=recursive,
                dir=dir,
                if_index=if_index,
                if_value=if_value,
                missing_ok=missing_ok,
            )
        )

    async def update(
        self, key: str, change: Callable[[str | None], str | None], *, tries: int = 50
    ) -> Event | None:
        return await self._driver.run(self._operations.update(key, change, tries=tries))

    def watch(
        self,
        key: str,
        *,
        since: int | None = None,
        recursive: bool = True,
        timeout: float | None = None,
    ) -> AsyncWatch:
        watching = Watching(self._operations, key, since, recursive=recursive)
        return AsyncWatch(self._driver, watching, timeout)

    def follow(self, key: str, *, timeout: float | None = None) -> AsyncFollow:
        return AsyncFollow(self._driver, Following(self._operations, key), timeout)

    async def txn(self, ops: Sequence[Op], *, when: Sequence[Compare] = ()) -> list[Event]:
        return await self._driver.run(self._operations.txn(ops, when=when))

    async def history(
        self, key: str, *, limit: int = 100, before: int | None = None
    ) -> list[Event]:
        return await self._driver.run(self._operations.history(key, limit=limit, before=before))

    def lock(
        self, name: str, *, ttl: int = 10, on_lost: Callable[[], object] | None = None
    ) -> AsyncLock:
        return AsyncLock(self._driver, self._operations, name, ttl, on_lost)

    def election(
        self, name: str, *, ttl: int = 10, on_lost: Callable[[], object] | None = None
    ) -> AsyncElection:
        return AsyncElection(self._driver, self._operations, name, ttl, on_lost)

    def queue(self, name: str, *, ttl: int = 10) -> AsyncQueue:
        return AsyncQueue(self._driver, self._operations, name, ttl)

    def counter(self, key: str) -> AsyncCounter:
        return AsyncCounter(self._driver, self._operations, key)

    def barrier(self, key: str) -> AsyncBarrier:
        return AsyncBarrier(self._driver, self._operations, key)


for _name, _method in inspect.getmembers(AsyncClient, inspect.isfunction):
    if not _method.__doc__:
        _method.__doc__ = getattr(Client, _name.replace("__a", "__"), _method).__doc__

"""Steps of operations taken on an event loop."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from kvd.client.sockets import is_readable, keep_alive, tls_context
from kvd.client.wire import Connect, Endpoint, Operation, Receive, Send, Sleep, Step

if TYPE_CHECKING:
    import ssl

T = TypeVar("T")
_RECEIVED_BYTES = 64 << 10


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._loop = asyncio.get_running_loop()

    def is_stale(self) -> bool:
        if self._loop is not asyncio.get_running_loop():
            return True  # of an earlier `asyncio.run`
        if self.reader.at_eof() or self.writer.is_closing():
            return True
        # The loop may not have looked at it since.
        return is_readable(self.writer.get_extra_info("socket").fileno())

    def close(self) -> None:
        with suppress(RuntimeError):  # its loop has ended, and its socket with it
            self.writer.transport.abort()


class AsyncDriver:
    """Takes the steps of operations, on the running loop."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._tls = tls

    async def run(self, operation: Operation[T]) -> T:
        """Return the result of an operation."""
        try:
            step = operation.send(None)
            while True:
                try:
                    done = await self._take(step)
                except BaseException as error:  # noqa: BLE001 -- the operation decides
                    step = operation.throw(error)
                else:
                    step = operation.send(done)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            operation.close()

    async def _take(self, step: Step) -> object:
        match step:
            case Send(connection, data, timeout):
                connection.writer.write(data)
                async with asyncio.timeout(timeout):
                    await connection.writer.drain()
                return None
            case Receive(connection, timeout):
                async with asyncio.timeout(timeout):
                    return await connection.reader.read(_RECEIVED_BYTES)
            case Connect(endpoint, timeout):
                async with asyncio.timeout(timeout):
                    return await self._connect(endpoint)
            case Sleep(seconds):
                await asyncio.sleep(seconds)
                return None

    async def _connect(self, endpoint: Endpoint) -> _Connection:
        if endpoint.tls:
            self._tls = tls_context(self._tls)
        context = self._tls if endpoint.tls else None
        if endpoint.path:
            name = endpoint.tls_name if endpoint.tls else None
            return _Connection(
                *await asyncio.open_unix_connection(
                    endpoint.path, ssl=context, server_hostname=name
                )
            )
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, ssl=context)
        keep_alive(writer.get_extra_info("socket"))
        return _Connection(reader, writer)

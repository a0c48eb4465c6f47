"""HTTP of a client of a trial: what was not sent, what has no response, and what has one."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode

Address = tuple[str, int]
_LINE_BYTES_MAX = 1 << 24
_ASKED_S = 2.0


class NotSent(Exception):
    """The server was not reached: nothing has happened."""


class NoResponse(Exception):
    """The request was sent, or a part of it, and there is no response: it may have happened."""


class Response(NamedTuple):
    status: int
    index: int
    body: Any


class Talk:
    """A connection that is made again when it has failed."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._ends: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(
        self, method: str, target: str, form: Mapping[str, object] | None = None, *, within_s: float
    ) -> Response:
        """Send a request once, and return its response.

        Raises:
            NotSent: there is no connection.
            NoResponse: there is no whole response in time.
        """
        try:
            async with asyncio.timeout(within_s):
                return await self._request(method, target, form or {})
        except TimeoutError:
            was_sent = self._ends is not None
            self.close()
            raise NoResponse("time out") if was_sent else NotSent("time out") from None
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            was_sent = self._ends is not None
            self.close()
            raise NoResponse(repr(error)) if was_sent else NotSent(repr(error)) from None
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        if self._ends is not None:
            self._ends[1].transport.abort()
            self._ends = None

    async def _request(self, method: str, target: str, form: Mapping[str, object]) -> Response:
        reader, writer = await self._connected()
        writer.write(_rendered(method, target, self._address, form))
        status, headers = await _head(reader)
        if "chunked" in headers.get("transfer-encoding", ""):
            data = b"".join([chunk async for chunk in _chunks(reader)])
        else:
            data = await reader.readexactly(int(headers.get("content-length", "0")))
        body = json.loads(data) if data[:1] == b"{" else data
        return Response(status, int(headers.get("x-etcd-index", "0")), body)

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._ends is not None and self._ends[0].at_eof():
            self.close()  # the server has closed it meanwhile: nothing was sent on it
        if self._ends is None:
            self._ends = await _opened(self._address)
        return self._ends


async def watch(address: Address, target: str, *, within_s: float) -> AsyncIterator[Response]:
    """Yield each line of a stream as a response, or the one that refuses it.

    It ends with the connection, or once nothing has come for so long.
    """
    writer = None
    try:
        async with asyncio.timeout(within_s):
            reader, writer = await _opened(address)
            writer.write(_rendered("GET", target, address, {}))
            status, headers = await _head(reader)
            size = int(headers.get("content-length", "0"))
            data = b"" if status == 200 else await reader.readexactly(size)
        index = int(headers.get("x-etcd-index", "0"))
        if status != 200:
            yield Response(status, index, json.loads(data))
            return
        lines = _lines(reader)
        while True:
            async with asyncio.timeout(within_s):
                line = await anext(lines, b"")
            if not line:
                return
            yield Response(status, index, json.loads(line))
    except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
        return
    finally:
        if writer is not None:
            writer.transport.abort()


async def _opened(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(*address, limit=_LINE_BYTES_MAX)


async def ask(address: Address, target: str) -> Response | None:
    """Return the response to a read, None if there is none or it is an error of the server's."""
    talk = Talk(address)
    try:
        response = await talk.request("GET", target, within_s=_ASKED_S)
    except (NotSent, NoResponse):
        return None
    finally:
        talk.close()
    return response if response.status < 500 else None


def _rendered(method: str, target: str, address: Address, form: Mapping[str, object]) -> bytes:
    body = urlencode(form).encode()
    return (
        f"{method} {target} HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip().split("\r\n")
    pairs = (line.split(":", 1) for line in lines)
    return int(first.split(" ", 2)[1]), {name.lower(): text.strip() for name, text in pairs}


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    held = b""
    async for chunk in _chunks(reader):
        *whole, held = (held + chunk).split(b"\n")
        for line in whole:
            if line:
                yield line

"""A raw HTTP/1.1 client: it sends exactly what a scenario says and hides nothing of the answer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

FORM = "application/x-www-form-urlencoded"
ANSWER_TIMEOUT_S = 20.0
LINE_BYTES_MAX = 1 << 26

Address = tuple[str, int]


class NoAnswerError(Exception):
    """The server closed the connection where an answer was due."""


@dataclass(frozen=True)
class Request:
    """A request as a scenario has it; with `raw`, the bytes themselves."""

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    raw: bytes | None = None

    def encode(self, address: Address) -> bytes:
        if self.raw is not None:
            return self.raw
        headers = {"Host": "{}:{}".format(*address), "Accept": "*/*"}
        if self.body is not None or self.method in ("PUT", "POST"):
            headers["Content-Length"] = str(len(self.body or b""))
        if self.body is not None:
            headers["Content-Type"] = FORM
        for name, value in self.headers.items():
            headers[name] = value
            if value == "-":  # a scenario's way to leave a header out
                del headers[name]
        lines = [f"{self.method} {self.target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + (self.body or b"")


@dataclass
class Answer:
    """An answer, or as much of it as has come; header names in lower case."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Connection:
    """A keep-alive connection, opened when it is first needed and again after it was closed."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._method = ""

    async def call(self, request: Request) -> Answer:
        """Send a request and read its whole answer."""

        async def exchange() -> Answer:
            answer = await self.send(request)
            answer.body = b"".join([piece async for piece in self.pieces(answer)])
            return answer

        try:
            return await asyncio.wait_for(exchange(), ANSWER_TIMEOUT_S)
        except (NoAnswerError, TimeoutError, OSError):
            self.close()
            return Answer()

    async def send(self, request: Request) -> Answer:
        """Send a request and read the head of its answer."""
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(
                *self.address, limit=LINE_BYTES_MAX
            )
        self._method = request.method
        try:
            self._writer.write(request.encode(self.address))
            await self._writer.drain()
        except OSError:
            pass  # the server may have answered and closed already
        try:
            answer = await self._head(self._reader)
            while answer.status < 200:
                answer = await self._head(self._reader)
        except OSError as error:
            raise NoAnswerError from error
        return answer

    async def pieces(self, answer: Answer) -> AsyncIterator[bytes]:
        """The body of an answer as it comes."""
        assert self._reader is not None
        keep = answer.headers.get("connection", "").lower() != "close"
        try:
            if self._method == "HEAD" or answer.status in (204, 304):
                pass
            elif "chunked" in answer.headers.get("transfer-encoding", ""):
                while size := int((await self._reader.readline()).split(b";")[0] or b"0", 16):
                    yield await self._reader.readexactly(size)
                    await self._reader.readline()
                await self._reader.readline()
            elif "content-length" in answer.headers:
                yield await self._reader.readexactly(int(answer.headers["content-length"]))
            else:
                keep = False
                while piece := await self._reader.read(65536):
                    yield piece
        except (asyncio.IncompleteReadError, OSError, ValueError):
            keep = False
        if not keep:
            self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    @staticmethod
    async def _head(reader: asyncio.StreamReader) -> Answer:
        line = await reader.readline()
        if not line.startswith(b"HTTP/"):
            raise NoAnswerError
        answer = Answer(int(line.split()[1]))
        while (header := await reader.readline()) not in (b"\r\n", b"\n", b""):
            name, _, value = header.decode("latin-1").partition(":")
            answer.headers[name.strip().lower()] = value.strip()
        return answer


class BackgroundRequest:
    """A request left open while others are made; its body is gathered as it comes."""

    # How long an open watch must stay silent to count as silent.
    SETTLE_S = 0.12
    # Longer than any server needs for its headers: what comes later did not come before the events.
    HEAD_TIMEOUT_S = 2.0

    def __init__(self, address: Address) -> None:
        self._connection = Connection(address)
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()
        self.answer = Answer()
        self.head_came_early = False
        self.complete = False

    @property
    def lines(self) -> list[bytes]:
        return [line for line in self.answer.body.split(b"\n") if line]

    async def start(self, request: Request) -> None:
        """Send the request and give its headers time to come."""
        self._task = asyncio.create_task(self._run(request))
        await self._wait_for(lambda: self.complete or self.answer.status != 0, self.HEAD_TIMEOUT_S)
        self.head_came_early = self.answer.status != 0

    async def wait(self, seconds: float, *, events: int | None) -> None:
        """Wait for the end of the answer, or for so many events and a moment of silence."""

        def enough() -> bool:
            return self.complete or (events is not None and len(self.lines) >= events)

        await self._wait_for(enough, seconds)
        if not self.complete and events is not None:
            await self._wait_for(lambda: self.complete, self.SETTLE_S)

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._connection.close()

    async def _wait_for(self, predicate: Callable[[], bool], seconds: float) -> None:
        async with self._changed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(predicate), seconds)

    async def _run(self, request: Request) -> None:
        with contextlib.suppress(NoAnswerError):
            answer = await self._connection.send(request)
            await self._update(answer)
            async for piece in self._connection.pieces(answer):
                answer.body += piece
                await self._update(answer)
        self.complete = True
        await self._update(self.answer)

    async def _update(self, answer: Answer) -> None:
        async with self._changed:
            self.answer = answer
            self._changed.notify_all()

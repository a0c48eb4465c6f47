"""A TCP proxy on the test's own event loop that fails as networks do."""

import asyncio
import contextlib


class TcpProxy:
    """Leads from `port` to a port of this machine."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._is_mute = False
        self._is_parted = False
        self.port = 0

    async def start(self) -> "TcpProxy":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def mute(self) -> None:
        """Let requests through and lose every response until `heal`."""
        self._is_mute = True

    def part(self) -> None:
        """Break all connections, and each new one, until `heal`."""
        self._is_parted = True
        self.cut()

    def cut(self) -> None:
        """Break all connections."""
        for writer in self._writers:
            writer.transport.abort()

    def heal(self) -> None:
        """Let new connections through; those that have lost something are broken."""
        if self._is_mute:
            self.cut()
        self._is_mute = self._is_parted = False

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self.cut()
            await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_parted:
            writer.transport.abort()
            return
        try:
            answers, requests = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        ends = {writer, requests}
        self._writers |= ends
        try:
            await asyncio.gather(
                self._copy(reader, requests), self._copy(answers, writer, loses=True)
            )
        finally:
            self._writers -= ends
            for end in ends:
                end.transport.abort()

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, loses: bool = False
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if not (loses and self._is_mute):
                    writer.write(data)
                    await writer.drain()
        # One side's end is that of both.
        writer.transport.abort()

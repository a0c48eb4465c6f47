"""A kvd inside this process, for what no stopwatch can tell: calls, bytecodes, memory.

It is the whole server as `kvd` starts it, on a thread of its own and on asyncio's own loop; its
clients are sockets of the caller's thread. So what is counted on the server's threads is all that a
request costs there, whatever the server is made of.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from bench.load.wire import ANSWER_TIMEOUT_S, Answer, LoadError, is_complete, parse, render
from kvd.config import load
from kvd.server import KvdServer
from kvd.storage import aio
from kvd.storage.wal import ring_sync

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

HOST = "127.0.0.1"
_MEMORY = "/dev/shm"
_STORES_BYTES = 1 << 30  # one store for each kind of figure, each with two segments reserved
_BUFFER = memoryview(bytearray(1 << 20))
"""Where every answer is read, so that reading takes no memory; larger ones are not for here."""


class Inside:
    """A running server, and connections to it."""

    def __init__(self, directory: Path, *flags: str, connections: int = 1) -> None:
        url = f"http://{HOST}:0"
        # Some connections wait for their case to come.
        patient = ("--header-timeout-s", "3600")
        arguments = ["--data-dir", str(directory), "--listen-client-urls", url, *patient, *flags]
        parsed = load.parse(arguments)
        assert isinstance(parsed, load.Config)
        self._server = KvdServer(parsed)
        self._loop = asyncio.new_event_loop()
        self._connections = connections
        self._thread = threading.Thread(target=self._loop.run_forever, name="kvd", daemon=True)
        self.sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._server.start(), self._loop).result()
        port = urlsplit(self._server.urls[0]).port
        assert port is not None
        for _ in range(self._connections):
            self.sockets.append(socket.create_connection((HOST, port), timeout=ANSWER_TIMEOUT_S))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for connected in self.sockets:
            connected.close()
        asyncio.run_coroutine_threadsafe(self._server.stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def request(self, method: str, path: str, body: bytes = b"") -> Answer:
        """Send one request on the first connection, and return its answer; see `receive`."""
        return self.exchange(0, render(method, path, body))

    def exchange(self, connection: int, request: bytes) -> Answer:
        """Send a rendered request on a connection, and return its answer; see `receive`."""
        self.sockets[connection].sendall(request)
        return self.receive(connection)

    def receive(self, connection: int) -> Answer:
        """Return the answer on a connection.

        Raises:
            LoadError: the request was refused, or the connection closed.
        """
        answer = parse(self.receive_until(connection, is_complete))
        if not answer.ok:
            raise LoadError(f"refused: {answer}")
        return answer

    def receive_until(self, connection: int, is_enough: Callable[[bytes], bool]) -> bytes:
        """Read from a connection until what has come is enough, and return it.

        Raises:
            LoadError: the connection was closed.
        """
        received = 0
        while not received or not is_enough(bytes(_BUFFER[:received])):
            piece = self.sockets[connection].recv_into(_BUFFER[received:])
            if not piece:
                raise LoadError("the server closed the connection instead of answering")
            received += piece
        return bytes(_BUFFER[:received])

    def send_together(self, requests: Sequence[bytes]) -> None:
        """Send one request on each connection while the server's loop is held.

        So it finds them all in the same turn of its loop, and makes one batch of those that write.
        """
        with self.held():
            for connected, request in zip(self.sockets, requests, strict=False):
                connected.sendall(request)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the server's loop meanwhile."""
        stands, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            stands.set()
            go_on.wait(ANSWER_TIMEOUT_S)

        self._loop.call_soon_threadsafe(hold)
        stands.wait(ANSWER_TIMEOUT_S)
        try:
            yield
        finally:
            go_on.set()

    def flush(self) -> None:
        """Have the index take everything, and forget what is kept of it in memory."""

        def flush() -> None:
            self._server._parts.committer.flusher.flush()
            self._server._monitoring.syncs.fold()
            self._server.store.state.nodes.clear()
            done.set()

        done = threading.Event()
        self._loop.call_soon_threadsafe(flush)
        done.wait(ANSWER_TIMEOUT_S)

    def settle(self) -> None:
        """Wait until the server has done what was due when this was called."""
        with self.held():
            pass


def wait_for_syncs() -> None:
    """Have servers made from now on wait for each sync, however busy the machine is.

    Otherwise what a write calls depends on whether the sync ends within a millisecond.
    """
    for module in (aio, ring_sync):
        module.WAIT_S = module.BRIEFLY_S = 0.9


def in_memory() -> str | None:
    """Return a directory in memory with room for the stores, None where there is none."""
    try:
        is_wide = shutil.disk_usage(_MEMORY).free >= _STORES_BYTES
    except OSError:
        return None
    return _MEMORY if is_wide and os.access(_MEMORY, os.W_OK) else None

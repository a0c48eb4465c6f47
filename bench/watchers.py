"""Many watches of one key, and how long after a write the last of them is told."""

from __future__ import annotations

import select
import socket
import time
from typing import TYPE_CHECKING, Self

from bench.wire import ANSWER_TIMEOUT_S, RECEIVE_BYTES, Client, LoadError, render

if TYPE_CHECKING:
    from types import TracebackType

    from bench.wire import Address

PATH = "/v2/keys/bench/watched"


class Watchers:
    """`count` connections that watch one key, and one more that writes it.

    A watch is known to stand when its headers have arrived, for servers send them as soon as it is
    registered.
    """

    def __init__(self, address: Address, count: int, *, stream: bool) -> None:
        self.request = render("GET", PATH + "?wait=true" + ("&stream=true" if stream else ""))
        self.stream = stream
        self.writer = Client(address)
        self.epoll = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        self.writes = 0
        for _ in range(count):
            watcher = socket.create_connection(address, timeout=ANSWER_TIMEOUT_S)
            self.sockets[watcher.fileno()] = watcher
            self.epoll.register(watcher.fileno(), select.EPOLLIN)
        if stream:
            self.register()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.writer.close()
        self.epoll.close()
        for watcher in self.sockets.values():
            watcher.close()

    def register(self) -> None:
        """Send all watch requests and wait for all their headers."""
        for watcher in self.sockets.values():
            watcher.sendall(self.request)
        self.await_all(b"\r\n\r\n")

    def prepare(self) -> None:
        """Make all watches stand: long polls are asked anew after an event, streams are not."""
        if not self.stream:
            self.register()

    def tell(self) -> float:
        """Write the key and wait until every watcher has the event.

        Returns:
            Seconds from before the write was sent until the last watcher had read its event.
        """
        self.writes += 1
        value = b"write-%09d" % self.writes
        started_s = time.perf_counter()
        self.writer.socket.sendall(render("PUT", PATH, b"value=" + value))
        # A long poll is over with its last chunk, a stream's event with the chunk's own end.
        self.await_all(value, b"\r\n0\r\n\r\n" if not self.stream else b"}\n\r\n")
        told_s = time.perf_counter() - started_s
        self.writer.socket.recv(RECEIVE_BYTES)
        return told_s

    def await_all(self, *parts: bytes) -> None:
        """Read until each watcher has received all parts.

        Raises:
            LoadError: a watch was closed, or nobody was told anything for a minute.
        """
        received = dict.fromkeys(self.sockets, b"")
        while received:
            ready = self.epoll.poll(ANSWER_TIMEOUT_S)
            if not ready:
                raise LoadError(f"{len(received)} watchers were not told within a minute")
            for fd, _ in ready:
                piece = self.sockets[fd].recv(RECEIVE_BYTES)
                if not piece or fd not in received:
                    raise LoadError(f"a watch ended, or was told twice: {piece!r}")
                received[fd] += piece
                if all(part in received[fd] for part in parts):
                    del received[fd]

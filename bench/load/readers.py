"""Readers next to another load, in a process of their own: each reads one key again and again.

    .venv/bin/python -m bench.load.readers 127.0.0.1 2379 64

Each connection has one request in flight. They read until their standard input ends; for each line
that comes there they tell how many answers they have had.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Self

from bench.load.servers import CHECKOUT
from bench.load.wire import LoadError, is_complete, render

if TYPE_CHECKING:
    from types import TracebackType

    from bench.load.wire import Address

KEY = "/v2/keys/beside"


class Readers:
    """So many readers of one server, from entering to leaving."""

    def __init__(self, address: Address, connections: int) -> None:
        self._command = [
            sys.executable,
            "-m",
            "bench.load.readers",
            *map(str, (*address, connections)),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start them, and wait until each has been answered once.

        Raises:
            LoadError: they could not read.
        """
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, cwd=CHECKOUT)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"reading\n":
            self._process.wait()
            raise LoadError("the readers beside the load could not read")
        return self

    def answered(self) -> int:
        """Return how many answers they have had so far.

        Raises:
            LoadError: one of them had none.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())
        except (OSError, ValueError):
            raise LoadError("a reader beside the load was not answered") from None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self._process.communicate()
        if self._process.returncode and error is None:
            raise LoadError("a reader beside the load was not answered")


def read(address: Address, connections: int) -> None:
    """Read until standard input ends; say when each connection has been answered once."""
    request = render("GET", KEY)
    asked = sys.stdin.fileno()
    waiting = select.epoll()
    waiting.register(asked, select.EPOLLIN | select.EPOLLHUP)
    readers: dict[int, tuple[socket.socket, bytearray]] = {}
    for _ in range(connections):
        reader = socket.create_connection(address)
        reader.sendall(request)
        readers[reader.fileno()] = (reader, bytearray())
        waiting.register(reader, select.EPOLLIN)
    answered: set[int] = set()
    answers = 0
    while True:
        for number, _ in waiting.poll():
            if number == asked:
                if not os.read(asked, 1):
                    return
                report(str(answers))
                continue
            reader, received = readers[number]
            piece = reader.recv(65536)
            if not piece:
                raise LoadError("a connection was closed")
            received += piece
            if is_complete(received):
                received.clear()
                reader.sendall(request)
                answers += 1
                if len(answered) < connections:
                    answered.add(number)
                    if len(answered) == connections:
                        report("reading")


def report(line: str) -> None:
    """Say something to the process that has asked."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    read((sys.argv[1], int(sys.argv[2])), int(sys.argv[3]))

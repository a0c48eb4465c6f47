"""Many watches of one key, and how long after a write the last of them has its event.

`Watchers` holds the connections. `WatchersProcess` holds them in a process of its own, so that
reading ten thousand of them does not take the interpreter from the process that measures:

    python -m bench.load.watchers HOST PORT COUNT STREAM     says `register`, `await VALUE`, by line
"""

from __future__ import annotations

import resource
import select
import socket
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Self

from bench.load import servers
from bench.load.wire import ANSWER_TIMEOUT_S, RECEIVE_BYTES, Client, LoadError, render

if TYPE_CHECKING:
    from types import TracebackType

    from bench.load.wire import Address

PATH = "/v2/keys/bench/watched"
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: close at once, so that ten thousand ports do not wait for a minute."""


class Watchers:
    """`count` connections that watch one key.

    A watch is known to stand when its headers have arrived, for servers send them as soon as it is
    registered.
    """

    def __init__(self, address: Address, count: int, *, stream: bool) -> None:
        self.request = render("GET", PATH + "?wait=true" + ("&stream=true" if stream else ""))
        # A long poll is over with its last chunk, a stream's event with the chunk's own end.
        self.end = b"}\n\r\n" if stream else b"\r\n0\r\n\r\n"
        self.stream = stream
        self.registered = False
        self.epoll = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        for _ in range(count):
            watcher = socket.create_connection(address, timeout=ANSWER_TIMEOUT_S)
            watcher.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.sockets[watcher.fileno()] = watcher
            self.epoll.register(watcher.fileno(), select.EPOLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.epoll.close()
        for watcher in self.sockets.values():
            watcher.close()

    def register(self) -> None:
        """Open all watches: long polls again after an event, streams once."""
        if self.registered and self.stream:
            return
        for watcher in self.sockets.values():
            watcher.sendall(self.request)
        self.await_all(b"\r\n\r\n", b"")
        self.registered = True

    def await_delivered(self, value: bytes) -> int:
        """Wait until every watcher has the event that wrote a value.

        Returns:
            When the last had it, in ns of `time.perf_counter_ns`.
        """
        self.await_all(value, self.end)
        return time.perf_counter_ns()

    def await_all(self, part: bytes, end: bytes) -> None:
        """Read until each watcher has received something with this part and this end.

        Raises:
            LoadError: a watch was closed, or no watch had an event for a minute.
        """
        left = dict.fromkeys(self.sockets, b"")
        sockets, poll = self.sockets, self.epoll.poll
        while left:
            ready = poll(ANSWER_TIMEOUT_S)
            if not ready:
                raise LoadError(f"{len(left)} watchers received nothing within a minute")
            for fd, _ in ready:
                piece = sockets[fd].recv(RECEIVE_BYTES)
                if not piece or fd not in left:
                    raise LoadError(f"a watch ended, or received it twice: {piece!r}")
                received = left[fd] + piece
                if part in received and received.endswith(end):
                    del left[fd]
                else:
                    left[fd] = received


class WatchersProcess:
    """`count` watchers in a process of their own; the writer is here."""

    def __init__(self, address: Address, count: int, *, stream: bool) -> None:
        self._process = subprocess.Popen(
            [
                *servers.die_with_parent(), sys.executable, "-m", "bench.load.watchers",
                address[0], str(address[1]), str(count), str(int(stream)),
            ],
            cwd=servers.CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._writer = Client(address)
        self._writes = 0
        self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def register(self) -> None:
        """Open all watches."""
        self._say("register")
        self._answer()

    def spans(self) -> tuple[int, int]:
        """Write the key; return when that was sent and when the last watcher had it, in ns."""
        self._writes += 1
        value = f"write-{self._writes:09d}"
        self._say(f"await {value}")
        self._answer()
        sent_ns = time.perf_counter_ns()
        answer = self._writer.request("PUT", PATH, b"value=" + value.encode())
        if not answer.ok:
            raise LoadError(f"the watched key could not be written: {answer}")
        return sent_ns, int(self._answer())

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            assert self._process.stderr is not None
            raise LoadError(f"the watchers failed: {self._process.stderr.read()[-2000:]}")
        return line.strip()


def main() -> int:
    """Hold the watchers, and do what is said on stdin; each line is answered with one."""
    host, port, count, stream = sys.argv[1:]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with Watchers((host, int(port)), int(count), stream=stream == "1") as watchers:
        print("connected", flush=True)
        for line in sys.stdin:
            verb, _, value = line.strip().partition(" ")
            if verb == "register":
                watchers.register()
                print("registered", flush=True)
            else:
                print("waiting", flush=True)
                print(watchers.await_delivered(value.encode()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

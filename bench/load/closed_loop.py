"""The bundled generator: many keep-alive connections from one thread, closed loop, over epoll.

Each connection has one request in flight and sends the next as soon as the answer is in. Nothing of
asyncio is between the socket and the script: what this costs per request stands in bench/README.md.
"""

from __future__ import annotations

import gc
import resource
import select
import socket
import sys
import time
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench.load.wire import ANSWER_TIMEOUT_S, RECEIVE_BYTES, LoadError, is_complete

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bench.load.wire import Address
    from bench.load.workloads import Script


PERCENTS = (1, 10, 25, 50, 75, 90, 95, 99, 99.9, 99.99)


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one run of one generator; only answers inside the timed window count."""

    generator: str
    requests: int
    errors: int
    seconds: float
    p50_us: float
    p99_us: float
    generator_cpu_us: float
    """User and system time that the generator itself spent per request."""
    server_cpu_us: float = 0.0
    """User and system time that the server spent per request; 0 if unknown."""
    get_p99_us: float = 0.0
    """The p99 of the reads alone, where a load mixes them with writes."""
    latencies_us: tuple[float, ...] = ()
    """The latencies at `PERCENTS`: their distribution."""

    @property
    def rate(self) -> float:
        """Requests answered per second."""
        return self.requests / self.seconds

    def refuse_errors(self) -> None:
        """Raise `LoadError` when any request was refused: refusals are faster than work."""
        if self.errors:
            raise LoadError(f"{self.errors} of {self.requests} requests were refused")


@dataclass(slots=True)
class Samples:
    """Every answer that counted: how long it took, when it came, whether it was to a GET.

    Times are of `time.perf_counter_ns`, which all processes of a machine share on Linux.
    """

    latency_ns: array[int] = field(default_factory=lambda: array("Q"))
    answered_ns: array[int] = field(default_factory=lambda: array("Q"))
    is_get: bytearray = field(default_factory=bytearray)

    def note(self, request: bytes, latency_ns: int, answered_ns: int) -> None:
        """Add one answer."""
        self.latency_ns.append(latency_ns)
        self.answered_ns.append(answered_ns)
        self.is_get.append(request[0] == _G)


_G = ord("G")


class Connection:
    """One socket and its script."""

    __slots__ = ("partial", "request", "script", "sent_at_ns", "socket")

    def __init__(self, address: Address, script: Script) -> None:
        self.socket = socket.create_connection(address, timeout=ANSWER_TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.script = script
        self.partial: bytearray | None = None
        self.request = b""
        self.sent_at_ns = 0

    def send(self, request: bytes) -> None:
        """Send a whole request; one that does not fit the socket's buffer is waited for."""
        self.request = request
        try:
            sent = self.socket.send(request)
        except BlockingIOError:
            sent = 0
        if sent < len(request):
            self.socket.settimeout(ANSWER_TIMEOUT_S)
            self.socket.sendall(request[sent:])
            self.socket.setblocking(False)

    def receive(self) -> bytes | None:
        """Return the answer once it is complete, None before.

        Raises:
            LoadError: the server closed the connection.
        """
        received = self.socket.recv(RECEIVE_BYTES)
        if not received:
            raise LoadError("the server closed the connection instead of answering")
        if self.partial is None:
            if is_complete(received):
                return received
            self.partial = bytearray(received)
            return None
        self.partial += received
        if not is_complete(self.partial):
            return None
        answer = bytes(self.partial)
        self.partial = None
        return answer


def drive(
    address: Address,
    scripts: Iterable[Script],
    *,
    seconds: float | None = None,
    samples: Samples | None = None,
) -> Figures:
    """Run one connection per script for `seconds`, or until all scripts have ended.

    At the end of the time no further request is sent; answers still under way are waited for and
    given to their scripts, so that the scripts know all that was acknowledged, but are not counted.
    `samples` is filled with each answer that counts.

    Raises:
        LoadError: a connection broke, or nothing was answered for a minute.
    """
    connections: dict[int, Connection] = {}
    with select.epoll() as epoll:
        try:
            for script in scripts:
                connection = Connection(address, script)
                connections[connection.socket.fileno()] = connection
                epoll.register(connection.socket.fileno(), select.EPOLLIN)
            # A collection in the middle of a run would count as a latency of the server.
            gc.disable()
            return spin(epoll, connections, seconds, samples or Samples())
        finally:
            gc.enable()
            for connection in connections.values():
                connection.socket.close()


def spin(
    epoll: select.epoll,
    connections: dict[int, Connection],
    seconds: float | None,
    samples: Samples,
) -> Figures:
    """Send the first requests, then answer answers with requests until nothing is under way."""
    clock = time.perf_counter_ns
    errors = 0
    cpu_s = own_cpu_s()
    started_ns = clock()
    end_ns = started_ns + int(seconds * 1e9) if seconds is not None else sys.maxsize
    active = sum(map(send_first, connections.values()))
    while active:
        ready = epoll.poll(ANSWER_TIMEOUT_S)
        if not ready:
            raise LoadError(f"{active} requests without an answer for {ANSWER_TIMEOUT_S:.0f} s")
        for fd, _ in ready:
            connection = connections[fd]
            answer = connection.receive()
            if answer is None:
                continue
            now_ns = clock()
            if now_ns < end_ns:
                samples.note(connection.request, now_ns - connection.sent_at_ns, now_ns)
                errors += answer[9:10] != b"2"
            try:
                request = connection.script.send(answer)
            except StopIteration:
                active -= 1
                continue
            if now_ns >= end_ns:
                active -= 1
                continue
            connection.sent_at_ns = clock()
            connection.send(request)
    elapsed_s = (min(clock(), end_ns) - started_ns) / 1e9
    return summarize(samples.latency_ns, errors, elapsed_s, own_cpu_s() - cpu_s)


def send_first(connection: Connection) -> bool:
    """Send the first request of a connection; return whether its script has one."""
    request = next(connection.script, None)
    if request is None:
        return False
    connection.sent_at_ns = time.perf_counter_ns()
    connection.send(request)
    return True


def summarize(latencies_ns: array[int], errors: int, elapsed_s: float, cpu_s: float) -> Figures:
    """Turn one latency per answer into figures; the percentiles are exact."""
    ordered = sorted(latencies_ns)
    return Figures(
        generator="python",
        requests=len(latencies_ns),
        errors=errors,
        seconds=elapsed_s,
        p50_us=percentile(ordered, 50) / 1e3,
        p99_us=percentile(ordered, 99) / 1e3,
        generator_cpu_us=cpu_s * 1e6 / max(len(latencies_ns), 1),
        latencies_us=tuple(percentile(ordered, percent) / 1e3 for percent in PERCENTS),
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the value that so many percent of a sorted list are below; 0 of an empty one."""
    if not ordered:
        return 0
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]


def own_cpu_s() -> float:
    """Return the user and system time that this process has used so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime

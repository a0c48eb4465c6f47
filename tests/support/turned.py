"""A server on a loop that is turned step by step."""

import asyncio
import contextlib
import socket

import pytest

from kvd.http.connection import Connection
from kvd.http.parsing.request_parser import SHORT_LINE_BYTES, is_deep
from kvd.http.server import Delegate, HttpServer, Limits
from kvd.limits.memory_budget import MemoryBudget
from kvd.limits.turns import Turns

LOOPS = ["asyncio", "uvloop"]
READ = b"GET /v2/keys/a HTTP/1.1\r\nHost: h\r\n\r\n"
WRITE = b"PUT /v2/keys/a HTTP/1.1\r\nHost: h\r\n\r\n"
OTHER = b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n"
CHUNKED = b"PUT /v2/keys/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def new_loop(name):
    if name == "uvloop":
        return pytest.importorskip("uvloop").new_event_loop()
    return asyncio.new_event_loop()


class Served(Delegate):
    """Answers at once, and counts what the present turn has cost, by kind."""

    def __init__(self, loop):
        self.loop = loop
        self.turn = 0
        self.log = []
        """The turn and the kind of each request, and of each piece of a body."""
        loop.call_soon(self._next)

    def _next(self):
        self.turn += 1
        self.loop.call_soon(self._next)

    def serve_whole(self, connection, request):
        line = request.partition(b"\r\n")[0]
        is_whole = request.find(b"\r\n\r\n") == len(request) - 4
        is_costly = len(line) > SHORT_LINE_BYTES and is_deep(line, len(line))
        if b"/v2/keys/" not in line or not is_whole or is_costly:
            return None
        self.log.append((self.turn, line.split()[0].decode(), id(connection)))
        return ANSWER

    def start_request(self, connection):
        return Other(self, connection)

    def in_one_turn(self, kind):
        counts = {}
        for turn, what, _ in self.log:
            if what == kind:
                counts[turn] = counts.get(turn, 0) + 1
        return max(counts.values())


class Other:
    """A request that is not served the short way."""

    def __init__(self, served, connection):
        self._served, self._connection = served, connection

    def headers_received(self, start_line, headers):
        self._kind = start_line.method if "/v2/keys/" in start_line.path else "other"

    def data_received(self, chunk):
        self._served.log.append((self._served.turn, "piece", len(chunk)))

    def finish(self):
        self._served.log.append((self._served.turn, self._kind, id(self._connection)))
        self._connection.respond(200, b"", b"")

    def on_connection_close(self):
        pass


class Running:
    """A server on a loop of its own, with clients in the same thread."""

    def __init__(self, loop, connect=None):
        self.loop = loop
        self.served = Served(loop)
        self.turns = Turns(loop)
        self.server = HttpServer(
            self.served, Limits(), loop, MemoryBudget(1 << 28), turns=self.turns
        )
        self.connect = connect(self) if connect else lambda: Connection(self.server)
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.listening = loop.run_until_complete(
            loop.create_server(self.connect, sock=self.socket, backlog=256)
        )
        self.clients = []

    def client(self, sent):
        client = socket.create_connection(self.socket.getsockname())
        client.setblocking(False)
        self.clients.append(client)
        client.send(sent)
        return client

    def many(self, count, sent):
        """Clients in groups that fit the backlog."""
        made = []
        for _ in range(0, count, 100):
            made += [self.client(sent) for _ in range(100)]
            self.until(lambda: len(self.server.connections) == len(self.clients))
        return made

    def until(self, holds):
        async def wait():
            async with asyncio.timeout(60):
                while not holds():
                    for client in self.clients:
                        with contextlib.suppress(BlockingIOError):
                            client.recv(1 << 20)
                    await asyncio.sleep(0)

        self.loop.run_until_complete(wait())

    def close(self):
        while self.clients:
            self.clients.pop().close()
        self.listening.close()
        self.until(lambda: not self.server.connections)


def asked(running, kind):
    return [entry for entry in running.served.log if entry[1] == kind]

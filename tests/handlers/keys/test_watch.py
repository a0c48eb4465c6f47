"""Sending an event to many connections past the event loop, and when not to."""

import asyncio
import contextlib
import errno
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from tornado import httputil

from kvd.core.watch.watchers import Watcher
from kvd.handlers.keys.watch import WatchAnswers
from kvd.http.connection import Connection
from kvd.http.server import Delegate, HttpServer, Limits
from kvd.limits.memory_budget import MemoryBudget, Values
from tests.support.committing import on_a_loop, turns
from tests.support.log_texts import log_text
from tests.support.raw import request
from tests.support.waiting import until

COUNT = 8
MIB = 1 << 20
ASKED = request("GET", "/")


class Watching(Delegate):
    """Answers every request with a stream."""

    def __init__(self):
        self.cut = 0
        memory = MemoryBudget(64 * MIB)
        responder: Any = SimpleNamespace(
            head=lambda index: b"X-Etcd-Index: %d\r\n" % index, count=self._count
        )
        store: Any = None
        self.answers = WatchAnswers(store, memory, Values(memory), responder, stream_bytes_max=MIB)
        self.watchers: list[Watcher] = []
        loop = asyncio.get_running_loop()
        self.server = HttpServer(self, Limits(), loop, memory)

    def _count(self, _reason):
        self.cut += 1

    def serve_whole(self, _connection, _request):
        return None

    def start_request(self, connection):
        request = httputil.HTTPMessageDelegate()
        request.finish = lambda: self._begin(connection)
        return request

    def _begin(self, connection):
        answer = self.answers.begin(connection, stream=True)
        answer.begin(1)
        watcher = Watcher.__new__(Watcher)
        watcher.sink = answer
        self.watchers.append(watcher)

    def deliver(self, body):
        self.answers.deliver_all(self.watchers, body)

    def connections(self):
        return [watcher.sink.connection for watcher in self.watchers]


@contextlib.asynccontextmanager
async def watched(count=COUNT):
    """Streams, and the other ends of their connections, in the same order."""
    loop = asyncio.get_running_loop()
    watching = Watching()
    listening = await loop.create_server(lambda: Connection(watching.server), "127.0.0.1", 0)
    address = listening.sockets[0].getsockname()
    clients = []
    with contextlib.ExitStack() as stack:
        for number in range(count):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(address)
            client.setblocking(False)
            client.sendall(ASKED)
            clients.append(client)
            await until(lambda number=number: len(watching.watchers) > number)
        for client in clients:
            await until(lambda client=client: read(client).endswith(b"\r\n\r\n"))
        yield watching, clients
        watching.answers.close()
        listening.close()


def read(client):
    """Everything that has come."""
    received = b""
    with contextlib.suppress(BlockingIOError):
        while piece := client.recv(MIB):
            received += piece
    return received


async def read_up_to(client, end):
    received = b""
    while not received.endswith(end):
        received += read(client)
        await asyncio.sleep(0)
    return received


def chunk(body):
    return b"%x\r\n%b\r\n" % (len(body), body)


@on_a_loop
async def test_it_is_there_at_once_without_a_turn_of_the_loop():
    async with watched() as (watching, clients):
        watching.deliver(b"one")
        watching.deliver(b"two")
        assert [read(client) for client in clients] == [chunk(b"one") + chunk(b"two")] * COUNT


@on_a_loop
async def test_what_still_has_to_be_sent_comes_before_it():
    """The client reads again, and the loop has not yet taken notice."""
    async with watched() as (watching, clients):
        slow, body = watching.connections()[3], b"x" * 8000
        sent = 0
        while not slow.pending():
            watching.deliver(body)
            sent += 1
        assert slow.writable
        assert sent > 1
        received = read(clients[3])
        watching.deliver(b"last")
        received += await read_up_to(clients[3], chunk(b"last"))
        assert received == sent * chunk(body) + chunk(b"last")


@on_a_loop
async def test_what_waits_for_its_turn_to_be_sent_comes_before_it():
    """A large event is sent in slices, in turns to come."""
    async with watched() as (watching, clients):
        body = b"x" * 300_000
        watching.deliver(body)
        watching.deliver(b"last")
        assert [await read_up_to(client, chunk(b"last")) for client in clients] == [
            chunk(body) + chunk(b"last")
        ] * COUNT


@on_a_loop
async def test_one_that_has_left_is_sent_nothing_though_its_socket_is_in_use_again():
    async with watched() as (watching, clients):
        left = watching.connections()[2]
        file = left.file
        clients[2].close()
        await until(lambda: left.gone)
        await turns()
        with contextlib.ExitStack() as stack:
            while True:
                here, there = map(stack.enter_context, socket.socketpair())
                here.setblocking(False)
                there.setblocking(False)
                if file in (here.fileno(), there.fileno()):
                    break
            watching.deliver(b"one")
            assert read(here if file == there.fileno() else there) == b""
        others = [client for client in clients if client is not clients[2]]
        assert [read(client) for client in others] == [chunk(b"one")] * (COUNT - 1)


@on_a_loop
async def test_one_that_is_aborted_is_sent_nothing_more():
    async with watched() as (watching, clients):
        watching.deliver(b"one")
        watching.connections()[1].abort()
        watching.deliver(b"two")
        assert read(clients[0]) == chunk(b"one") + chunk(b"two")
        assert read(clients[1]) == chunk(b"one")


@on_a_loop
async def test_one_that_has_ended_receives_nothing_though_its_connection_goes_on():
    async with watched() as (watching, clients):
        watching.watchers[4].sink.end()
        assert await read_up_to(clients[4], b"0\r\n\r\n") == b"0\r\n\r\n"
        watching.deliver(b"one")
        assert read(clients[4]) == b""
        clients[4].sendall(ASKED)
        await until(lambda: len(watching.watchers) > COUNT)
        await until(lambda: read(clients[4]).endswith(b"\r\n\r\n"))
        watching.deliver(b"two")
        assert read(clients[4]) == chunk(b"two")


@on_a_loop
async def test_a_connection_that_breaks_meanwhile_costs_the_others_nothing():
    async with watched() as (watching, clients):
        reset = b"\1\0\0\0\0\0\0\0"
        broken = watching.connections()[0]
        clients[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        clients[0].close()
        watching.deliver(b"one")
        watching.deliver(b"two")
        assert [read(client) for client in clients[1:]] == [chunk(b"one") + chunk(b"two")] * 7
        await until(lambda: broken.gone)


@on_a_loop
async def test_one_that_reads_nothing_is_cut():
    async with watched() as (watching, clients):
        body = b"x" * 8000
        while not watching.cut:
            watching.deliver(body)
            for client in clients[1:]:
                read(client)
            await asyncio.sleep(0)
        assert watching.cut == 1
        assert watching.connections()[0].gone


@on_a_loop
async def test_where_it_is_not_known_what_was_sent_all_of_them_are_cut(monkeypatch, caplog):
    async with watched() as (watching, clients):
        watching.deliver(b"one")

        def lose(*_):
            raise OSError(errno.EIO, "lost")

        monkeypatch.setattr(watching.answers._batch, "send", lose)
        watching.deliver(b"two")
        assert all(connection.gone for connection in watching.connections())
        assert log_text("it is not known what they were sent") in caplog.text
        await turns()
        for client in clients:
            with pytest.raises((ConnectionError, AssertionError)):
                assert read(client) != chunk(b"one")

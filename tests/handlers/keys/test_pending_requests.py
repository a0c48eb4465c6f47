"""Requests that wait for their answers on a connection: order, ends, and clients that go."""

import asyncio
import socket

import pytest
from tornado import httputil

from kvd.http.connection import ANSWERING, Connection
from kvd.http.server import Delegate, HttpServer, Limits
from kvd.limits.memory_budget import MemoryBudget
from tests.support.raw import request
from tests.support.waiting import until


class Pending(Delegate):
    """Takes all requests, to be answered later; but those first that no block is known of."""

    def __init__(self):
        self.pending = []

    def serve_whole(self, connection, request):
        if request != READ:
            return None
        connection.stage = ANSWERING
        self.pending.append(connection)
        return b""

    def start_request(self, connection):
        return First(connection)


class First(httputil.HTTPMessageDelegate):
    """A request that is answered at once."""

    def __init__(self, connection):
        self.connection = connection

    def finish(self):
        self.connection.respond(200, b"", b"")


class Waiting:
    """A server of such a delegate, and a client of it."""

    def __init__(self, loop):
        self.delegate = Pending()
        self.server = HttpServer(self.delegate, Limits(), loop, MemoryBudget(1 << 28))
        self.client = socket.socket()
        self.client.setblocking(False)

    async def ask(self, *requests):
        """Send requests; return the connection once the first is pending."""
        self.client.send(b"".join(requests))
        await until(lambda: self.delegate.pending)
        return self.delegate.pending.pop()

    async def another(self):
        """Return the connection once another request is pending."""
        return await self.ask()

    async def read(self):
        """What the server says next."""
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.client, 65536), 30)


READ = request("GET", "/v2/keys/a")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1"


def with_a_client(test):
    """Run a test with a client that has been answered once, on each event loop."""

    @pytest.mark.parametrize("module", ["uvloop", "asyncio"])
    def run(module):
        async def body():
            loop = asyncio.get_running_loop()
            waiting = Waiting(loop)
            listener = await loop.create_server(
                lambda: Connection(waiting.server), "127.0.0.1", 0, family=socket.AF_INET
            )
            try:
                with waiting.client as client:
                    await loop.sock_connect(client, listener.sockets[0].getsockname())
                    client.send(READ)
                    assert b"200 OK" in await waiting.read()
                    await test(waiting)
            finally:
                listener.close()
                await until(lambda: not waiting.server.connections)

        with asyncio.Runner(loop_factory=pytest.importorskip(module).new_event_loop) as runner:
            runner.run(body())

    run.__name__ = test.__name__
    return run


@with_a_client
async def test_one_request_after_another_is_replied_to_at_once(waiting):
    for _ in range(3):
        assert (await waiting.ask(READ)).reply(ANSWER)
        assert await waiting.read() == ANSWER


@with_a_client
async def test_a_pending_answer_is_the_last_after_a_stop(waiting):
    connection = await waiting.ask(READ)
    waiting.server.stop()
    assert not connection.reply(ANSWER)
    connection.respond(200, b"", b"1")
    assert b"Connection: close\r\n" in await waiting.read()
    assert await waiting.read() == b""


@with_a_client
async def test_what_came_behind_a_pending_request_is_served_after_it(waiting):
    connection = await waiting.ask(READ, READ)
    waiting.client.send(READ)
    assert not connection.reply(ANSWER)
    assert not waiting.delegate.pending
    connection.respond(200, b"", b"1")
    for _ in range(2):
        await until(lambda: waiting.delegate.pending)
        waiting.delegate.pending.pop().respond(200, b"", b"2")
    assert (await waiting.ask(READ)).reply(ANSWER)


@with_a_client
async def test_what_comes_while_a_request_is_pending_is_served_after_it(waiting):
    connection = await waiting.ask(READ)
    waiting.client.send(READ)
    await until(lambda: connection.stage != ANSWERING)
    assert not connection.reply(ANSWER)
    connection.respond(200, b"", b"1")
    assert (await waiting.another()).reply(ANSWER)


@with_a_client
async def test_a_client_that_has_said_its_last_word_is_answered_and_left(waiting):
    connection = await waiting.ask(READ)
    waiting.client.shutdown(socket.SHUT_WR)
    await until(lambda: connection.stage != ANSWERING)
    assert not connection.reply(ANSWER)
    connection.respond(200, b"", b"1")
    assert (await waiting.read()).endswith(b"\r\n\r\n1")
    assert await waiting.read() == b""


@with_a_client
async def test_a_client_that_is_gone_is_sent_nothing(waiting):
    connection = await waiting.ask(READ)
    waiting.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    waiting.client.close()
    await until(lambda: connection.gone)
    assert not connection.reply(ANSWER)
    connection.respond(200, b"", b"1")


@with_a_client
async def test_a_client_that_does_not_read_is_not_served(waiting):
    connection = await waiting.ask(READ)
    large = b"x" * (16 << 20)
    assert connection.reply(large)
    waiting.client.send(READ)
    await until(lambda: connection.is_asked or connection._parser.buffer)
    assert not waiting.delegate.pending
    read = 0
    while read < len(large):
        read += len(await waiting.read())
    assert (await waiting.another()).reply(ANSWER)


@with_a_client
async def test_a_pending_request_is_not_ended_for_the_time_it_takes(waiting):
    connection = await waiting.ask(READ)
    waiting.server.tick()
    connection.deadline = waiting.server.now - 1000
    waiting.server.tick()
    assert connection.reply(ANSWER)
    assert await waiting.read() == ANSWER
    assert connection.deadline > waiting.server.now

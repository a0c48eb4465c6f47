"""Turns of new connections, TLS handshakes and records."""

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest

from kvd.config.urls import ListenUrl
from kvd.http.connection import Connection
from kvd.http.server import HttpServer, Limits
from kvd.limits.memory_budget import MemoryBudget
from kvd.net import handshakes
from kvd.net.acceptor import Acceptor
from kvd.net.listeners import bind
from kvd.net.tls_connection import TlsConnection
from tests.support.certs import Authority
from tests.support.turned import LOOPS, READ, Running, Served, asked, new_loop


class Secured(Running):
    """A server that speaks TLS; `begun` and `read` have the turn of each handshake and record."""

    def __init__(self, loop, pair):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.cert, pair.key)
        self.begun, self.read = [], []

        count = self._count

        class Counted(ssl.SSLObject):
            def read(self, *args):
                count()
                return super().read(*args)

        context.sslobject_class = Counted

        def current_context():
            self.begun.append(self.served.turn)
            return context

        def connect(running):
            tls = SimpleNamespace(
                current_context=current_context, config=SimpleNamespace(trusted_ca_file="")
            )
            url = ListenUrl("127.0.0.1", 1, scheme="https")
            listener = SimpleNamespace(urls=[url], speaks_plain=False)
            inside = partial(Connection, running.server)
            shared = handshakes.Handshakes(tls, running.server, inside, listener)
            return partial(TlsConnection, shared)

        super().__init__(loop, connect)

    def _count(self):
        self.read.append(self.served.turn)


@pytest.fixture(params=LOOPS)
def secured(request, tmp_path):
    pair = Authority(tmp_path / "authority").sign("server", "127.0.0.1")
    loop = new_loop(request.param)
    running = Secured(loop, pair)
    yield running
    running.close()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


class Half:
    """The client's side of TLS, without a socket."""

    def __init__(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing)

    def hello(self):
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self.outgoing.read()

    def shake(self, running):
        """Shake hands with a server; the client that has."""
        client = running.client(self.hello())
        running.clients.remove(client)

        def is_done():
            with contextlib.suppress(BlockingIOError):
                self.incoming.write(client.recv(1 << 16))
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
                return True
            return False

        running.until(is_done)
        client.send(self.outgoing.read())
        running.clients.append(client)
        return client

    def records(self, sent, size):
        """What is sent, in records that have so many bytes of it."""
        for start in range(0, len(sent), size):
            self.tls.write(sent[start : start + size])
        return self.outgoing.read()


@pytest.mark.parametrize("name", LOOPS)
def test_few_connections_are_made_in_a_turn(name):
    loop = new_loop(name)
    served = Served(loop)
    server = HttpServer(served, Limits(backlog=512), loop, MemoryBudget(1 << 28))
    made = []

    def connect():
        made.append(served.turn)
        return Connection(server)

    (listener,) = bind([ListenUrl("127.0.0.1", 0)])
    acceptor = Acceptor(listener, server, connect, None)
    loop.run_until_complete(acceptor.start("listening"))
    with contextlib.ExitStack() as stack:
        for _ in range(300):  # all of them wait before the first is accepted
            client = socket.create_connection(listener.socket.getsockname())
            stack.enter_context(contextlib.closing(client))

        async def until(holds):
            async with asyncio.timeout(60):
                while not holds():
                    await asyncio.sleep(0)

        loop.run_until_complete(until(lambda: len(made) == 300))
    turns = Counter(made)
    assert max(turns.values()) <= 64
    assert len(turns) <= 20, "nor so few that the last of them has to wait for most turns"
    acceptor.close()
    loop.run_until_complete(until(lambda: not server.connections))
    loop.close()


def test_handshakes_are_few_in_a_turn(secured):
    for hello in [Half().hello() for _ in range(12)]:
        secured.client(hello)
    secured.until(lambda: len(secured.begun) == 12)
    assert max(map(secured.begun.count, secured.begun)) <= 2


def test_the_oldest_of_many_handshakes_that_have_begun_is_given_up(secured, monkeypatch):
    monkeypatch.setattr(handshakes, "_BEGUN_MAX", 8)
    clients = []
    for number in range(12):
        clients.append(secured.client(Half().hello()))
        secured.clients.clear()  # nothing is read there, nor found to be reset
        secured.until(lambda count=number + 1: len(secured.begun) == count)
    assert len(secured.server.shaking) == 8
    for _ in range(3):
        Half().shake(secured)
    secured.until(lambda: len(secured.server.connections) == 3)
    for client in clients:
        client.close()


def test_a_handshake_that_comes_byte_by_byte_takes_no_turns(secured):
    first, *rest = (bytes([byte]) for byte in Half().hello())
    slow = secured.client(first)
    for byte in rest[:-1]:
        slow.send(byte)
        secured.until(lambda turn=secured.served.turn: secured.served.turn > turn + 1)
        assert secured.turns._slow_left == 1
    assert secured.begun == []
    slow.send(rest[-1])
    secured.until(lambda: secured.begun)


def test_tiny_records_of_tls_leave_turns_to_others(secured):
    halves = [Half() for _ in range(16)]
    clients = [half.shake(secured) for half in halves]
    count = 40
    for half, client in zip(halves, clients, strict=True):
        client.send(half.records(READ * count, 1))
    secured.until(lambda: len(asked(secured, "GET")) == 16 * count)
    # So many come that a turn could decrypt all of them: 1,440 from each client.
    assert max(Counter(secured.read).values()) < 2000
